"""A solution at rest takes no more work the longer it rests, and still follows what moves later."""

import numpy as np
import pytest
import scipy.integrate

from torchlimits.dynamics import bdf


def to_the_root(square, time, method):
    """Evaluations that du/dt = 1000 (square - u^2) takes, which no double makes 0."""
    found = scipy.integrate.solve_ivp(
        lambda t, u: 1e3 * (square - u * u),
        (0.0, time),
        [1.0],
        method=method,
        rtol=1e-9,
        atol=1e-11,
    )
    assert found.success
    assert abs(found.y[0, -1] - square**0.5) < 1e-14
    return found.nfev


@pytest.mark.parametrize("square", [2.0, 3.0, 5.0])
def test_rest_takes_a_few_steps(square):
    longer, shorter = (to_the_root(square, time, bdf.BDF) for time in (1e6, 1e2))
    assert longer < shorter + 100


def test_rest_takes_scipy_thousands():
    """What the test above would find without the class it tests."""
    assert to_the_root(2.0, 1e6, scipy.integrate.BDF) > 4 * to_the_root(2.0, 1e6, bdf.BDF)


def away_from_the_target(change):
    """The largest error in following g(t), which first rests and then changes.

    du/dt = -a(t) (u - g(t)) + g'(t) is solved by u = g + (u(0) - g(0)) e^{-integral of a}; while it
    rests, a falls from 1e6 to 1, of which the Jacobian of the rest knows nothing.
    """

    def target(t):
        return 1 + change * (1 + np.tanh((t - 3e3) / 1e3)) / 2

    def velocity(t, u):
        pull = 1e6 if t < 1e3 else max(1.0, 1e6 * np.exp((1e3 - t) / 50))
        return -pull * (u - target(t)) + change / 2e3 / np.cosh((t - 3e3) / 1e3) ** 2

    times = np.linspace(100, 6e3, 60)
    found = scipy.integrate.solve_ivp(
        velocity, (0.0, 6e3), [1.5], method=bdf.BDF, t_eval=times, rtol=1e-9, atol=1e-11
    )
    return np.abs(found.y[0] - target(times)).max()


@pytest.mark.parametrize("change", [1e-3, 1e-5, 1e-7])
def test_what_moves_after_its_rest_is_followed(change):
    assert away_from_the_target(change) < 2e-9


def test_an_old_jacobian_does_not_tell_what_rounding_is(monkeypatch):
    """What the test above would find if corrections by the rest's Jacobian were left out."""
    monkeypatch.setattr(bdf, "_ROUNDING", 100 * bdf._ROUNDING)
    assert away_from_the_target(1e-7) < 2e-9

    def careless(self):
        self._before = -1
        return scipy.integrate.BDF.step(self)

    monkeypatch.setattr(bdf.BDF, "step", careless)
    assert away_from_the_target(1e-7) > 5e-8

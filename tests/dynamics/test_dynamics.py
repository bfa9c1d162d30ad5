"""The solver side of EffectiveDynamics, on equations whose solution is known."""

import math

import pytest
import torch

import torchlimits as tl
from torchlimits.optim.sgd import SGDSettings


class Rates(tl.VectorField):
    """-f_i = -rate_i u_i and g_i = 1."""

    def __init__(self, rates):
        super().__init__([f"u[{i}]" for i in range(len(rates))], 100)
        self.rates = torch.tensor(rates, dtype=torch.float64)

    def terms(self, u):
        return -self.rates.to(u) * u, torch.ones_like(u)


class Relaxation(tl.EffectiveDynamics):
    """du_i/dt = -rate_i u_i + c: u(t) = c/rate + (u0 - c/rate) exp(-rate t)."""

    def __init__(self, rates, **settings):
        super().__init__(Rates(rates), **settings)

    def exact(self, u0, times, corrector=True):
        settings = self.limit.settings
        rates = self.field.rates * settings.drift_factor
        level = settings.corrector_factor * corrector / rates
        return level + (u0[..., None, :] - level) * torch.exp(-rates * times[:, None])


TIMES = torch.linspace(0, 3, 31, dtype=torch.float64)


@pytest.mark.parametrize("corrector", [True, False])
def test_against_the_exact_solution(corrector):
    dynamics = Relaxation([1.0, 3.0], step_size=0.5, momentum=0.5, batch_size=2)
    u0 = torch.randn(4, 2, dtype=torch.float64)
    path = dynamics.solve(u0, TIMES, corrector=corrector)
    exact = dynamics.exact(u0, TIMES, corrector)
    torch.testing.assert_close(path.values, exact, rtol=1e-5, atol=1e-6)
    assert path.steps.tolist() == [round(200 * t) for t in TIMES.tolist()]
    assert path.metadata["parameters"]["corrector"] is corrector
    assert path.metadata["parameters"]["momentum"] == 0.5


def test_every_member_of_a_batch_keeps_the_tolerance():
    """torchdiffeq's own norm would let one member among 3000 quiet ones drift 100 times further."""
    dynamics = Relaxation([1.0, 3.0], step_size=1e-12)
    u0 = torch.zeros(3000, 2, dtype=torch.float64)
    u0[0] = 1.0
    alone = dynamics.solve(u0[:1], TIMES, rtol=1e-7, atol=1e-9).values
    together = dynamics.solve(u0, TIMES, rtol=1e-7, atol=1e-9).values[:1]
    exact = dynamics.exact(u0[:1], TIMES)
    assert (together - exact).abs().max() < 2 * (alone - exact).abs().max() + 1e-12


def test_float32_starts_are_solved_in_float64():
    dynamics = Relaxation([1.0, 3.0], step_size=0.5)
    u0 = torch.tensor([0.25, 0.5])
    path = dynamics.solve(u0, TIMES)
    torch.testing.assert_close(
        path.values, dynamics.exact(u0.double(), TIMES), rtol=1e-5, atol=1e-6
    )
    assert dynamics.drift(u0).dtype == torch.float32


def test_one_time_only():
    path = Relaxation([1.0], step_size=0.5).solve(torch.ones(1), [2.0])
    assert path.values.tolist() == [[1.0]]


@pytest.mark.parametrize("times", [[0.0, 1.0, 0.5], [1.0, 0.0], [], [[0.0, 1.0]], [0.0, math.nan]])
def test_bad_times(times):
    with pytest.raises(ValueError, match=r"expected times"):
        Relaxation([1.0], step_size=0.5).solve(torch.ones(1), times)


def test_bad_u():
    dynamics = Relaxation([1.0, 2.0], step_size=0.5)
    for call in (dynamics.drift, dynamics.corrector, lambda u: dynamics.solve(u, TIMES)):
        with pytest.raises(ValueError, match=r"expected u of shape \(..., 2\).*\(3,\)"):
            call(torch.ones(3))
        with pytest.raises(TypeError, match="float32 or float64"):
            call(torch.ones(2, dtype=torch.int64))
        with pytest.raises(TypeError, match="got list"):
            call([1.0, 2.0])
    with pytest.raises(ValueError, match="finite start"):
        dynamics.solve(torch.tensor([1.0, math.nan]), TIMES)


def test_a_blow_up_says_what_happened():
    class BlowUp(Rates):
        def terms(self, u):
            return u**2, torch.zeros_like(u)

    with pytest.raises(RuntimeError, match="could not hold rtol"):
        tl.EffectiveDynamics(BlowUp([1.0]), step_size=0.5).solve(torch.ones(1), [0.0, 2.0])


def test_settings_are_read_from_the_optimizer():
    p = [torch.nn.Parameter(torch.ones(3))]
    sgd = torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5, weight_decay=0.2)
    settings = SGDSettings.of(sgd, dim=100, batch_size=4)
    assert settings == SGDSettings(1.0, 0.9, 0.5, 0.2, 4)
    assert settings.drift_factor == pytest.approx(5.0)
    assert settings.corrector_factor == pytest.approx(25.0 / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": 1.0, "momentum": 1.0}, "momentum"),
        ({"step_size": 1.0, "dampening": -0.1}, "dampening"),
        ({"step_size": 1.0, "weight_decay": -0.1}, "weight_decay"),
        ({"step_size": 1.0, "batch_size": 0}, "batch_size"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=f"expected {message}"):
        SGDSettings(**options)


def test_optimizers_without_a_limit_here():
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    with pytest.raises(TypeError, match="recording works with any optimizer"):
        SGDSettings.of(torch.optim.Adam([p]), 10)
    groups = [{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.2}]
    with pytest.raises(ValueError, match="one lr for all parameter groups"):
        SGDSettings.of(torch.optim.SGD(groups, lr=0.1), 10)


# --- fields that other people write -------------------------------------------------------------


def sgd(**options):
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.01, **options)


def test_the_optimizer_comes_from_the_limit():
    """A field knows nothing of it: sign, momentum and batches are applied to any field alike."""
    u = torch.tensor([0.5, -2.0])
    plain = tl.EffectiveDynamics(Rates([1.0, 3.0]), sgd())
    ascent = tl.EffectiveDynamics(Rates([1.0, 3.0]), sgd(maximize=True, momentum=0.5), batch_size=2)
    torch.testing.assert_close(ascent.drift(u), -2 * plain.drift(u))
    torch.testing.assert_close(ascent.corrector(u), 4 / 2 * plain.corrector(u))


class Known(Rates):
    """With all that an optimizer may ask for: u is linear in the parameters."""

    def decay(self, u):
        return u

    def gradient_length(self, u):
        return torch.full_like(u[..., 0], 2.0)

    def increment_covariance(self, u, step_size):
        return torch.eye(2).to(u).expand(*u.shape, 2)


def test_what_a_field_does_not_know_is_refused():
    normalized = tl.NormalizedSGD([torch.nn.Parameter(torch.ones(3))], lr=0.01)
    with pytest.raises(ValueError, match=r"weight_decay 0 for Rates, got 0.2: .* define decay"):
        tl.EffectiveDynamics(Rates([1.0, 3.0]), step_size=1.0, weight_decay=0.2)
    with pytest.raises(ValueError, match=r"expected torch.optim.SGD for Rates, got NormalizedSGD"):
        tl.EffectiveDynamics(Rates([1.0, 3.0]), normalized)
    with pytest.raises(NotImplementedError, match="diffusion matrix of Rates is not known"):
        tl.EffectiveDynamics(Rates([1.0, 3.0]), step_size=1.0).diffusion(torch.ones(2))
    with pytest.raises(TypeError, match=r"expected field as a VectorField, got list"):
        tl.EffectiveDynamics([1.0], step_size=1.0)
    with pytest.raises(ValueError, match="either an optimizer or step_size"):
        tl.EffectiveDynamics(Rates([1.0]))
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    with pytest.raises(TypeError, match="recording works with any optimizer"):
        tl.EffectiveDynamics(Rates([1.0]), adam)


def test_what_a_field_knows_is_used():
    u = torch.tensor([0.5, -2.0], dtype=torch.float64)
    plain = tl.EffectiveDynamics(Known([1.0, 3.0]), step_size=1.0)
    decayed = tl.EffectiveDynamics(Known([1.0, 3.0]), step_size=1.0, weight_decay=0.2)
    torch.testing.assert_close(decayed.drift(u), plain.drift(u) - 0.2 * u)
    optimizer = tl.NormalizedSGD([torch.nn.Parameter(torch.ones(3))], lr=0.01)
    scaled = tl.EffectiveDynamics(Known([1.0, 3.0]), optimizer, batch_size=4)
    # the gradient of a batch of 4 has the length 1: it is as if it were not scaled
    plain = tl.EffectiveDynamics(Known([1.0, 3.0]), step_size=1.0, batch_size=4)
    torch.testing.assert_close(scaled.drift(u), plain.drift(u))
    torch.testing.assert_close(scaled.corrector(u), plain.corrector(u))
    torch.testing.assert_close(scaled.diffusion(u), plain.diffusion(u))


# --- from a measured trajectory ------------------------------------------------------------------


def recorded(names, runs=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*runs, 5, len(names), generator=generator, dtype=torch.float64) + 0.5
    return tl.Trajectory(0.5 + torch.arange(5) * 0.1, torch.arange(5), values, names)


@pytest.mark.parametrize("runs", [(), (3,)])
def test_a_measured_trajectory_is_start_and_times(runs):
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    measured = recorded(["r2", "m"], runs)
    found = dynamics.solve(measured, band=True)
    expected = dynamics.solve(measured.initial.flip(-1), measured.times, band=True)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.std, expected.std)
    assert torch.equal(
        dynamics.solve(measured, [0.5, 2.0]).times, torch.tensor([0.5, 2.0]).double()
    )
    assert torch.equal(
        dynamics.covariance(measured),
        dynamics.covariance(measured.initial.flip(-1), measured.times),
    )


def test_statistics_that_the_dynamics_do_not_know_are_left_out_with_a_warning():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    with pytest.warns(RuntimeWarning, match=r"do not know \['loss'\] and leave it out"):
        found = dynamics.solve(recorded(["m", "loss", "r2"]))
    assert found.names == ["m", "r2"]
    with pytest.raises(ValueError, match=r"got one without \['r2'\]"):
        dynamics.solve(recorded(["m"]))
    with pytest.raises(TypeError, match="expected times with a start that is a tensor"):
        dynamics.solve(torch.ones(2))
    with pytest.raises(ValueError, match="record a step first"):
        dynamics.solve(recorded(["m", "r2"]).slice(slice(0, 0)))


def test_langevin_and_diffusive_dynamics_start_there_too():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    measured = recorded(["r2", "m"])
    start = measured.initial.flip(-1)

    def seeded():
        return torch.Generator().manual_seed(0)

    langevin = dynamics.langevin()
    assert torch.equal(
        langevin.solve(measured, generator=seeded()).values,
        langevin.solve(start, measured.times, generator=seeded()).values,
    )
    # of u or, after rescale, of u~: never rescaled twice, and never not
    around = dynamics.diffusive(dynamics.fixed_points()[0].u)
    in_order = measured.select(["m", "r2"])
    expected = around.solve(around.rescale(in_order).initial, measured.times, generator=seeded())
    for given in (measured, around.rescale(in_order), around.unscale(around.rescale(in_order))):
        found = around.solve(given, generator=seeded())
        torch.testing.assert_close(found.values, expected.values, rtol=1e-9, atol=1e-9)

"""Where -f + g has kinks: idle neurons, which grow along rays, and parallel ones, which part."""

import functools

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics import fixed_points


def xor(c, *, width=1, snr=2.0, ridge=0.05, level=1):
    problem = tl.GaussianMixture.xor(dim=100, snr=snr, ridge=ridge, width=width)
    return problem.dynamics(step_size=c, level=level)


@functools.cache
def growth(c, *, snr=2.0, length=1e-5):
    """The rate at which a small neuron grows or shrinks by the ODE, when its shape has settled."""
    dynamics = xor(c, snr=snr)
    starts = torch.stack([
        dynamics.join(
            torch.tensor([sign * length]).double(), length * row[None].double(),
            torch.zeros(1, 1).double(),
        )
        for sign in (1.0, -1.0) for row in dynamics.coordinates
    ])  # fmt: skip
    path = dynamics.solve(starts, [0.0, 150.0, 200.0], rtol=1e-8, atol=1e-16)
    before, after = (path.values[:, i, :3].norm(dim=-1) for i in (1, 2))
    return float((after / before).log().max()) / 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("snr", "c", "stable"),
    [(2.0, 0.0, False), (2.0, 4.25, False), (2.0, 8.0, True), (0.5, 0.5, True)],
)
def test_idle_neurons_grow_as_the_ode_says(snr, c, stable):
    """XOR: the corrector slows the way out of 0, and closes it at c_delta = 8."""
    dynamics = xor(c, snr=snr)
    values, kind, *_ = fixed_points.classify(dynamics, torch.zeros(4).double())
    assert float(values[0].real) == pytest.approx(growth(c, snr=snr), abs=2e-5)
    assert (kind == "stable") is stable


@pytest.mark.slow
def test_the_ray_is_needed():
    """Negative control: the nudge towards a mean, R = 0, knows nothing of the corrector."""
    dynamics = xor(8.0)
    v, m, R = dynamics.split(torch.zeros(4).double())
    towards = dynamics.join(v, m + 1e-6 * dynamics.coordinates[:1].double(), R)
    naive = torch.linalg.eigvals(dynamics.jacobian(towards[None])[0]).real.max()
    assert float(naive) > 0 > growth(8.0)


def test_more_idle_neurons_grow_like_one():
    values = fixed_points.classify(xor(8.0, width=3, level=0), torch.zeros(15).double())[0]
    one = fixed_points.classify(xor(8.0), torch.zeros(4).double())[0]
    torch.testing.assert_close(values.real[:3], one.real[:1].expand(3), atol=2e-4, rtol=0)


@pytest.mark.parametrize("snr", [0.2, 8.0])
def test_rays_are_found_whatever_the_rates_are(snr):
    """Momentum 0.9 at a tenth of c_delta is the same dynamics, ten times as fast."""
    problem = tl.GaussianMixture.xor(dim=100, snr=snr, ridge=0.0, width=1)
    plain, fast = (
        fixed_points.classify(problem.dynamics(**options), torch.zeros(4).double()).eigenvalues
        for options in ({"step_size": 1.0}, {"step_size": 0.1, "momentum": 0.9})
    )
    torch.testing.assert_close(fast.real, 10 * plain.real, rtol=1e-3, atol=1e-6)


def test_what_is_on_its_slow_way_to_0_counts_as_0():
    """XOR, K = 4, coarse: where 0 attracts slowly, residuals are small long before it is there."""
    dynamics = xor(8.0, width=4, level=-1)
    v = 0.002 * torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    m = 0.003 * dynamics.coordinates.double()
    near = dynamics.join(v, m, torch.zeros(4, 4).double())
    (zero,) = dynamics.fixed_points(torch.stack([near, 1.1 * near, 0 * near]), flow=0)
    assert bool((zero.u == 0).all())
    assert zero.stable


@pytest.mark.slow
def test_zeros_of_v_and_m_alone_are_no_fixed_points():
    """At v, m of size x the drift of R is of size x^2: small beside x, and yet not 0."""
    problem = tl.GaussianMixture.xor(dim=100, width=4, snr=10**0.3, ridge=0.05)
    dynamics = problem.dynamics(step_size=8.0, level=-1)
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    R = 0.64e-4 * torch.outer(sign, sign)
    start = dynamics.join(0.0046 * sign, 0.0058 * dynamics.coordinates.double(), R)
    speed = dynamics(0.0, start).abs()
    assert float(speed.max()) < dynamics.error * float(start.abs().max())
    assert not bool((speed <= dynamics.geometry.tolerance(dynamics.error, start)).all())
    (zero,) = dynamics.fixed_points(start[None], flow=0)
    assert bool((zero.u == 0).all())


def parallel(dynamics, angle=0.0, k=(0.6, 0.8)):
    """Binary, K = 2: the arc v = |v| k, |k| = 1, of both neurons on one mean, parallel."""
    one = tl.EffectiveDynamics(dynamics.field.of_neurons(1), dynamics.limit)
    best = max(one.fixed_points(count=20), key=lambda p: float(p.u[0]))
    v, m, R = one.field.split(best.u)
    k = torch.as_tensor(k).double()
    return dynamics.join(v * k, m * k[:, None], R * torch.outer(k, k) + angle * torch.diag(k**2))


def from_the_arc(dynamics, u):
    """The distance of u from the point on the arc with the same k; nan for u = 0."""
    return (u - parallel(dynamics, k=u[:2] / u[:2].norm())).abs().max()


@pytest.mark.parametrize("c", [0.0, 3.0])
def test_parallel_neurons_part_at_once_with_the_corrector(c):
    """-f + g is 0 on the arc for any c; only for c = 0 does the ODE stay near it."""
    problem = tl.GaussianMixture.binary(dim=100, snr=1.0, ridge=0.05)
    dynamics = problem.dynamics(step_size=c)
    point = parallel(dynamics)
    # to the error of the integrals, one neuron's and two neurons' rules being different
    assert float(dynamics(0.0, point).abs().max()) < dynamics.error
    assert bool(dynamics.geometry.persists(dynamics, point[None])) is (c == 0)
    # 0 is a fixed point at any c
    starts = torch.stack([point, point + 1e-3, torch.zeros_like(point)])
    found = dynamics.fixed_points(starts, flow=0)
    assert any(float(from_the_arc(dynamics, p.u)) < 1e-9 for p in found) is (c == 0)

    starts = torch.stack([parallel(dynamics, angle) for angle in (1e-8, 1e-10)])
    final = dynamics.solve(starts, [0.0, 10.0], rtol=1e-8, atol=1e-13).final
    far = (final - point).abs().amax(-1)
    if c == 0:
        assert float(far.max()) < 1e-7
    else:  # not Lipschitz: a perturbation a hundred times smaller has gone just as far
        assert float(far.min()) > 1e-3
        assert float(far[0] / far[1]) == pytest.approx(1, abs=0.05)

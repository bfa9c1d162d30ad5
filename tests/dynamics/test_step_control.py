"""The steps of SDEs: as short as the dynamics on the way need, whatever their rates are."""

import math

import pytest
import torch

import torchlimits as tl
from torchlimits.dynamics import diffusive
from torchlimits.dynamics.diffusive import DiffusiveDynamics
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit


class Written(DiffusiveDynamics):
    """An SDE of given drift and noise, with a diagonal diffusion matrix."""

    def __init__(self, drift, squares, k=1):
        one = torch.ones(k).double()
        super().__init__(list("ab")[:k], 10, SGDLimit(SGDSettings(1.0)), 0 * one, one)
        self.functions = drift, squares
        self.steps = []

    def drift(self, u):
        return self.functions[0](u)

    def diffusion(self, u):
        return torch.diag_embed(self.functions[1](u))

    def _advance(self, u, step, brownian):
        self.steps.append(step)
        return super()._advance(u, step, brownian)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def constant_steps(dynamics, u, step, count):
    """The same scheme with steps that know nothing of the dynamics."""
    generator = seeded()
    for _ in range(count):
        normal = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        u = DiffusiveDynamics._advance(dynamics, u, step, normal * step**0.5)
    return u


@pytest.mark.parametrize(("order", "snr"), [(2, 30.0), (3, 10.0), (4, 30.0)])
def test_stationary_variances_at_fast_rates(order, snr):
    """Rates are 240, 220 and 2600; `scripts/reach_sde.py` has more settings and paths."""
    dynamics = tl.SpikedTensor(dim=10**6, order=order, snr=snr).dynamics(step_size=1.0)
    at = torch.tensor([float(dynamics.m_star()), 1.0], dtype=torch.float64)
    around = dynamics.diffusive(at)
    expected = around.stationary_covariance().diagonal() / dynamics.dim
    time = 5 / float(-torch.linalg.eigvals(around.jacobian).real.max())
    noise, paths = dynamics.langevin(), 1000
    final = noise.solve(at, [0.0, time], paths=paths, generator=seeded(1)).final
    assert float((final.var(0) / expected - 1).abs().max()) < 4 * (2 / paths) ** 0.5
    # negative control: a step that was right at rates of order 1
    wrong = constant_steps(noise, at.expand(200, 2), 0.01, 50).var(0) / expected
    assert not bool(((wrong - 1).abs() < 0.5).any())


def test_steps_follow_the_noise_where_it_is_multiplicative():
    """dX = 3 X dB: E|X|^(1/2) = exp(-9 t/8), although the drift, 0, needs no steps at all."""
    dynamics = Written(lambda u: 0 * u, lambda u: 9 * u**2)
    paths, time = 20_000, 0.3
    found = dynamics.solve(torch.ones(1), [0.0, time], paths=paths, generator=seeded()).final
    root = found.abs().sqrt()
    expected, error = math.exp(-9 * time / 8), float(root.std()) / paths**0.5
    assert abs(float(root.mean()) - expected) < 4 * error + 0.01
    assert len(dynamics.steps) > 20
    # negative control: three steps
    rough = constant_steps(dynamics, torch.ones(paths, 1).double(), time / 3, 3).abs().sqrt()
    assert abs(float(rough.mean()) - expected) > 10 * error + 0.01


def test_a_mode_that_becomes_the_fastest_is_seen():
    """The rate of b grows to 148 as a moves; its variance is half its noise over its rate."""

    def drift(u):
        a, b = u.unbind(-1)
        return torch.stack([torch.ones_like(a), -b * torch.exp(a.clamp(max=5.0))], -1)

    dynamics = Written(drift, lambda u: torch.tensor([0.0, 1.0]).double().expand(u.shape), k=2)
    paths = 400
    path = dynamics.solve(torch.zeros(2), [0.0, 5.2], paths=paths, generator=seeded())
    ratio = float(path.final[:, 1].var()) * 2 * math.exp(5.0)
    assert abs(ratio - 1) < 4 * (2 / paths) ** 0.5
    assert min(dynamics.steps) < 1e-3 < 0.05 < max(dynamics.steps)


def test_steps_do_not_jump_over_a_cliff():
    """Flat at first, so that long steps look right, and then steep."""
    dynamics = Written(lambda u: 1 - torch.exp(10 * u), lambda u: 0 * u)
    final = dynamics.solve(torch.tensor([-10.0]), [0.0, 20.0], generator=seeded()).final
    assert float(final.abs().max()) < 1e-6


def test_noise_that_begins_at_zero_and_borders():
    """du = (1 - u) dt + u^(1/2) dB from 0, where the noise has no relative size: Var -> 1/2."""
    dynamics = Written(lambda u: 1 - u, lambda u: u.clamp_min(0))
    paths = 2000
    final = dynamics.solve(torch.zeros(1), [0.0, 5.0], paths=paths, generator=seeded()).final
    assert abs(float(final.mean()) - 1) < 4 * (0.5 / paths) ** 0.5 + 0.01
    assert abs(float(final.var()) / 0.5 - 1) < 0.15
    assert len(dynamics.steps) < 3000


def test_what_is_said_where_paths_cannot_be_followed(monkeypatch):
    # long steps used to be taken for having left the diffusive phase
    fast = tl.SpikedTensor(dim=10**6, order=3, snr=30.0).dynamics(step_size=1.0)
    at = torch.tensor([float(fast.m_star()), 1.0])
    noise = fast.langevin()
    assert bool(noise.solve(at, [0.0, 0.01], paths=3, generator=seeded()).values.isfinite().all())
    growing = Written(lambda u: u**3, lambda u: 0 * u)
    with pytest.raises(RuntimeError, match=r"blow up at t = 0\.500\d*, with steps that resolve"):
        growing.solve(torch.ones(1), [0.0, 1.0])
    monkeypatch.setattr(diffusive, "_MOST_STEPS", 50)
    with pytest.raises(RuntimeError, match=r"after \d+ steps the paths have come to t = .* of 1:"):
        noise.solve(at, [0.0, 1.0])


def test_max_step_is_an_upper_bound_and_seeds_replicate():
    dynamics = Written(lambda u: -u, lambda u: 1 + 0 * u)
    first = dynamics.solve(torch.zeros(1), [0.0, 1.0], generator=seeded(3), max_step=0.01)
    assert max(dynamics.steps) <= 0.01
    again = dynamics.solve(torch.zeros(1), [0.0, 1.0], generator=seeded(3), max_step=0.01)
    assert torch.equal(first.values, again.values)
    dynamics.steps.clear()
    dynamics.solve(torch.zeros(1), [0.0, 1.0], generator=seeded(3), max_step=10.0)
    assert max(dynamics.steps) <= 0.11

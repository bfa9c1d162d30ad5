"""Fixed points where second moments settle: against long runs of the real optimizers."""

from functools import cache
from math import exp

import pytest
import torch
from adaptive_runs import binary
from torch import nn

import torchlimits as tl
from torchlimits import _linalg

N = 256
RIDGE = 0.5


def one_neuron():
    return binary(N, width=1, head=nn.Sequential(nn.Tanh(), nn.Linear(1, 1)))


def adamw(parameters, c=0.5, **options):
    """Without beta_1, whose lag is O(1/N), too."""
    kept = {"betas": (0.0, 0.999), "weight_decay": RIDGE, **options}
    return torch.optim.AdamW(parameters, lr=c / N, **kept)


def adam(parameters, c=0.5):
    return torch.optim.Adam(parameters, lr=c / N, betas=(0.0, 0.999), weight_decay=RIDGE)


def dynamics_of(problem, make, nodes=2**8, **options):
    with pytest.warns(UserWarning, match="weight_decay"):
        return problem.dynamics(make(problem.model().parameters(), **options), nodes=nodes)


def attractor(dynamics):
    """The fixed point near these statistics of the network."""
    near = [1.0, 0.0, 0.0, 0.7, -0.7, 0.2]  # head, its bias, b, m, R
    (point,) = dynamics.fixed_points(torch.tensor([near]).double(), flow=8.0)
    return point


@cache
def found(make):
    dynamics = dynamics_of(one_neuron(), make)
    return dynamics, attractor(dynamics)


@pytest.mark.parametrize("make", [adamw, adam])
def test_second_moments_settle_to_those_of_gradients(make):
    """v = Var G + (E G + lambda theta)^2, by the gradients of single samples, one by one."""
    dynamics, point = found(make)
    assert point.stable
    assert float(dynamics(0.0, point.u).abs().max()) < 1e-10
    base, v, w = dynamics.field.split(point.u)
    weight, by_theta, g, *_ = dynamics.network.samples(base)
    theta, b, *_ = dynamics.split(point.u)
    G, coupled = torch.cat([by_theta, g], 1), RIDGE if make is adam else 0.0
    mean = weight @ G
    Q = weight @ G**2 - mean**2 + (mean + coupled * torch.cat([theta, b])) ** 2
    expected = torch.cat([(weight @ g**2) / 4, Q[2:], Q[:2]])  # row, bias, head
    torch.testing.assert_close(v, expected, rtol=1e-8, atol=1e-10)
    assert float(w) == 1


def test_solutions_return_at_the_slowest_rate():
    dynamics, point = found(adamw)
    rate = -float(point.eigenvalues.real.max())
    values, vectors = torch.linalg.eig(dynamics.jacobian(point.u[None])[0])
    slowest = vectors[:, values.real.argmax()].real
    start = point.u + 1e-2 * slowest / slowest.abs().max()
    start[-1] = 1.0
    path = dynamics.solve(start, [0.0, 4.0], rtol=1e-8, atol=1e-10).values
    left = (path - point.u).norm(dim=-1)
    assert float(left[1] / left[0]) == pytest.approx(exp(-4 * rate), rel=0.02)


@pytest.mark.slow
def test_points_without_gradients_are_none_if_eps_is_small():
    """At 0 all gradients of W vanish, and so do their second moments; solutions leave at once."""
    near = torch.zeros(1, 6).double()
    dynamics, _ = found(adamw)
    assert float(dynamics(0.0, dynamics.field.settled(near)).abs().max()) < 1e-15
    with pytest.raises(RuntimeError, match="no fixed point found"):
        dynamics.fixed_points(near, flow=0)
    beside = near + 1e-6 * torch.tensor([1.0, 0, 0, 1, -1, 1e-6])
    there = dynamics.solve(beside, [0.0, 2.0])
    assert float(there["R[0,0]"][0, -1]) > 0.2


def test_points_without_gradients_are_some_if_eps_is_large():
    """Beside 0, da = (m_0 - m_1)/eps - omega a and d(m_0 - m_1) = 2 a/eps - omega (m_0 - m_1)."""
    dynamics = dynamics_of(one_neuron(), adamw, eps=0.3)
    (point,) = dynamics.fixed_points(torch.zeros(1, 6).double(), flow=0)
    assert point.kind == "unstable"
    assert float(point.eigenvalues.real.max()) == pytest.approx(2**0.5 / 0.3 - RIDGE, rel=2e-3)


def test_sums_of_squares_do_not_settle():
    problem = one_neuron()
    adagrad = torch.optim.Adagrad(
        problem.model().parameters(), lr=N**-0.5, initial_accumulator_value=N
    )
    dynamics = problem.dynamics(adagrad)
    for look in (dynamics.fixed_points, lambda: dynamics.diffusive(problem.starts(1)[0])):
        with pytest.raises(ValueError, match="expected second moments that settle for"):
            look()


def placed(problem, dynamics, u, runs):
    """Replicas with these statistics, and their optimizer with these second moments."""
    theta, b, m, R = dynamics.split(u)
    E = problem.directions.double()
    model = problem.model(replicas=(runs,), generator=torch.Generator().manual_seed(0))
    X = torch.randn(runs, 1, N, generator=torch.Generator().manual_seed(3)).double()
    X = nn.functional.normalize(X - X @ E.mT @ E, dim=-1)
    values = {
        "first.weight": m @ E + _linalg.psd_sqrt(R) @ X, "first.bias": b,
        "head.1.weight": theta[:1, None], "head.1.bias": theta[1:],
    }  # fmt: skip
    optimizer = adamw(model.parameters())
    v = dynamics.field.moments.spread(dynamics.field.split(u)[1])
    seconds = {
        "first.weight": v.rows[:, None], "first.bias": v.bias,
        "head.1.weight": v.theta[:1, None], "head.1.bias": v.theta[1:],
    }  # fmt: skip
    for name, p in model.named_parameters():
        p.data.copy_(values[name].expand_as(p))
        optimizer.state[p] = {
            "step": torch.tensor(1e5), "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": seconds[name].expand_as(p).clone(),
        }  # fmt: skip
    return model, optimizer


@pytest.mark.slow
def test_long_runs_stay_and_fluctuate_there():
    """N = 256: rms z of the means below 3.2, with O(1/N); another c_delta has another point."""
    problem, runs, T = one_neuron(), 24, 8
    dynamics = dynamics_of(problem, adamw, nodes=2**11)
    point = attractor(dynamics)
    model, optimizer = placed(problem, dynamics, point.u, runs)
    steps, generator = 2 * T * N, torch.Generator().manual_seed(1)
    with tl.track(model, optimizer, dynamics.statistics, every=steps // 8) as tracker:
        for _ in range(steps):
            x, y = problem.sample(1, replicas=(runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    values = tracker.trajectory().values
    torch.testing.assert_close(values[:, 0], point.u.expand(runs, -1), rtol=1e-9, atol=1e-9)
    late = values[:, 4:, :-1]
    of_runs = late.mean(1)
    error = of_runs.std(0) / runs**0.5

    def misses(other):
        return float(((of_runs.mean(0) - other.u[:-1]) / error).square().mean().sqrt())

    assert misses(point) < 3.2
    assert misses(attractor(dynamics_of(problem, adamw, c=0.25))) > 10
    # the diffusive limit around it, after 4 to 8 units of limit time
    limit, times = dynamics.diffusive(point.u), torch.linspace(T / 2, T, 5)
    covariance = limit.covariance(times)[:, :-1, :-1] / N
    theory = covariance.diagonal(dim1=-2, dim2=-1).mean(0).sqrt()
    measured = late.var(0).mean(0).sqrt()
    ratio = (measured / theory)[: len(dynamics.network.names)]
    assert 0.85 < float(ratio.square().mean().sqrt()) < 1.15
    stationary = limit.stationary_covariance()
    assert float((stationary - limit.covariance([0.0, 200.0])[1]).abs().max()) < 1e-6

"""Errors of least squares: against matrix exponentials, integrals, grids and formulas by hand."""

import math
import warnings

import pytest
import torch
from scipy import integrate, linalg

import torchlimits as tl
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.gains import Gains
from torchlimits.problems.linear.levels import Levels
from torchlimits.problems.linear.linear_flow import LinearFlow

TWO = [(4.0, 0.25), (1.0, 0.75)]
FIVE = [(4.0, 0.1), (2.0, 0.2), (1.0, 0.3), (0.5, 0.25), (0.01, 0.15)]
CASES = [(TWO, 1, 0.0), (TWO, 4, 0.5), (FIVE, 1, 0.0), (FIVE, 3, 0.6)]


def make(pairs, noise=0.5, dim=400, **given):
    return tl.LinearModel(dim, covariance=pairs, noise=noise, **given)


def affine(pairs, noise, c, B=1, beta=0.0):
    """The matrix of d(u, 1)/dt, written down entry by entry."""
    q, L = 1 / (1 - beta), len(pairs)
    M = torch.zeros(L + 1, L + 1, dtype=torch.float64)
    for i, (lam, f) in enumerate(pairs):
        for j, (other, _) in enumerate(pairs):
            M[i, j] = q * q * c / B * f * lam * other - 2 * q * lam * (i == j)
        M[i, L] = q * q * c / B * f * lam * noise**2
    return M


def by_exponentials(M, u0, times):
    start = torch.cat([u0, u0.new_ones(1)])
    rows = [torch.from_numpy(linalg.expm((M * t).numpy())) @ start for t in times.tolist()]
    return torch.stack(rows)[:, :-1]


@pytest.mark.parametrize(("pairs", "B", "beta"), CASES)
def test_solutions_are_those_of_the_matrix_exponential(pairs, B, beta):
    problem, c = make(pairs), 0.4
    dynamics = problem.dynamics(step_size=c, batch_size=B, momentum=beta)
    times = torch.tensor([0.0, 0.0, 0.1, 1.0, 5.0, 300.0, 1e5], dtype=torch.float64)
    expected = by_exponentials(affine(pairs, 0.5, c, B, beta), problem.initial, times)
    found = dynamics.solve(problem.initial, times).values
    assert float((found - expected).abs().max()) < 1e-10
    general = dynamics.solve(problem.initial, times[:4], method="dopri5", rtol=1e-11, atol=1e-12)
    assert float((general.values - expected[:4]).abs().max()) < 1e-10
    # negative control: the noise is seen
    quiet = by_exponentials(affine(pairs, 0.4, c, B, beta), problem.initial, times)
    assert float((found - quiet).abs().max()) > 1e-3
    starts = torch.stack([problem.initial, 2 * problem.initial])[:, None]
    assert torch.allclose(dynamics.solve(starts, times).values[0, 0], found, rtol=1e-13)
    flow = dynamics.solve(problem.initial, times, corrector=False).values
    rates = torch.tensor([-2 * lam / (1 - beta) for lam, _ in pairs], dtype=torch.float64)
    assert torch.allclose(flow, problem.initial * (times[:, None] * rates).exp(), atol=1e-14)


@pytest.mark.parametrize(("pairs", "B", "beta"), CASES)
def test_stability_and_plateau(pairs, B, beta):
    problem = make(pairs)
    trace = problem.covariance.trace
    limit = problem.stability_limit(batch_size=B, momentum=beta)
    assert limit == pytest.approx(2 * B * (1 - beta) * problem.dim / trace, rel=1e-12)
    assert problem.critical_step_size == pytest.approx(2 * problem.dim / trace, rel=1e-12)

    def top(c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dynamics = problem.dynamics(step_size=c, batch_size=B, momentum=beta)
        return float(torch.linalg.eigvals(dynamics.jacobian(problem.initial[None])[0]).real.max())

    # lr tr Lambda = 2 B (1 - beta)
    assert abs(top(2 * B * (1 - beta) / trace * problem.dim)) < 1e-10
    assert top(0.99 * limit) < -1e-5 < 1e-5 < top(1.01 * limit)
    c = 0.6 * limit
    expected = 0.125 / (1 - c * trace / problem.dim / (2 * B * (1 - beta)))
    assert problem.plateau(c, B, beta) == pytest.approx(expected, rel=1e-12)
    dynamics = problem.dynamics(step_size=c, batch_size=B, momentum=beta)
    final = dynamics.solve(problem.initial, [0.0, 1e6]).final
    assert float(problem.risk(final)) == pytest.approx(expected, rel=1e-10)
    (point,) = dynamics.fixed_points()
    assert torch.allclose(point.u, final)
    assert problem.plateau(limit * (1 + 1e-9), B, beta) == math.inf
    assert problem.plateau(limit / 2, B, beta) < problem.plateau(0.9 * limit, B, beta)


def test_above_the_limit_the_risk_grows_and_is_warned_of():
    problem = make(TWO)
    with pytest.warns(UserWarning, match=r"risk diverges.*stability limit 1\.143"):
        dynamics = problem.dynamics(step_size=1.2)
    risks = problem.risk(dynamics.solve(problem.initial, [0.0, 20.0, 40.0, 80.0]).values)
    assert bool((risks.diff() > 0).all())
    assert float(risks[-1]) > 10
    with pytest.raises(RuntimeError, match="beyond all bounds before t = 1e"):
        dynamics.solve(problem.initial, [0.0, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.dynamics(step_size=1.1)


def test_equal_blocks_are_one_block():
    one = Levels(torch.tensor([1.5]).double(), torch.zeros(300, dtype=torch.long))
    three = Levels(torch.full((3,), 1.5).double(), torch.arange(3).repeat_interleave(100))
    values = []
    for levels in (one, three):
        field = LeastSquaresField(levels, Gains.gaussian(levels, 0.3), 0.3, 300)
        flow = LinearFlow.of(
            field.gains.matrix - 2 * torch.diag(levels.eigenvalues), field.gains.noise,
            levels.fractions.sqrt(),
        )  # fmt: skip
        values.append(flow.values(2 * levels.fractions, torch.linspace(0, 9, 10).double()).sum(-1))
    isotropic = tl.LinearModel(300, covariance=[(1.5, 1.0)], noise=0.3, errors=[2.0])
    solved = isotropic.dynamics(step_size=1.0).solve(isotropic.initial, torch.linspace(0, 9, 10))
    assert torch.allclose(solved.values[:, 0], values[0], rtol=1e-12, atol=0)
    assert float((values[0] - values[1]).abs().max()) < 1e-12
    # the user's equal blocks are one level
    merged = tl.LinearModel(300, covariance=[(1.5, 1 / 3)] * 3, noise=0.3)
    assert merged.names == ["D[0]"]


@pytest.mark.parametrize(("pairs", "B", "beta"), [(TWO, 1, 0.0), (FIVE, 3, 0.6)])
def test_bands_are_integrals_of_the_covariance_equation(pairs, B, beta):
    problem = make(pairs)
    dynamics = problem.dynamics(step_size=0.5, batch_size=B, momentum=beta)
    k, n, u0 = len(pairs), problem.dim, problem.initial
    times = torch.tensor([0.0, 0.01, 0.3, 0.3, 2.0, 7.0, 60.0], dtype=torch.float64)
    M = affine(pairs, 0.5, 0.5, B, beta)
    A = M[:k, :k]

    def rate(t, y):
        u, P = torch.from_numpy(y[:k]), torch.from_numpy(y[k:]).reshape(k, k)
        whole = A @ P + P @ A.T + dynamics.diffusion(u) / n
        return torch.cat([A @ u + M[:k, k], whole.flatten()]).numpy()

    root = 0.01 * torch.randn(k, k, dtype=torch.float64)
    initial = root @ root.T
    begin = torch.cat([u0, initial.flatten()]).numpy()
    found = integrate.solve_ivp(
        rate, (0, 60), begin, method="LSODA", t_eval=times.unique().numpy(), rtol=1e-9, atol=1e-12
    )
    P = torch.from_numpy(found.y[k:].T.copy()).reshape(-1, k, k)[[0, 1, 2, 2, 3, 4, 5]]
    covariance = dynamics.covariance(u0, times, initial_covariance=initial)
    assert float((covariance - P).abs().max() / P.abs().max()) < 2e-3
    std = dynamics.solve(u0, times, band=True, initial_covariance=initial).std
    assert torch.allclose(std, P.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-3)
    assert torch.allclose(std, covariance.diagonal(dim1=1, dim2=2).sqrt(), rtol=1e-6)
    # and those of the general band, which is right to a percent where its steps are short
    two, short = torch.stack([u0, 2 * u0]), torch.linspace(0, 2, 5, dtype=torch.float64)
    general = EffectiveDynamics._fluctuating(dynamics, two, short, 1e-8, 1e-10, None)[1]
    exact = dynamics.solve(two, short, band=True).std
    assert torch.allclose(exact, general.diagonal(dim1=-2, dim2=-1).sqrt(), rtol=0.01)
    assert not bool(exact[:, 0].any())


def test_a_power_law_at_full_resolution_is_solved_exactly():
    N = 150
    eigenvalues = 1 / torch.arange(1, N + 1, dtype=torch.float64)
    problem = make(eigenvalues, dim=N, noise=0.1)
    c = 0.5 * problem.critical_step_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lr lambda_max = .09 at so small an N
        dynamics = problem.dynamics(step_size=c)
    times = torch.tensor([0.0, 1.0, 100.0, 1e4], dtype=torch.float64)
    pairs = [(lam, 1 / N) for lam in eigenvalues.tolist()]
    expected = by_exponentials(affine(pairs, 0.1, c), problem.initial, times)
    path = dynamics.solve(problem.initial, times, band=True)
    assert float((path.values - expected).abs().max()) < 1e-10
    assert path.std is not None
    assert bool(path.std.isfinite().all())
    # each coefficient's noise is exponential-like at the end: sd of a square, 2^(1/2) its mean
    ratio = path.std[-1] / path.values[-1]
    assert float(ratio[:50].min()) > 1.2
    assert float(ratio[:50].max()) < 1.7


def test_a_schedule_is_followed_by_the_general_solver():
    problem = make(TWO)
    times = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    exact = problem.dynamics(step_size=0.5).solve(problem.initial, times)
    same = problem.dynamics(step_size=9.0, schedule=lambda t: 0.5).solve(problem.initial, times)
    assert torch.allclose(same.values, exact.values, rtol=1e-7)
    halves = problem.dynamics(step_size=0.5, schedule=lambda t: 0.5 if t < 1 else 0.1)
    with pytest.warns(UserWarning, match="the band may be off"):  # the schedule jumps
        path = halves.solve(problem.initial, times, band=True)
    tail = problem.dynamics(step_size=0.1).solve(exact.values[1], [0.0, 2.0])
    assert torch.allclose(path.values[2], tail.final, rtol=1e-5)
    assert path.std is not None
    with pytest.raises(ValueError, match=r"expected lr times the largest eigenvalue 4, .* 0\.6"):
        problem.dynamics(step_size=0.5, schedule=lambda t: 60.0).solve(problem.initial, times)


def test_gradients_by_the_step_size_and_the_start():
    problem = make(TWO)
    c = torch.tensor(0.5, requires_grad=True)
    u0 = problem.initial.requires_grad_()
    final = problem.dynamics(step_size=c).solve(u0, [0.0, 1.5], rtol=1e-10, atol=1e-12).final
    by_c, by_u = torch.autograd.grad(problem.risk(final), [c, u0])

    def risk(c, u0):
        return float(problem.risk(problem.dynamics(step_size=c).solve(u0, [0.0, 1.5]).final))

    start, h = problem.initial, 1e-5
    assert float(by_c) == pytest.approx((risk(0.5 + h, start) - risk(0.5 - h, start)) / 2 / h, 1e-5)
    for i in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[i]
        slope = (risk(0.5, start + step) - risk(0.5, start - step)) / 2 / h
        assert float(by_u[i]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(("steps", "B", "beta"), [(300, 1, 0.0), (3000, 2, 0.5)])
def test_the_best_constant_step_size_is_the_best_of_a_grid(steps, B, beta):
    problem = make(TWO)
    best = problem.optimal_step_size(steps, batch_size=B, momentum=beta)
    grid = torch.logspace(-2, 0, 401).double().tolist()

    def risk(c):
        t = torch.tensor([steps * c / problem.dim], dtype=torch.float64)
        return float(
            problem.risk(by_exponentials(affine(TWO, 0.5, c, B, beta), problem.initial, t))
        )

    risks = {c: risk(c) for c in grid}
    found = min(risks, key=lambda c: risks[c])
    assert best == pytest.approx(found, rel=0.01)
    assert risk(best) <= risks[found] * (1 + 1e-9)


def test_the_best_step_size_of_pure_noise_is_small():
    problem = make(TWO, errors=[0.0, 0.0])
    assert problem.optimal_step_size(100) < 1e-6

"""The fluctuation band against closed forms, an ODE solver, and the exact chain at dimension n."""

from functools import partial

import pytest
import torch
import torchdiffeq
from real_sgd import copies, train

import torchlimits as tl
from torchlimits.dynamics import band, coefficients

RUNS = 4000


def ratios(problem, u0, time, points=4, *, settings=None, P0=None, runs=RUNS, seed=0):
    """Observed over predicted standard deviations, (times after 0, k)."""
    settings = settings or {"step_size": 1.0}
    steps = round(time * problem.dim / settings["step_size"])
    starts = u0
    if P0 is not None:  # normal fluctuations, as those of W's overlaps and Gram matrix nearly are
        normal = torch.randn(runs, len(u0), generator=torch.Generator().manual_seed(9)).double()
        starts = u0 + normal @ P0.sqrt()
        runs = 1
    chain = problem.reduced_chain(**settings)
    generator = torch.Generator().manual_seed(seed)
    path = chain.run(starts, steps, runs=runs, every=steps // points, generator=generator)
    predicted = problem.dynamics(**settings).solve(u0, path.times, band=True, initial_covariance=P0)
    return path.values.std(0)[1:] / predicted.std[1:]


def mixture_start(problem, v):
    u0, _ = problem.random_start(torch.tensor(v))
    K, d = problem.width, len(problem.directions)
    # off the saddle m = 0
    u0[K : K + K * d] = 0.5 * torch.randn(K * d, generator=torch.Generator().manual_seed(1))
    return u0


CASES = {
    "binary": (
        tl.GaussianMixture.binary(dim=2000, snr=2.0, ridge=0.05),
        lambda p: mixture_start(p, [1.0, -0.7]),
        3.0,
        {"step_size": 1.5},
    ),
    "binary, momentum and batches": (
        tl.GaussianMixture.binary(dim=2000, snr=2.0, ridge=0.05),
        lambda p: mixture_start(p, [1.0, -0.7]),
        2.0,
        {"step_size": 1.0, "momentum": 0.5, "batch_size": 2},
    ),
    "matrix": (
        tl.SpikedTensor(dim=2000, order=2, snr=2.0),
        lambda p: torch.tensor([0.4, 1.0]).double(),
        1.0,
        {"step_size": 1.0},
    ),
    "tensor": (
        tl.SpikedTensor(dim=4000, order=3, snr=4.0),
        lambda p: torch.tensor([1.0, 1.0]).double(),
        0.3,
        {"step_size": 0.5},
    ),
    "xor": (
        tl.GaussianMixture.xor(dim=2000, snr=4.0, ridge=0.05),
        lambda p: mixture_start(p, [1.0, 0.7, -0.8, -1.2]),
        2.0,
        {"step_size": 1.0},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_standard_deviations_of_runs(case):
    """Every statistic within 5 %; sampling alone gives 1.1 %."""
    problem, start, time, settings = CASES[case]
    ratio = ratios(problem, start(problem), time, settings=settings)
    assert float(ratio.min()) > 0.95
    assert float(ratio.max()) < 1.05


@pytest.mark.slow
def test_the_first_order_of_the_increment_is_not_enough(monkeypatch):
    """Negative control: delta J V J^T alone, which is the diffusion at vanishing steps."""
    problem, start, time, settings = CASES["binary"]
    field = type(problem.dynamics(step_size=1.0).field)
    full = field.increment_covariance
    monkeypatch.setattr(field, "increment_covariance", lambda self, u, c: full(self, u, 0.0))
    ratio = ratios(problem, start(problem), time, settings=settings)
    names = problem.names
    worst = [float(ratio[-1, names.index(n)]) for n in ("R[0,0]", "R[0,1]", "R[1,1]")]
    assert min(worst) < 0.95 or max(worst) > 1.05


def test_random_starts():
    problem, _, _, settings = CASES["matrix"]
    u0, P0 = torch.tensor([0.4, 1.0]).double(), problem.random_start()[1]
    ratio = ratios(problem, u0, 0.1, settings=settings, P0=P0)
    assert float((ratio - 1).abs().max()) < 0.05
    # negative control: most of it is the start's
    fixed = problem.dynamics(**settings).solve(u0, [0.0, 0.025], band=True)
    random = problem.dynamics(**settings).solve(u0, [0.0, 0.025], band=True, initial_covariance=P0)
    assert float((fixed.std[1] / random.std[1]).max()) < 0.8


@pytest.mark.parametrize("kind", ["mixture", "tensor"])
def test_moments_of_random_starts(kind):
    problem = (
        tl.GaussianMixture.xor(dim=50, width=3, snr=1.0)
        if kind == "mixture"
        else tl.SpikedTensor(dim=50, order=2, snr=1.0)
    )
    generator = torch.Generator().manual_seed(0)
    model = problem.model(replicas=(40_000,), generator=generator, dtype=torch.float64)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    if kind == "mixture":
        parameters["second.weight"][:] = 1.0
    u = problem.statistics(parameters)
    mean, P = problem.random_start(torch.ones(3)) if kind == "mixture" else problem.random_start()
    error = u.std(0) / len(u) ** 0.5
    assert bool(((u.mean(0) - mean).abs() <= 4.5 * error + 1e-12).all())
    covariance = torch.cov(u.mT)
    scale = P.diagonal().sqrt().clamp_min(1e-12)
    assert float(((covariance - P) / (scale[:, None] * scale)).abs().max()) < 0.03


def lyapunov(dynamics, u0, times):
    """P by torchdiffeq's solver, with derivatives and diffusion at every step of it."""
    k = len(u0)

    def slope(t, state):
        u, P = state[:k], state[k:].reshape(k, k)
        A, D = dynamics.jacobian(u[None])[0], dynamics.diffusion(u)
        return torch.cat([dynamics(t, u), (A @ P + P @ A.mT + D / dynamics.dim).flatten()])

    state = torch.cat([u0, torch.zeros(k * k).double()])
    rows = torchdiffeq.odeint(slope, state, torch.tensor(times).double(), rtol=1e-6, atol=1e-9)
    return rows[:, k:].reshape(-1, k, k)


@pytest.mark.parametrize("case", ["binary", "matrix", "tensor"])
def test_against_an_ode_solver(case):
    problem, start, time, settings = CASES[case]
    dynamics, u0 = problem.dynamics(**settings), start(problem)
    times = [0.0, time / 3, time]
    expected = lyapunov(dynamics, u0, times)
    found = dynamics.covariance(u0, times)
    scale = expected.diagonal(dim1=-2, dim2=-1)[1:].sqrt()
    gap = (found - expected)[1:].abs() / (scale[:, :, None] * scale[:, None, :])
    assert float(gap.max()) < 5e-3


def test_covariances_are_symmetric_and_positive():
    problem, start, time, settings = CASES["binary"]
    dynamics = problem.dynamics(**settings)
    starts = torch.stack([start(problem), 1.2 * start(problem)])
    P = dynamics.covariance(starts, torch.linspace(0, time, 50))
    assert P.shape == (2, 50, 7, 7)
    assert torch.equal(P, P.mT)
    values = torch.linalg.eigvalsh(P)
    assert bool((values[..., 0] >= -1e-12 * values[..., -1]).all())
    # one at a time, and by solve
    torch.testing.assert_close(dynamics.covariance(starts[1], torch.linspace(0, time, 50)), P[1],
                               rtol=5e-3, atol=1e-9)  # fmt: skip
    path = dynamics.solve(starts, torch.linspace(0, time, 50), band=True)
    torch.testing.assert_close(path.std, P.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt())
    plain = dynamics.solve(starts, torch.linspace(0, time, 50))
    torch.testing.assert_close(path.values, plain.values, rtol=1e-5, atol=1e-6)


def test_std_falls_with_the_root_of_n():
    make = partial(tl.SpikedTensor, order=2, snr=2.0)
    u0 = torch.tensor([0.4, 1.0])
    small, large = (
        make(dim=n).dynamics(step_size=1.0).solve(u0, [0.0, 1.0], band=True).std[-1]
        for n in (100, 10_000)
    )
    torch.testing.assert_close(small, 10 * large)


@pytest.mark.slow
def test_with_a_schedule():
    """Real SGD whose steps shrink; a band at the first step size is too wide."""
    problem = tl.SpikedTensor(dim=1000, order=2, snr=2.0)
    steps, start = 500, problem.model(at=(0.4, 1.0))
    model = copies(problem, start, 2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / 1000)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 100))
    dynamics = problem.dynamics(optimizer, schedule=scheduler)
    constant = problem.dynamics(optimizer)
    measured = train(problem, model, optimizer, steps, scheduler=scheduler, every=steps, seed=4)
    u, time = measured.final, float(measured.times[-1])
    u0 = torch.tensor([0.4, 1.0])
    path = dynamics.solve(u0, [0.0, time], band=True)
    assert path.steps[-1] == steps
    assert float((u.std(0) / path.std[-1] - 1).abs().max()) < 0.07
    naive = constant.solve(u0, [0.0, time], band=True)
    assert float((u.std(0) / naive.std[-1]).max()) < 0.8


def test_compare_counts_what_is_inside_the_band():
    problem, start, _, settings = CASES["matrix"]
    u0 = start(problem)
    measured = problem.reduced_chain(**settings).run(
        u0, 2000, runs=200, every=20, generator=torch.Generator().manual_seed(0)
    )
    dynamics = problem.dynamics(**settings)
    wide = dynamics.solve(u0, measured.times, band=True)
    comparison = tl.compare(measured, wide)
    assert float((comparison.inside - 0.95).abs().max()) < 0.02
    assert "in 95 %" in str(comparison)
    half = tl.compare(
        measured, tl.Trajectory(wide.times, wide.steps, wide.values, wide.names, wide.std / 2)
    )
    assert float(half.inside.max()) < 0.75
    assert tl.compare(measured, dynamics.solve(u0, measured.times)).inside is None


def test_bad_input():
    dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
    u0 = torch.tensor([0.4, 1.0])
    with pytest.raises(ValueError, match="corrector=True with a band"):
        dynamics.solve(u0, [0.0, 1.0], band=True, corrector=False)
    with pytest.raises(ValueError, match="together with band=True"):
        dynamics.solve(u0, [0.0, 1.0], initial_covariance=torch.eye(2))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2, 2\)"):
        dynamics.solve(u0, [0.0, 1.0], band=True, initial_covariance=torch.eye(3))
    for wrong in (-torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.eye(2) / 0):
        with pytest.raises(ValueError, match="positive semidefinite"):
            dynamics.solve(u0, [0.0, 1.0], band=True, initial_covariance=wrong)

    class Unknown(tl.VectorField):
        def terms(self, u):
            return -u, 0 * u

    unknown = tl.EffectiveDynamics(Unknown(["a"], 10), step_size=1.0)
    with pytest.raises(NotImplementedError, match="diffusion matrix of Unknown"):
        unknown.solve(torch.ones(1), [0.0, 1.0], band=True)
    assert dynamics.solve(u0, [0.0], band=True).std.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("case", ["matrix", "tensor"])
def test_derivatives_are_evaluated_where_they_are_needed(case, monkeypatch):
    problem, start, time, settings = CASES[case]
    dynamics, u0 = problem.dynamics(**settings), start(problem)
    times = torch.linspace(0, time, 20, dtype=torch.float64)
    evaluated: list[int] = []
    whole = coefficients.Curve._evaluated
    monkeypatch.setattr(
        coefficients.Curve, "_evaluated",
        lambda self, rows: (evaluated.append(len(rows)), whole(self, rows))[1],
    )  # fmt: skip
    found = dynamics.solve(u0, times, band=True).std[1:]
    assert evaluated[0] == 6
    assert sum(evaluated) < 41
    monkeypatch.setattr(band, "_ENOUGH", 0.0)
    evaluated.clear()
    finest = dynamics.solve(u0, times, band=True).std[1:]
    assert sum(evaluated) == 41
    error = float((found / finest - 1).abs().max())
    assert error < 5e-3
    # negative control: at 6 times, which the refinement left
    monkeypatch.setattr(band, "_ENOUGH", float("inf"))
    coarse = dynamics.solve(u0, times, band=True).std[1:]
    assert float((coarse / finest - 1).abs().max()) > 2 * error


class Leaving(tl.VectorField):
    """du/dt = 5 u from a saddle at 0."""

    def terms(self, u):
        return 5 * u, torch.zeros_like(u)

    def increment_covariance(self, u, step_size):
        return torch.ones_like(u)[..., None]


def test_a_band_that_means_nothing_is_none():
    dynamics = tl.EffectiveDynamics(Leaving(["a"], 100), step_size=1.0)
    starts = torch.tensor([[0.0], [100.0]])
    with pytest.warns(UserWarning, match=r"no band from t = 1\.\d+ on \(NaN\)"):
        std = dynamics.solve(starts, [0.0, 0.5, 1.0, 3.0], band=True).std
    exact = ((torch.tensor([0.0, 5.0, 10.0, 30.0]).double().exp() - 1) / 1000).sqrt()
    torch.testing.assert_close(std[0, :3, 0], exact[:3], rtol=1e-6, atol=0)
    assert bool(std[0, 3].isnan())
    # beside what the statistic is by then, these fluctuations are small
    torch.testing.assert_close(std[1, :, 0], exact, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_the_coarse_rule_of_wide_networks_is_good_enough():
    """XOR, K = 5: standard deviations after t = 1 with A and D as they are at the start."""
    problem = tl.GaussianMixture.xor(dim=1000, width=5, snr=4.0, ridge=0.05)
    dynamics, u0 = (
        problem.dynamics(step_size=1.0),
        mixture_start(problem, [1, 0.7, -0.8, -1.2, 0.3]),
    )

    def std(flow):
        A, D = flow.jacobian(u0[None]), flow.diffusion(u0[None])
        h, still = torch.ones(1).double(), torch.zeros(len(u0), len(u0)).double()
        return band.carried(A, D, h, still)[1].diagonal().sqrt()

    coarse, fine = (dynamics.field.for_band(), dynamics.field.for_band())
    assert coarse.level == -3
    fine.level = -1
    ratio = std(dynamics.on(coarse)) / std(dynamics.on(fine))
    assert 1e-5 < float((ratio - 1).abs().max()) < 1.5e-2


def test_another_default_device_changes_nothing():
    problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
    dynamics, u0 = problem.dynamics(step_size=1.0), mixture_start(problem, [1.0, -1.0])
    times = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)

    def numbers():
        found = dynamics.solve(u0, times, rtol=1e-4, atol=1e-5, band=True)
        noise = dynamics.langevin()
        return [found.values, found.std, noise.centre, noise.scale]

    expected = numbers()
    with torch.device("meta"):
        found = numbers()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

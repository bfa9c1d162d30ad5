"""The law of runs against SGD in the full space, and what is made of it."""

import math

import numpy as np
import pytest
import torch
from real_sgd import copies, train
from scipy import stats
from two_samples import alike

import torchlimits as tl
from torchlimits.dynamics import law as law_module
from torchlimits.dynamics.law import law_of, quantiles
from torchlimits.trajectory import Trajectory

RUNS = 1500


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def shares_inside(problem, start, step_size, steps, every, runs=RUNS):
    """The share of SGD's runs inside the 95 % bounds of law and linear band, (T, k) each."""
    model = copies(problem, start, runs)
    optimizer = torch.optim.SGD(model.parameters(), lr=step_size / problem.dim)
    measured = train(problem, model, optimizer, steps, every=every)
    u0, dynamics = measured.initial[0], problem.dynamics(optimizer)
    law = dynamics.reduced_chain().law(u0, measured.times, runs=10_000, generator=seeded(3))
    found = []
    for path in (law, dynamics.solve(u0, measured.times, band=True)):
        low, high = path.bounds
        inside = (measured.values >= low) & (measured.values <= high)
        found.append(inside[:, 1:].double().mean(0))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_bounds_hold_where_a_random_start_is_near_a_saddle(seed):
    """And a linear band does not, the negative control."""
    problem = tl.SpikedTensor(60, order=2, snr=1.2, dtype=torch.float64)
    start = problem.model(generator=seeded(seed))
    law, linear = shares_inside(problem, start, 1.0, steps=240, every=40)
    error = (0.95 * 0.05 * (1 / RUNS + 1 / 10_000)) ** 0.5
    allowed = stats.norm.isf(0.0005 / law.numel()) * error
    assert float((law - 0.95).abs().max()) < allowed
    assert float((linear - 0.95).abs().max()) > 2 * allowed


def scheduled(optimizer, dim):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 6 * step / dim))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.6}, {"momentum": 0.5, "nesterov": True}])
def test_same_law_as_sgd_with_a_scheduler(options):
    """And a constant learning rate gives another: the negative control."""
    problem = tl.GaussianMixture.binary(24, 2, snr=1.0, ridge=0.1, dtype=torch.float64)
    start = problem.model(generator=seeded(3))
    model = copies(problem, start, RUNS)
    lr = 1.0 / problem.dim / (1 + options.get("momentum", 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=problem.ridge, **options)
    plan = scheduled(optimizer, problem.dim)
    # before training: a schedule begins where its scheduler is
    dynamics = problem.dynamics(optimizer, schedule=plan)
    chain = problem.reduced_chain(optimizer, schedule=plan)
    constant = problem.reduced_chain(optimizer)
    measured = train(problem, model, optimizer, 30, scheduler=plan, every=10)
    u0 = measured.initial[0]
    drawn = chain.run(u0, 30, runs=RUNS, every=10, generator=seeded(2))
    torch.testing.assert_close(drawn.times, measured.times, rtol=1e-6, atol=1e-9)
    by_time = (path.values.movedim(1, 0)[1:] for path in (measured, drawn))
    assert alike(*by_time)
    law = dynamics.solve(measured.initial[0], measured.times, band="law")
    assert law.steps.tolist() == [0, 10, 20, 30]
    assert alike(measured.values.movedim(1, 0)[1:], law.samples.movedim(1, 0)[1:])
    other = constant.run(u0, 30, runs=RUNS, every=10, generator=seeded(2))
    assert not alike(measured.values.movedim(1, 0)[1:], other.values.movedim(1, 0)[1:])


def test_same_law_as_sgd_with_a_function_of_limit_time():
    """Each step has the learning rate of the time at which it begins; layers keep their ratios."""
    problem = tl.GaussianMixture.xor(20, 2, snr=4.0, ridge=0.2, dtype=torch.float64)
    start = problem.model(generator=seeded(3))
    model = copies(problem, start, RUNS)
    groups = [
        {"params": [model.first.weight], "lr": 1.0 / 20, "weight_decay": 0.2},
        {"params": [model.second.weight], "lr": 0.5 / 20, "weight_decay": 0.2},
    ]
    optimizer = torch.optim.SGD(groups)

    def c(t):
        return 1.0 / (1 + 2 * t)

    chain = problem.reduced_chain(optimizer, schedule=c)
    rates = chain.schedule.rates(20, problem.dim)
    times = np.concatenate([[0.0], np.cumsum(rates)])
    np.testing.assert_allclose(rates, [c(t) / 20 for t in times[:-1]])
    plan = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, 19)] * 20)
    measured = train(problem, model, optimizer, 20, scheduler=plan, every=10)
    law = chain.law(measured.initial[0], measured.times, runs=RUNS, generator=seeded(2))
    assert alike(measured.values.movedim(1, 0)[1:], law.samples.movedim(1, 0)[1:])


def test_one_more_run_is_between_the_bounds_with_their_probability():
    """Exactly, for any law: positions i/(M + 1), and not the plain quantiles of few paths."""
    samples = torch.rand(4000, 39, generator=seeded(0), dtype=torch.float64).mT
    low, high = quantiles(samples, (0.05, 0.95))
    covered = (high - low).mean()  # the law is uniform: the probability of the bounds
    error = (high - low).std() / 4000**0.5
    assert float((covered - 0.9).abs()) < 4 * float(error)
    plain = samples.quantile(0.95, dim=0) - samples.quantile(0.05, dim=0)
    assert float((plain.mean() - 0.9).abs()) > 20 * float(error)


@pytest.mark.parametrize("pieces", [1, 3])
def test_quantiles_are_numpys(monkeypatch, pieces):
    samples = torch.randn(59, 4, 3, generator=seeded(0), dtype=torch.float64)
    kept = samples.clone()
    monkeypatch.setattr(law_module, "_AT_ONCE", samples.numel() // pieces)
    orders = (1 / 60, 0.025, 0.31, 0.5, 59 / 60)
    found = torch.stack(quantiles(samples, orders))
    expected = np.quantile(samples.numpy(), orders, axis=0, method="weibull")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert torch.equal(samples, kept)
    one_column = samples[:, :1, :1].clone()
    quantiles(one_column, orders)  # its rows are in order already: nothing is sorted in place
    assert torch.equal(one_column, kept[:, :1, :1])


def test_starts_have_laws_of_their_own_and_times_may_repeat():
    problem = tl.SpikedTensor(50, order=2, snr=2.0)
    chain = problem.reduced_chain(step_size=1.0)
    starts = torch.tensor([[0.0, 1.0], [0.8, 0.5], [-0.8, 0.5]])
    law = chain.law(starts, [0.0, 1.0, 1.0, 1.011, 2.0], runs=3000, generator=seeded(0))
    assert law.values.shape == (3, 5, 2)
    assert law.samples.shape == (3000, 3, 5, 2)
    assert law.steps.tolist() == [0, 50, 50, 51, 100]
    assert torch.equal(law.samples[:, :, 1], law.samples[:, :, 2])
    assert torch.equal(law.initial, starts.double())
    alone = chain.law(starts[1], [0.0, 1.0, 2.0], runs=3000, generator=seeded(1))
    assert alike(law.samples[:, 1, [1, 4]].movedim(1, 0), alone.samples[:, 1:].movedim(1, 0))
    # a later start: what counts is the time since
    later = chain.law(starts[1], [5.0, 6.0, 7.0], runs=3000, generator=seeded(1))
    assert torch.equal(later.samples, alone.samples)


def test_solve_brings_the_law_along():
    problem = tl.GaussianMixture.binary(100, 2, snr=2.0, ridge=0.1)
    measured = problem.reduced_chain(step_size=1.0).run(
        problem.starts(1, generator=seeded(0))[0], 200, every=20, generator=seeded(1)
    )
    dynamics = problem.dynamics(step_size=1.0)
    path = dynamics.solve(measured, band="law")
    law = dynamics.reduced_chain().law(measured, generator=seeded(0))
    assert path.metadata["law"] == {"exact": True, "level": 0.95, "runs": 2000}
    for name in ("std", "lower", "upper", "samples"):
        assert torch.equal(getattr(path, name), getattr(law, name))
    assert torch.equal(path.bounds[0], path.lower)
    # the curve is the ballistic limit's, the law's own is the mean over its paths
    assert torch.equal(path.values, dynamics.solve(measured).values)
    assert torch.equal(law.values, law.samples.mean(0))


NETWORKS = {
    "head": tl.NetworkProblem(
        dim=40, width=2, head=torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(2, 2)),
        loss=torch.nn.functional.cross_entropy, means=torch.eye(2, 40), snr=4.0,
        labels=torch.tensor([0, 1]), ridge=0.1,
    ),
    "teacher": tl.TeacherStudent(dim=40, width=2, teacher_width=1, activation="erf", noise=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_laws_too(name):
    """Of the optimizer's settings for each parameter, like SGD itself."""
    problem = NETWORKS[name]
    start = problem.model(generator=seeded(0))
    model = copies(problem, start, RUNS)
    head, first = ([p for n, p in model.named_parameters() if n.startswith("first") is where]
                   for where in (False, True))  # fmt: skip
    groups = [{"params": first}] + [{"params": head, "lr": 0.5 / 40, "momentum": 0.4}] * bool(head)
    optimizer = torch.optim.SGD(groups, lr=1.0 / 40, weight_decay=problem.ridge)
    dynamics = problem.dynamics(optimizer, batch_size=2, model=model)
    measured = train(problem, model, optimizer, 20, every=10, batch=2)
    path = dynamics.solve(measured.initial[0], measured.times, band="law")
    assert path.metadata["law"]["exact"] is True
    assert alike(measured.values.movedim(1, 0)[1:], path.samples.movedim(1, 0)[1:])


class Noisy(tl.VectorField):
    """dx = -x dt with constant noise: an Ornstein-Uhlenbeck process, of no known chain."""

    def __init__(self):
        super().__init__(["x"], dim=100)

    def terms(self, u):
        return -u, torch.zeros_like(u)

    def increment_covariance(self, u, step_size):
        return torch.full((*u.shape, 1), 2.0, dtype=u.dtype)


def test_where_no_chain_is_known_the_law_is_that_of_the_sde():
    dynamics = tl.EffectiveDynamics(Noisy(), step_size=1.0)
    with pytest.raises(NotImplementedError, match="langevin"):
        dynamics.reduced_chain()
    path = dynamics.solve(torch.tensor([1.0]), [0.0, 1.0], band="law")
    assert path.metadata["law"]["exact"] is False
    # 2000 paths: of the standard deviation 1.6 %, and four of them
    spread = (0.01 * (1 - math.exp(-2))) ** 0.5
    assert float(path.std[-1]) == pytest.approx(spread, rel=0.064)
    assert float(path.samples[:, -1].mean()) == pytest.approx(math.exp(-1), abs=4 * spread / 44)


def test_bounds_of_a_bent_law_are_not_deviations():
    times, steps = torch.tensor([0.0]), torch.tensor([0])
    values = torch.rand(5000, 1, 1, generator=seeded(0)).log().neg()
    law = law_of(Trajectory(times, steps, values, ["m"]), 0.9)
    assert float(law.lower) == pytest.approx(-math.log(0.95), abs=0.01)
    assert float(law.upper) == pytest.approx(-math.log(0.05), abs=0.2)
    assert law.metadata["law"]["level"] == 0.9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 1.0}, ValueError, "level between 0 and 1"),
        ({"level": 0.0}, ValueError, "level"),
        ({"runs": 10}, ValueError, "at least 39 runs"),
        ({"runs": 0}, ValueError, "runs"),
        ({"runs": 10**9}, MemoryError, r"thin\(200\)"),
        ({"times": [0.0, 2.0, 1.0]}, ValueError, "times"),
        ({"u0": torch.tensor([0.0, -1.0])}, ValueError, "r2 >= 0"),
        ({"u0": torch.tensor([0.0, torch.nan])}, ValueError, "finite"),
        ({"u0": torch.tensor([0.0])}, ValueError, "shape"),
    ],
)
def test_bad_input(options, error, message):
    chain = tl.SpikedTensor(50, order=2, snr=2.0).reduced_chain(step_size=1.0)
    given = {"u0": torch.tensor([0.0, 1.0]), "times": [0.0, 1.0], **options}
    with pytest.raises(error, match=message):
        chain.law(**given)


def test_bad_input_of_solve():
    dynamics = tl.SpikedTensor(50, order=2, snr=2.0).dynamics(step_size=1.0)
    u0, times = torch.tensor([0.0, 1.0]), [0.0, 1.0]
    with pytest.raises(ValueError, match="'law'"):
        dynamics.solve(u0, times, band="chain")
    with pytest.raises(ValueError, match="corrector=True"):
        dynamics.solve(u0, times, band="law", corrector=False)
    with pytest.raises(ValueError, match="band=True"):
        dynamics.solve(u0, times, band="law", initial_covariance=torch.eye(2))
    normalized = tl.SpikedTensor(50, order=2, snr=2.0)
    optimizer = tl.NormalizedSGD(normalized.model().parameters(), lr=0.01)
    with pytest.raises(ValueError, match="reduced chain"):
        normalized.dynamics(optimizer).solve(u0, times, band="law")
    plan = normalized.reduced_chain(step_size=1.0, schedule=lambda t: 1 / (1 + t))
    with pytest.raises(ValueError, match="start at 0"):
        plan.law(u0, [1.0, 2.0])

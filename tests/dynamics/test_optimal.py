"""The schedule that makes the most of a number of steps, against a closed form and SGD."""

import math

import pytest
import torch
from scipy.optimize import brentq

import torchlimits as tl

NOISE, BUDGET = 1.0, 3.0


def least_squares(dim=400):
    """y = <w*, x> + s xi: D = |w - w*|^2 obeys dD/dalpha = -2 c D + c^2 (D + s^2)."""
    return tl.TeacherStudent(
        dim=dim, width=1, teacher_width=1, activation="linear", noise=NOISE,
        train_second_layer=False, dtype=torch.float64,
    )  # fmt: skip


def distance(u):
    return (1 - u[..., 0]) ** 2 + u[..., 1]


def best_distance(alpha):
    """Of dD/dalpha = -D^2/(D + s^2), its smallest for any c, from D = 1."""

    def passed(D):
        return math.log(1 / D) + NOISE**2 * (1 / D - 1)

    return brentq(lambda D: passed(D) - alpha, 1e-9, 1.0) if alpha else 1.0


@pytest.fixture(scope="module")
def best():
    problem = least_squares()
    u0 = torch.tensor([0.0, 0.0], dtype=torch.float64)
    steps = round(BUDGET * problem.dim)
    return tl.optimal_schedule(problem.dynamics(step_size=0.5), u0, steps, distance, knots=4)


def test_the_equation_is_that_of_the_dynamics():
    """A point of the derivation: the dynamics have this dD/dt at any m, R."""
    u = torch.tensor([0.3, 0.4], dtype=torch.float64)
    D, c = float(distance(u)), 0.7
    rates = least_squares().dynamics(step_size=c)(0.0, u)
    slope = torch.func.grad(distance)(u) @ rates
    assert float(slope) == pytest.approx(-2 * D + c * (D + NOISE**2), rel=1e-9)


@pytest.mark.slow
def test_it_is_the_closed_form(best):
    D = [best_distance(alpha) for alpha in best.knots.tolist()]
    expected = torch.tensor([d / (d + NOISE**2) for d in D], dtype=torch.float64)
    assert torch.allclose(best.step_sizes, expected, rtol=0.01)
    assert best.objective == pytest.approx(D[-1], rel=1e-4)
    # the best constant is clearly worse
    assert best.constant_objective > 1.02 * D[-1]
    assert best.gain == pytest.approx(best.constant_objective - best.objective)


@pytest.mark.slow
def test_the_best_constant_is_the_closed_form(best):
    """D(c) = F + (1 - F) e^(-(2 c - c^2) alpha), F = c s^2 / (2 - c)."""

    def at_end(c):
        floor = c * NOISE**2 / (2 - c)
        return floor + (1 - floor) * math.exp(-(2 * c - c * c) * BUDGET)

    values = [(at_end(c / 1000), c / 1000) for c in range(1, 1500)]
    assert best.constant_objective == pytest.approx(min(values)[0], rel=1e-5)
    assert best.constant == pytest.approx(min(values)[1], rel=0.01)


def test_its_forms_agree(best):
    """In alpha, in steps and in limit time; the solution with it ends where it says."""
    problem = least_squares()
    dynamics = problem.dynamics(step_size=0.5, schedule=best.of_time)
    path = dynamics.solve(torch.zeros(2, dtype=torch.float64), [0.0, best.time])
    assert float(distance(path.final)) == pytest.approx(best.objective, rel=1e-5)
    assert path.steps.tolist() == [0, round(BUDGET * problem.dim)]
    steps = torch.linspace(0, 3, 30001, dtype=torch.float64)
    c = torch.tensor([best(a) for a in steps.tolist()], dtype=torch.float64)
    for alpha in (0.0, 0.7, 1.5, 3.0):
        until = round(alpha * 10_000) + 1
        time = float(torch.trapezoid(c[:until], steps[:until]))
        assert best.of_time(time) == pytest.approx(best(alpha), rel=1e-6)
        assert best.factor(round(alpha * problem.dim)) == pytest.approx(best(alpha) / 0.5)


@pytest.mark.slow
def test_sgd_with_it_ends_where_it_says_and_below_the_constant(best):
    """torch.optim.SGD with LambdaLR; the same data for both, so that the difference is precise."""
    problem, runs = least_squares(), 24
    ends = {}
    for name, factor in {"best": best.factor, "constant": lambda _: best.constant / 0.5}.items():
        generator = torch.Generator().manual_seed(0)
        model = problem.model(replicas=(runs,), generator=generator)
        with torch.no_grad():
            model.get_parameter("first.weight").zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5 / problem.dim)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        for _ in range(round(BUDGET * problem.dim)):
            x, y = problem.sample(1, replicas=(runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
            scheduler.step()
        ends[name] = distance(problem.statistics(dict(model.named_parameters())).detach())
    for name, told in (("best", best.objective), ("constant", best.constant_objective)):
        error = float(ends[name].std()) / runs**0.5
        assert abs(float(ends[name].mean()) - told) < 4 * error
    gain = ends["constant"] - ends["best"]
    assert abs(float(gain.mean()) - best.gain) < 4 * float(gain.std()) / runs**0.5


@pytest.mark.slow
def test_several_starts_and_the_risk_of_a_mixture():
    problem = tl.GaussianMixture.binary(dim=100, width=1, snr=2.0)
    dynamics = problem.dynamics(step_size=1.0)
    u0 = torch.tensor([[0.5, 0.2, 0.5], [0.5, 0.4, 0.5]], dtype=torch.float64)
    found = tl.optimal_schedule(dynamics, u0, 300, lambda u: dynamics.risk(u).mean(), knots=2)
    assert found.gain > 0
    assert found.step_sizes[0] > found.constant > found.step_sizes[1]


def test_what_cannot_be_optimised_is_refused():
    problem = least_squares()
    u0, dynamics = torch.zeros(2), problem.dynamics(step_size=0.5)
    for arguments, message in (
        ((problem.dynamics(step_size=0.0), u0, 100, distance), "expected dynamics with step_size"),
        ((problem.dynamics(step_size=1.0, schedule=lambda t: 1.0), u0, 100, distance), "constant"),
        ((dynamics, u0[None][:0], 100, distance), "expected a start u0, got none"),
        ((dynamics, u0, 0, distance), "expected steps to be an int >= 1"),
        ((dynamics, u0, 100, lambda u: u), r"one number, a tensor, got \(2,\)"),
        ((dynamics, u0, 100, lambda u: u.sum().detach()), "keeps the graph of u"),
        ((dynamics, u0, 100, lambda u: u.sum() + math.inf), "expected an objective that is finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tl.optimal_schedule(*arguments)
    with pytest.raises(ValueError, match="expected knots >= 2"):
        tl.optimal_schedule(dynamics, u0, 100, distance, knots=1)
    # a ReLU behind another layer, which has no known derivatives
    nn = torch.nn
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    kinked = tl.NetworkProblem(
        dim=100, width=2, head=head, loss=nn.functional.mse_loss, means=torch.eye(2, 100),
        labels=torch.tensor([1.0, -1.0]), snr=2.0,
    )  # fmt: skip
    with pytest.raises(NotImplementedError, match="which are not known"):
        tl.optimal_schedule(
            kinked.dynamics(step_size=1.0, nodes=64), kinked.starts(1)[0], 10, lambda u: u.sum()
        )

"""Real optimizers with second moments, in full space, against their limit."""

import dataclasses

import pytest
import torch
from adaptive_runs import binary, misses, runs_of, slaved, three_classes
from torch import nn

import torchlimits as tl

N = 256
Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad


def on_axes():
    return binary(N, means=torch.eye(2, N).double())


def relu():
    return binary(N, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))


def teacher_student():
    torch.manual_seed(0)
    return tl.TeacherStudent(dim=N, width=2, teacher_width=2, noise=0.3, dtype=torch.float64)


def layers(model):
    """Twice the learning rate and a shorter memory in the first layer."""
    groups = [
        {"params": [*model.head.parameters()]},
        {"params": [*model.first.parameters()], "lr": 1 / N, "betas": (0.5, 0.99)},
    ]
    return Adam(groups, lr=0.5 / N)


def warm_up(optimizer):
    """Learning rates that grow, and fall to a third."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, 0.1 + s / 150) * (1.0 if s < 300 else 0.3)
    )


slow = pytest.mark.slow
#: problem, optimizer, options of the runs, and the least rms z without the corrector
CASES = [
    pytest.param(
        lambda: binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), {}, 15, id="adam"
    ),
    pytest.param(
        lambda: three_classes(N, ridge=0.3),
        lambda m: AdamW(m.parameters(), lr=0.5 / N, weight_decay=0.3), {"batch": 4}, 10,
        id="adamw", marks=slow,
    ),
    pytest.param(
        lambda: binary(N), lambda m: RMSprop(m.parameters(), lr=0.15 / N, momentum=0.5), {}, 12,
        id="rmsprop",
    ),
    pytest.param(
        lambda: binary(N),
        lambda m: Adagrad(m.parameters(), lr=N**-0.5, initial_accumulator_value=N / 2), {}, 5,
        id="adagrad",
    ),
    pytest.param(
        on_axes, lambda m: Adam(m.parameters(), lr=0.5 / N), {}, 15, id="axes", marks=slow
    ),
    pytest.param(
        relu, lambda m: Adam(m.parameters(), lr=0.5 / N), {"steps": 250}, 7, id="relu", marks=slow
    ),
    pytest.param(
        teacher_student, lambda m: Adam(m.parameters(), lr=0.5 / N), {"steps": 200}, 12,
        id="teacher", marks=slow,
    ),
    pytest.param(lambda: binary(N), layers, {}, 20, id="layers", marks=slow),
    pytest.param(
        lambda: binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), {"schedule": warm_up}, 10,
        id="schedule", marks=slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make_problem", "make", "options", "least"), CASES)
def test_runs_follow_the_limit(make_problem, make, options, least):
    """rms z is 1 to 3 at N = 256, of which more than 1 is O(1/N); the corrector is needed."""
    measured, dynamics = runs_of(make_problem(), make, runs=40, **{"steps": 400, **options})
    start, count = measured.initial[0], len(dynamics.network.names)
    predicted = dynamics.solve(start, measured.times)
    assert misses(measured, predicted, count) < 3.2
    without = dynamics.solve(start, measured.times, corrector=False)
    assert misses(measured, without, count) > least


def test_second_moments_do_not_follow_at_once():
    """A prediction without their memory is more than twice as far off."""
    measured, dynamics = runs_of(
        binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), steps=300, runs=40
    )
    start, count = measured.initial[0], len(dynamics.network.names)
    right = misses(measured, dynamics.solve(start, measured.times), count)
    wrong = misses(measured, slaved(dynamics).solve(start, measured.times), count)
    assert right < 2.5
    assert wrong > 2 * right
    assert wrong > 5


@pytest.mark.slow
def test_the_second_half_of_a_run_is_predicted_from_its_middle():
    """With the recorded second moments, and not as if the optimizer were fresh."""
    measured, dynamics = runs_of(
        binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), steps=400, runs=40, rows=8
    )
    own = dynamics.network.names
    assert measured.names == dynamics.names
    # every run from where it is
    predicted = dynamics.solve(measured.values[:, 4], measured.times[4:] - measured.times[4])
    fresh = dynamics.solve(
        measured.values[:, 4, : len(own)], measured.times[4:] - measured.times[4]
    )

    def off(path):
        difference = (measured.values[:, 5:] - path.values[:, 1:])[..., : len(own)]
        return float((difference.mean(0) / (difference.std(0) / 40**0.5)).square().mean().sqrt())

    assert off(predicted) < 2.5
    assert off(fresh) > 4


def test_a_trajectory_from_the_middle_needs_the_optimizers_state():
    problem = binary(N)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    optimizer = Adam(model.parameters(), lr=0.5 / N)
    dynamics = problem.dynamics(optimizer)

    def train(statistics):
        with tl.track(model, optimizer, statistics) as tracker:
            for _ in range(5):
                x, y = problem.sample(1)
                optimizer.zero_grad()
                problem.loss(model(x), y).backward()
                optimizer.step()
        return tracker.trajectory()

    first = train(problem.statistics)
    assert len(dynamics.solve(first)) == len(first)  # a fresh optimizer
    middle = train(dynamics.statistics)
    assert middle["bias_correction2"][0] == pytest.approx(1 - 0.999**5)
    path = dynamics.solve(middle)
    assert path.initial.allclose(middle.initial)
    assert path["bias_correction2"][-1] == pytest.approx(1 - 0.999**10, abs=1e-6)
    lacking = middle.select(problem.statistics.names_of(dict(model.named_parameters())))
    lacking = dataclasses.replace(lacking, steps=lacking.steps + 5)
    with pytest.raises(ValueError, match="begins after step 0, got one from step 5 without"):
        dynamics.solve(lacking)


@pytest.mark.slow
def test_the_band_is_that_of_runs():
    """rms ratio of standard deviations 0.85 to 1.15: the runs are 80."""
    measured, dynamics = runs_of(
        binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), steps=300, runs=80, rows=3
    )
    predicted = dynamics.solve(measured.initial[0], measured.times, band=True)
    count = len(dynamics.network.names)
    band = predicted.std[1:, :count]
    ratios = (measured.values[:, 1:, :count].std(0) / band)[band > 0.1 * band.median()]
    assert abs(float(ratios.square().mean().sqrt()) - 1) < 0.15
    # second moments fluctuate as predicted, too
    others = measured.values[:, 1:, count:-1].std(0) / predicted.std[1:, count:-1]
    assert abs(float(others.median()) - 1) < 0.2


def test_derivatives_are_those_of_other_differences():
    problem = binary(N)
    dynamics = problem.dynamics(Adam(problem.model().parameters(), lr=0.5 / N))
    start = problem.starts(1, generator=torch.Generator().manual_seed(0))
    u = dynamics.field.settled(start)
    u[:, -1] = 0.3
    jacobian = dynamics.field.jacobian(lambda u: dynamics(0.0, u), u)[0]
    step = 1e-5 * (u[0].abs() + 1e-2)
    ends = [dynamics(0.0, u + sign * torch.diag(step)) for sign in (1, -1)]
    other = ((ends[0] - ends[1]) / (2 * step[:, None])).mT
    assert (jacobian - other).abs().max() < 1e-4 * other.abs().max()


def test_settled_second_moments_stay():
    problem = binary(N)
    dynamics = problem.dynamics(Adam(problem.model().parameters(), lr=0.5 / N))
    field = dynamics.field
    start = problem.starts(3, generator=torch.Generator().manual_seed(0))
    u = field.settled(start)
    rates, count = dynamics(0.0, u), len(start[0])
    assert rates[:, count:].abs().max() < 1e-10
    assert rates[:, :count].abs().max() > 0.1
    base, v, w = field.split(u)
    assert torch.equal(base, start)
    assert v.shape[-1] == len(dynamics.names) - count - 1
    assert torch.equal(w, torch.ones(3, 1))
    fresh = field.completed(start)
    assert torch.equal(fresh[:, :count], start)
    assert not fresh[:, count:].any()
    assert torch.equal(field.completed(fresh), fresh)


def test_squares_of_many_starts_are_those_of_each():
    """And there may be no start at all."""
    problem = tl.NetworkProblem(
        dim=60, width=3, head=nn.Sequential(nn.GELU(), nn.Linear(3, 2)), snr=4.0,
        loss=nn.functional.cross_entropy, means=torch.eye(2, 60), labels=torch.arange(2),
    )  # fmt: skip
    dynamics = problem.dynamics(torch.optim.Adam(problem.model().parameters(), lr=1 / 60), nodes=64)
    field, axes, u = dynamics.network, dynamics.limit.axes, problem.starts(700)
    together = field.squares(u, axes)
    for row in (0, 1, 699):
        alone = field.squares(u[row], axes)
        weight, by_theta, g, along, _ = field.samples(u[row])
        naive = weight @ by_theta**2, (weight[:, None] * g**2).mT @ (along[:, :2] @ axes) ** 2
        for all_of_them, one, plain in zip(together, alone, naive, strict=True):
            torch.testing.assert_close(all_of_them[row], one)
            torch.testing.assert_close(one, plain)
    assert [x.shape[0] for x in field.squares(u[:0], axes)] == [0, 0]
    assert dynamics.drift(dynamics.started(u)[:0]).shape == (0, len(dynamics.names))
    assert dynamics.risk(u[:0]).shape == dynamics.accuracy(u[:0]).shape == (0,)
    assert problem.dynamics(step_size=1.0).drift(u[:0]).shape == (0, len(problem.names))

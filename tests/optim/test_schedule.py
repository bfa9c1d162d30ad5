"""Schedules: c_delta(t) in the dynamics against SGD, and the user's scheduler left alone."""

import copy
import math
import warnings

import pytest
import torch
from real_sgd import copies, misses, train
from torch.optim import lr_scheduler

import torchlimits as tl
from torchlimits.optim.schedule import FunctionSchedule, Schedule, SteppedSchedule

N = 400


def sgd(lr=1.0, **options):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=lr, **options)


def told(state):
    """Everything a scheduler holds, those inside it included, less the addresses of functions."""
    if isinstance(state, dict):
        return {k: told(v) for k, v in state.items() if k not in ("optimizer", "lr_lambdas")}
    if isinstance(state, (list, tuple)):
        return [told(v) for v in state]
    if isinstance(state, lr_scheduler.LRScheduler):
        return told(state.__dict__)
    return state if isinstance(state, (int, float, str, torch.Tensor)) else type(state).__name__


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=70, gamma=0.4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=400),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=100),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=1.5 / N, total_steps=400, cycle_momentum=False
    ),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step / 100)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ConstantLR(o, 0.5, 50), lr_scheduler.ExponentialLR(o, 0.995)],
        milestones=[50],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 50), lr_scheduler.ExponentialLR(o, 0.995)], optimizer=o
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.5 / N, 1.0 / N, 40, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, T_0=60, eta_min=0.1 / N
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_copy_takes_the_steps_that_the_scheduler_takes(name):
    """lr step by step, and times, equal those of a loop; neither object is touched before it."""
    optimizer = sgd(1 / N)
    scheduler = SCHEDULERS[name](optimizer)
    state, groups = told(scheduler.state_dict()), copy.deepcopy(optimizer.state_dict())
    step_method = optimizer.step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = SteppedSchedule(scheduler, optimizer, N)
        schedule(0.2)
    assert optimizer.state_dict() == groups
    assert told(state) == told(scheduler.state_dict())
    assert scheduler.optimizer is optimizer
    assert optimizer.step == step_method
    time, ends = 0.0, [0.0]
    for step in range(300):
        lr = float(optimizer.param_groups[0]["lr"])
        if not lr > 0:
            break
        assert schedule(time + lr / 2) == pytest.approx(N * lr, rel=1e-9), step
        time += lr
        ends.append(time)
        optimizer.step()
        scheduler.step()
    counted = schedule.steps(torch.tensor(ends, dtype=torch.float64), N)
    assert counted.tolist() == list(range(len(ends)))


def test_nothing_the_user_holds_changes():
    """Bit-identical training after the dynamics have been made and solved, tensor lr too."""
    problem = tl.SpikedTensor(50, 2, snr=2.0)

    def run(predict):
        generator = torch.Generator().manual_seed(0)
        model = copies(problem, problem.model(at=(0.3, 0.5), generator=generator), 2)
        lr = torch.tensor(1 / 50, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=80)
        first = train(problem, model, optimizer, 20, scheduler=scheduler)
        if predict:
            dynamics = problem.dynamics(optimizer, schedule=scheduler)
            dynamics.solve(first.final, [0.0, 0.4])
        rest = train(problem, model, optimizer, 40, scheduler=scheduler, seed=2)
        return rest, scheduler.get_last_lr()[0], optimizer.state_dict()

    (a, lr_a, state_a), (b, lr_b, state_b) = run(True), run(False)
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.times, b.times)
    assert float(lr_a) == float(lr_b)
    assert str(state_a) == str(state_b)


def test_a_schedule_goes_on_from_where_the_scheduler_is():
    optimizer = sgd(0.1)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    schedule = SteppedSchedule(scheduler, optimizer, dim=10)
    assert schedule(0.1) == 1.0
    assert schedule.steps(torch.tensor([0.3, 0.35, 0.8]).double(), 10).tolist() == [3, 4, 13]
    assert schedule(0.325) == 0.5


def run_matrix(kind, runs=60):
    """Matrix PCA from inside, under a cosine or a jump."""
    problem = tl.SpikedTensor(N, 2, snr=2.0)
    start = problem.model(at=(0.4, 0.5), generator=torch.Generator().manual_seed(2))
    model = copies(problem, start, runs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5 / N)
    scheduler = SCHEDULERS[kind](optimizer)
    dynamics = problem.dynamics(optimizer, schedule=scheduler)
    measured = train(problem, model, optimizer, 390, scheduler=scheduler, every=30)
    return problem, dynamics, measured


@pytest.mark.parametrize("kind", ["CosineAnnealingLR", "StepLR"])
def test_matrix_pca_under_a_scheduler(kind):
    """Means of SGD within the band of chance; a constant c_delta, first or mean, fails."""
    problem, dynamics, measured = run_matrix(kind)
    u0, slack = measured.initial[0], 15 / N
    predicted = dynamics.solve(u0, measured.times)
    assert misses(measured, predicted, slack=slack) < 1
    assert predicted.steps.tolist() == measured.steps.tolist()
    assert predicted.metadata["parameters"]["schedule"] == kind
    mean = N * float(measured.times[-1]) / 390
    for c in (1.5, mean):
        naive = problem.dynamics(step_size=c).solve(u0, measured.times)
        assert misses(measured, naive, slack=slack) > 1.5


def test_a_mixture_under_a_function_of_time():
    """c_delta(t) = 3/(1 + 2 t), trained with the lr that it is at the sum of those before."""
    problem = tl.GaussianMixture.binary(dim=N, width=2, snr=1.0)
    start = problem.model(generator=torch.Generator().manual_seed(3))
    start.second.weight.data.copy_(torch.tensor([1.5, -1.0]))
    model = copies(problem, start, 60)

    def c(t):
        return 3 / (1 + 2 * t)

    optimizer = torch.optim.SGD(model.parameters(), lr=c(0.0) / N)
    times = [0.0]
    for _ in range(500):
        times.append(times[-1] + c(times[-1]) / N)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: c(times[step]) / c(0.0))
    by_function = problem.dynamics(step_size=3.0, schedule=c)
    by_scheduler = problem.dynamics(optimizer, schedule=scheduler)
    measured = train(problem, model, optimizer, 450, scheduler=scheduler, every=50)
    u0, slack = measured.initial[0], 8 / N
    a, b = (d.solve(u0, measured.times) for d in (by_function, by_scheduler))
    torch.testing.assert_close(a.values, b.values, rtol=2e-3, atol=2e-3)
    assert (a.steps - measured.steps).abs().max() <= 2
    assert b.steps.tolist() == measured.steps.tolist()
    assert misses(measured, a, slack=slack) < 1
    for wrong in (3.0, c(float(measured.times[-1]))):
        naive = problem.dynamics(step_size=wrong).solve(u0, measured.times)
        assert misses(measured, naive, slack=slack) > 1.5


def test_momentum_and_layers_under_a_schedule():
    """Ratios of the layers stay; c_delta(t) goes into the corrector with their squares."""
    problem = tl.GaussianMixture.binary(dim=100, snr=1.0)
    model = problem.model()
    groups = [
        {"params": model.first.parameters(), "lr": 0.01, "momentum": 0.5},
        {"params": model.second.parameters(), "lr": 0.02},
    ]
    optimizer = torch.optim.SGD(groups)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.99)
    dynamics = problem.dynamics(optimizer, schedule=scheduler)
    u = torch.tensor([1.0, -1.2, 0.8, -0.3, 0.5, 0.1, 0.6]).double()
    plain = problem.dynamics(step_size=1.0)
    t = 0.005  # the middle of the first step
    torch.testing.assert_close(dynamics.corrector(u, t), 4 * plain.corrector(u))
    t = 0.01 + 0.0099 / 2
    torch.testing.assert_close(dynamics.corrector(u, t), 4 * 0.99 * plain.corrector(u))
    torch.testing.assert_close(
        dynamics(t, u), dynamics.drift(u) + dynamics.corrector(u, t), rtol=1e-12, atol=0.0
    )
    speed = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    expected = 0.99 * torch.outer(speed, speed) * problem.dynamics(step_size=1.98).diffusion(u)
    torch.testing.assert_close(dynamics.diffusion(u, t), expected / 1.98)
    torch.testing.assert_close(
        dynamics.jacobian(u[None], t)[0],
        torch.func.jacrev(lambda u: dynamics(t, u))(u),
    )


# --- what is refused ------------------------------------------------------------------------------


def test_schedulers_without_a_future():
    problem = tl.SpikedTensor(10, 2, snr=1.0)
    optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.1, momentum=0.5)
    with pytest.raises(TypeError, match="losses that have not happened"):
        problem.dynamics(optimizer, schedule=lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(TypeError, match="function t -> c_delta"):
        Schedule.of(0.1, optimizer, 10)
    other = lr_scheduler.ExponentialLR(sgd(), 0.9)
    with pytest.raises(ValueError, match="another optimizer"):
        problem.dynamics(optimizer, schedule=other)
    with pytest.raises(ValueError, match=r"dynamics\(scheduler.optimizer"):
        problem.dynamics(step_size=1.0, schedule=other)
    cycled = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    with pytest.raises(ValueError, match=r"changes the momentum at step 1, t=.*cycle_momentum"):
        problem.dynamics(optimizer, schedule=cycled).solve(torch.ones(2), [0.0, 0.1])


def test_groups_that_part_company():
    model = tl.GaussianMixture.binary(dim=10, snr=1.0).model()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    parting = lr_scheduler.LambdaLR(optimizer, [lambda s: 1.0, lambda s: 0.9**s])
    with pytest.raises(ValueError, match=r"constant ratios.*step 1 of LambdaLR"):
        SteppedSchedule(parting, optimizer, 10)(1.0)


def test_a_schedule_that_never_gets_there(monkeypatch):
    monkeypatch.setattr("torchlimits.optim.schedule._MOST_STEPS", 1000)
    optimizer = sgd(0.1)
    dying = lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step) ** 2)
    with pytest.raises(ValueError, match=r"t=1 not reached after 1,000 steps of LambdaLR \(t=0.16"):
        SteppedSchedule(dying, optimizer, 10)(1.0)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (lambda step: max(0.0, 1 - step / 5), r"got lr=0 at step 5 .*t=0\.3.*asked for: t=2"),
        (lambda step: 1 - step / 5.5, r"got lr=-0\.009.* at step 6 "),
        (lambda step: math.nan if step == 3 else 1.0, r"got lr=nan at step 3 "),
    ],
)
def test_a_scheduler_that_ends(factor, message):
    """Up to the last step it is known, and a solution may go to the very end."""
    problem = tl.SpikedTensor(10, 2, snr=1.0)
    optimizer = torch.optim.SGD(problem.model().parameters(), lr=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, factor)
    dynamics = problem.dynamics(optimizer, schedule=scheduler)
    with pytest.raises(ValueError, match=message):
        dynamics.solve(torch.ones(2), [0.0, 2.0])
    with pytest.raises(ValueError, match="ends there"):
        dynamics.corrector(torch.ones(2), 2.0)
    steps = len(dynamics.schedule._rates)
    end = sum(0.1 * factor(s) for s in range(steps))
    assert dynamics.solve(torch.ones(2), [0.0, end]).steps[-1] == steps


def test_functions_that_are_no_step_sizes():
    problem = tl.SpikedTensor(10, 2, snr=1.0)
    u = torch.ones(2)
    for function, message in (
        (lambda t: 1 - t, r"finite and >= 0, got -.* at t="),
        (lambda t: math.inf if t > 0.5 else 1.0, r"got inf at t="),
        (lambda t: math.nan, "got nan at t="),
        (lambda t: max(0.0, 1 - t), "> 0 up to the last time, got 0 at t="),
    ):
        with pytest.raises(ValueError, match=message):
            problem.dynamics(step_size=1.0, schedule=function).solve(u, [0.0, 2.0])
    # beyond the end of the times the solver asks for nothing
    problem.dynamics(step_size=1.0, schedule=lambda t: 1 - t).solve(u, [0.0, 0.9])
    with pytest.raises(ValueError, match="times >= 0 with a schedule"):
        problem.dynamics(step_size=1.0, schedule=lambda t: 1.0).solve(u, [-1.0, 1.0])


def test_a_constant_function_is_no_schedule():
    problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
    u, times = torch.tensor([1.0, -1.2, 0.8, -0.3, 0.5, 0.1, 0.6]), [0.0, 0.5, 2.0]
    a = problem.dynamics(step_size=1.5).solve(u, times)
    b = problem.dynamics(step_size=1.5, schedule=lambda t: 1.5).solve(u, times)
    torch.testing.assert_close(a.values, b.values, rtol=1e-12, atol=1e-12)
    assert torch.equal(a.steps, b.steps)


def test_steps_of_a_function_with_a_jump():
    schedule = FunctionSchedule(lambda t: 2.0 if t < 1 else 0.5)
    steps = schedule.steps(torch.tensor([0.0, 0.5, 1.0, 3.0]).double(), dim=1000)
    torch.testing.assert_close(steps, torch.tensor([0, 250, 500, 4500]), rtol=0, atol=10)


def test_what_needs_a_constant_step_size():
    problem = tl.SpikedTensor(10, 2, snr=2.0)
    dynamics = problem.dynamics(step_size=1.0, schedule=lambda t: 1 / (1 + t))
    u = torch.tensor([1.0, 1.0])
    for call in (
        dynamics.fixed_points,
        dynamics.exact_fixed_points,
        dynamics.m_star,
        lambda: dynamics.critical_snr,
        lambda: dynamics.diffusive(at=u),
        dynamics.langevin,
    ):
        with pytest.raises(ValueError, match=r"constant step size for .* the schedule <lambda>"):
            call()


def test_another_default_device_changes_nothing():
    optimizer = sgd(lr=1.0 / N)
    schedules = [
        FunctionSchedule(lambda t: 1 / (1 + t)),
        SteppedSchedule(SCHEDULERS["StepLR"](optimizer), optimizer, N),
    ]
    times = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    for schedule in schedules:
        expected = schedule.steps(times, N)
        with torch.device("meta"):
            assert torch.equal(schedule.steps(times, N), expected)

"""Real runs of torch.optim.Muon in full space, against its limit."""

import math

import pytest
import torch
from adaptive_runs import binary, copies, misses, muon_runs, three_classes
from torch import nn

import torchlimits as tl

N = 256
LR = 0.4 / math.sqrt(N)


def relu():
    return binary(N, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)))


def teacher_student():
    torch.manual_seed(0)
    return tl.TeacherStudent(dim=N, width=2, teacher_width=2, noise=0.3, dtype=torch.float64)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1 / N)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.5 / N, weight_decay=0.1)


slow = pytest.mark.slow
#: problem, the optimizer of the head, options of Muon, B, and the least rms z without the corrector
CASES = [
    pytest.param(lambda: binary(N), sgd, {"momentum": 0.5, "nesterov": False}, 1, 7, id="short"),
    pytest.param(
        lambda: binary(N), sgd, {"momentum": 0.9, "weight_decay": 0.1}, 2, 15, id="nesterov",
        marks=slow,
    ),
    pytest.param(
        lambda: three_classes(N), adamw, {"momentum": 0.8}, 4, 8, id="classes", marks=slow
    ),
    pytest.param(relu, sgd, {"momentum": 0.5, "weight_decay": 0.2}, 4, 8, id="relu", marks=slow),
    pytest.param(
        teacher_student, adamw, {"momentum": 0.5, "adjust_lr_fn": "match_rms_adamw",
                                 "lr": 0.4 / (0.2 * N)}, 2, 8, id="teacher", marks=slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make_problem", "others", "options", "batch", "least"), CASES)
def test_runs_follow_the_limit(make_problem, others, options, batch, least):
    """rms z is 1 to 3 at N = 256, as for other optimizers; the corrector is needed."""
    given = {"lr": LR, "weight_decay": 0.0, **options}
    measured, dynamics = muon_runs(make_problem(), others, steps=320, runs=24, batch=batch, **given)
    start, count = measured.values[0, 0], len(dynamics.network.names)
    assert misses(measured, dynamics.solve(start, measured.times), count) < 2.8
    without = dynamics.solve(start, measured.times, corrector=False)
    assert misses(measured, without, count) > least


@pytest.mark.slow
def test_the_polar_factor_would_miss(monkeypatch):
    """Muon's polynomial is not what its name says it computes."""
    measured, dynamics = muon_runs(
        binary(N), sgd, steps=320, runs=24, lr=LR, weight_decay=0.0, momentum=0.5, nesterov=False
    )
    start = measured.values[0, 0]
    right = misses(measured, dynamics.solve(start, measured.times), len(start))

    def polar(self, gram):
        values, vectors = torch.linalg.eigh(gram)
        return vectors @ torch.diag_embed(values.clamp_min(1e-12).rsqrt()) @ vectors.mT

    monkeypatch.setattr("torchlimits.optim.newton_schulz.NewtonSchulz.__call__", polar)
    wrong = misses(measured, dynamics.solve(start, measured.times), len(start))
    assert right < 2.5
    assert wrong > 2 * right


@pytest.mark.slow
def test_the_band_is_that_of_runs():
    measured, dynamics = muon_runs(
        binary(N), sgd, steps=256, runs=64, rows=2, lr=LR, weight_decay=0.0,
        momentum=0.5, nesterov=False,
    )  # fmt: skip
    predicted = dynamics.solve(measured.values[0, 0], measured.times, band=True)
    ratio = measured.values.std(0)[1:] / predicted.std[1:]
    # 1 / sqrt(2 * 63) = 9 % for each, of which some 5 are independent
    assert 0.85 < float(ratio.square().mean().sqrt()) < 1.15


def test_many_starts_are_each_predicted():
    """One call with several starts is the same as several calls."""
    problem = binary(N)
    model = problem.model()
    named = dict(model.named_parameters())
    optimizers = [
        torch.optim.Muon([named.pop("first.weight")], lr=LR, momentum=0.5),
        sgd(named.values()),
    ]
    field = problem.dynamics(optimizers, model=model).field
    u = problem.starts(3, generator=torch.Generator().manual_seed(0))
    together = field.rates(u, 4.0)
    for i in range(3):
        for ours, one in zip(together, field.rates(u[i], 4.0), strict=True):
            torch.testing.assert_close(ours[i], one)


# --- one step -----------------------------------------------------------------------------------


def joint(problem, **options):
    model = problem.model()
    named = dict(model.named_parameters())
    muon = torch.optim.Muon([named.pop("first.weight")], lr=LR, **options)
    return model, [muon, torch.optim.AdamW(named.values(), lr=1 / N)]


def test_the_tracker_and_the_dynamics_have_the_same_time_and_statistics():
    problem = binary(N, dtype=torch.float32)
    model, optimizers = joint(problem)
    dynamics = problem.dynamics(optimizers)
    with tl.track(model, optimizers, dynamics.statistics) as tracker:
        for _ in range(5):
            x, y = problem.sample(1)
            for one in optimizers:
                one.zero_grad()
            problem.loss(model(x), y).backward()
            for one in optimizers:
                one.step()
    measured = tracker.trajectory()
    assert measured.names == dynamics.names
    assert "head.1.weight.exp_avg_sq[0,1]" in dynamics.names
    assert not any(name.startswith("first.weight.exp") for name in dynamics.names)
    torch.testing.assert_close(measured.times[-1], torch.tensor(5 * LR, dtype=torch.float64))
    assert dynamics.steps(measured.times).tolist() == [0, 1, 2, 3, 4, 5]
    predicted = dynamics.solve(measured)
    assert predicted.names == measured.names
    assert float(predicted["bias_correction2"][-1]) == pytest.approx(1 - 0.999**5, rel=1e-6)


def test_schedulers_of_each_optimizer_go_together():
    problem = binary(N)
    model, optimizers = joint(problem)
    halved = [torch.optim.lr_scheduler.StepLR(one, 10, 0.5) for one in optimizers]
    dynamics = problem.dynamics(optimizers, schedule=halved, model=model)
    times = torch.tensor([0.0, 10 * LR, 15 * LR], dtype=torch.float64)
    assert dynamics.steps(times).tolist() == [0, 10, 20]
    alone = problem.dynamics(optimizers, schedule=halved[0], model=model)
    with pytest.raises(ValueError, match="one schedule for all parameter groups"):
        alone.solve(problem.starts(1)[0], [0.0, 15 * LR])


def test_equations_say_what_is_solved():
    problem = binary(N)
    model, optimizers = joint(problem)
    dynamics = problem.dynamics(optimizers, model=model)
    assert "A_ik E[g_k x_j]" in dynamics.equation()
    assert "dv/dt" in dynamics.equation()
    assert "(A E[g g^T] A)_ij" not in dynamics.equation(corrector=False)
    facts = dynamics.describe()
    assert facts["optimizer"] == "Muon and AdamW"
    assert facts["momentum"] == 0.95
    assert facts["head.1.weight.memory"] == 0.999


def test_what_has_no_limit_is_refused():
    problem = binary(N)
    model, optimizers = joint(problem)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = torch.optim.AdamW([p for p in model.parameters() if p.ndim == 1])
    with pytest.raises(ValueError, match=r"expected Muon on the first layer .* got head.1.weight"):
        problem.dynamics([torch.optim.Muon(matrices), rest], model=model)
    with pytest.raises(ValueError, match="expected every parameter in one optimizer"):
        problem.dynamics([torch.optim.Muon(matrices), optimizers[1]], model=model)
    with pytest.raises(TypeError, match="got NAdam"):
        problem.dynamics([optimizers[0], torch.optim.NAdam(model.head.parameters())], model=model)
    with pytest.raises(ValueError, match="expected second moments of one kind, got Adam and RMSp"):
        problem.dynamics(
            [torch.optim.Adam(model.first.parameters()),
             torch.optim.RMSprop(model.head.parameters())], model=model,
        )  # fmt: skip
    with pytest.raises(ValueError, match="got one of them twice"):
        problem.dynamics([optimizers[0], optimizers[0]], model=model)
    with pytest.raises(ValueError, match="empty list"):
        problem.dynamics([], model=model)
    with pytest.raises(NotImplementedError, match="no exact chain"):
        problem.dynamics(optimizers, model=model).reduced_chain()
    with pytest.warns(UserWarning, match="Muon's buffer has"):
        problem.dynamics(optimizers, model=model, batch_size=2)
    _, slow_ones = joint(problem, momentum=0.98)
    with pytest.warns(UserWarning, match=r"keeps W 49 steps behind at dim=256.*a part of 0.19 of"):
        problem.dynamics(slow_ones)


def test_several_sgds_are_groups_of_one():
    """The same prediction as from one optimizer with two parameter groups."""
    problem = binary(N)
    model = problem.model()
    first, head = [*model.first.parameters()], [*model.head.parameters()]
    several = [torch.optim.SGD(first, lr=1 / N), torch.optim.SGD(head, lr=0.3 / N, momentum=0.5)]
    one = torch.optim.SGD(
        [{"params": first}, {"params": head, "lr": 0.3 / N, "momentum": 0.5}], lr=1 / N
    )
    u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    found = [problem.dynamics(o, model=model).drift(u) for o in (several, one)]
    torch.testing.assert_close(*found)


def test_adam_beside_sgd():
    """A head with second moments on a first layer without: runs and control."""
    problem = binary(N)
    model, steps, runs = copies(problem, 40), 400, 40
    optimizers = [
        torch.optim.SGD(model.first.parameters(), lr=2 / N),
        torch.optim.Adam(model.head.parameters(), lr=0.5 / N),
    ]
    dynamics = problem.dynamics(optimizers, model=model)
    generator = torch.Generator().manual_seed(1)
    with tl.track(model, optimizers, dynamics.statistics, every=steps // 4) as tracker:
        for _ in range(steps):
            x, y = problem.sample(1, replicas=(runs,), generator=generator)
            for one in optimizers:
                one.zero_grad()
            problem.loss(model(x), y).backward()
            for one in optimizers:
                one.step()
    measured, count = tracker.trajectory(), len(dynamics.network.names)
    start = measured.initial[0]
    assert misses(measured, dynamics.solve(start, measured.times), count) < 2.5
    without = dynamics.solve(start, measured.times, corrector=False)
    assert misses(measured, without, count) > 7

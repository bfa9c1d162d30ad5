"""Signs and clipped gradients of networks: predictions against real optimizers in full space."""

import pytest
import torch
from adaptive_runs import clip_norm, clip_value
from torch import nn

import torchlimits as tl

RUNS, DIM = 32, 500


def spread():
    """Two orthonormal directions that are spread over all coordinates."""
    return torch.stack([torch.ones(DIM), (-1.0) ** torch.arange(DIM)]).double() / DIM**0.5


def measured(problem, make, change, *, batch, steps, every):
    """Statistics of replicas of one start: every so many steps, ``(runs, T, k)``; the optimizer."""
    model = problem.model(replicas=(RUNS,), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p[:1].expand_as(p))
    parameters, rows = list(model.parameters()), []
    optimizer, generator = make(parameters), torch.Generator().manual_seed(0)
    for step in range(steps + 1):
        if step % every == 0:
            with torch.no_grad():
                rows.append(problem.statistics(dict(model.named_parameters())).double())
        x, y = problem.sample(batch, replicas=(RUNS,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        change(parameters)
        optimizer.step()
    return torch.stack(rows, dim=1), optimizer


def classes():
    """Three classes, GELU, means on axes."""
    return tl.NetworkProblem(
        dim=DIM, width=3, head=nn.Sequential(nn.GELU(), nn.Linear(3, 3)),
        loss=nn.functional.cross_entropy, means=torch.eye(3, DIM), labels=torch.arange(3), snr=4.0,
        dtype=torch.float64,
    )  # fmt: skip


def kinked():
    """A ReLU head; means are spread."""
    return tl.NetworkProblem(
        dim=DIM, width=2, head=nn.Sequential(nn.ReLU(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, means=spread(), labels=torch.tensor([1.0, -1.0]).double(),
        snr=4.0, dtype=torch.float64,
    )  # fmt: skip


def student():
    return tl.TeacherStudent(
        dim=DIM, width=2, teacher_width=1, noise=0.2, convention="torch", dtype=torch.float64
    )


CASES = {
    "sign, axes, batches": (
        classes, lambda p: tl.SignSGD(p, lr=1 / DIM), lambda p: None, {}, 4,
    ),
    "sign, kinks": (
        kinked, lambda p: tl.SignSGD(p, lr=0.5 / DIM, momentum=0.5), lambda p: None, {}, 1,
    ),
    "values, kinks": (
        kinked, lambda p: torch.optim.SGD(p, lr=2 / DIM), lambda p: clip_value(p, 0.3),
        {"clip_value": 0.3}, 1,
    ),
    "norms": (
        student, lambda p: torch.optim.SGD(p, lr=2 / DIM),
        lambda p: clip_norm(p, 0.3 * DIM**0.5), {"clip_norm": 0.3 * DIM**0.5}, 2,
    ),
}  # fmt: skip


#: values and norms are clipped by the same field
_LONG = {"values, kinks"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=pytest.mark.slow) if name in _LONG else name for name in CASES],
)
def test_means_of_runs_are_predicted(case):
    make_problem, make, change, options, batch = CASES[case]
    problem = make_problem()
    runs, optimizer = measured(problem, make, change, batch=batch, steps=DIM, every=DIM // 5)
    dynamics = problem.dynamics(optimizer, batch_size=batch, **options)
    times = torch.arange(6) * (DIM // 5) * optimizer.param_groups[0]["lr"]
    mean, error = runs.mean(0)[1:], (runs.std(0) / RUNS**0.5)[1:]

    def rms(corrector):
        predicted = dynamics.solve(runs[0, 0], times, corrector=corrector).values[1:]
        return float(((mean - predicted) / error).square().mean().sqrt())

    assert rms(True) < 2
    assert rms(False) > 8
    if options:  # what clipping changes is seen
        plain = problem.dynamics(optimizer, batch_size=batch).solve(runs[0, 0], times).values[1:]
        assert float(((mean - plain) / error).square().mean().sqrt()) > 8


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sign, axes, batches", "norms"])
def test_standard_deviations_of_runs_are_predicted(case):
    make_problem, make, change, options, batch = CASES[case]
    problem = make_problem()
    runs, optimizer = measured(problem, make, change, batch=batch, steps=DIM, every=DIM // 5)
    dynamics = problem.dynamics(optimizer, batch_size=batch, **options)
    times = torch.arange(6) * (DIM // 5) * optimizer.param_groups[0]["lr"]
    std = dynamics.solve(runs[0, 0], times, band=True).std
    ratio = (runs.std(0)[1:] / std[1:]).square().mean().sqrt()
    # of 32 runs, over correlated statistics and times
    assert 0.85 < float(ratio) < 1.15

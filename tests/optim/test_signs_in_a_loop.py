"""Signs that a loop takes itself, before the step of SGD, and those of `tl.SignSGD`."""

import pytest
import torch
from torch import nn

import torchlimits as tl

N = 400
OPTIONS = [
    {"lr": 0.3 / N},
    {"lr": 0.2 / N, "momentum": 0.6, "nesterov": True, "weight_decay": 0.2},
    {"lr": 0.2 / N, "momentum": 0.6, "dampening": 0.3, "maximize": True},
]


def problem_of(ridge):
    torch.manual_seed(0)
    signs = torch.randn(N, 2, dtype=torch.float64).sign()
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    return tl.NetworkProblem(
        dim=N, width=2, head=head, snr=4.0, means=torch.linalg.qr(signs)[0].mT, ridge=ridge,
        loss=nn.functional.mse_loss, labels=torch.tensor([1.0, -1.0]), dtype=torch.float64,
    )  # fmt: skip


def run(problem, kind, options, *, by_hand, steps=150):
    generator = torch.Generator().manual_seed(3)
    model = problem.model(generator=generator)
    optimizer = kind(model.parameters(), **options)
    with tl.track(model, optimizer, problem.statistics) as tracker:
        for _ in range(steps):
            x, y = problem.sample(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            for parameter in model.parameters() if by_hand else []:
                parameter.grad.sign_()
            optimizer.step()
    return model, tracker.trajectory()


@pytest.mark.parametrize("options", OPTIONS)
def test_both_loops_give_the_same_weights_and_the_same_rows(options):
    problem = problem_of(options.get("weight_decay", 0.0))
    by_hand, its = run(problem, torch.optim.SGD, options, by_hand=True)
    other, rows = run(problem, tl.SignSGD, options, by_hand=False)
    for a, b in zip(by_hand.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(its.values, rows.values)
    assert torch.equal(its.times, rows.times)
    # negative control: without the signs
    plain, _ = run(problem, torch.optim.SGD, options, by_hand=False)
    assert not torch.allclose(plain.first.weight, other.first.weight, rtol=1e-3)

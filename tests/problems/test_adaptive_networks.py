"""Real optimizers with second moments, in full space, against their limit."""

import pytest
import torch
from adaptive_runs import binary, misses, runs_of, slaved, spread, three_classes
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
    return tl.TeacherStudent(
        dim=N, width=2, teacher_width=2, noise=0.3, dtype=torch.float64,
        overlaps=None,
    )  # fmt: skip


def layers(model):
    groups = [
        {"params": [*model.head.parameters()]},
        {"params": [*model.first.parameters()], "lr": 1 / N, "betas": (0.5, 0.99)},
    ]
    return Adam(groups, lr=0.5 / N)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, 0.1 + s / 150) * (1.0 if s < 300 else 0.3)
    )


slow = pytest.mark.slow
CASES = {
    "adam": (lambda: binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), {}),
    "adamw": (
        lambda: three_classes(N, ridge=0.3),
        lambda m: AdamW(m.parameters(), lr=0.5 / N, weight_decay=0.3), {"batch": 4},
    ),
    "rmsprop": (
        lambda: binary(N),
        lambda m: RMSprop(m.parameters(), lr=0.15 / N, momentum=0.5, alpha=0.999), {},
    ),
    "adagrad": (
        lambda: binary(N),
        lambda m: Adagrad(m.parameters(), lr=N**-0.5, initial_accumulator_value=N / 2), {},
    ),
    "axes": (on_axes, lambda m: Adam(m.parameters(), lr=0.5 / N), {}),
    "relu": (relu, lambda m: Adam(m.parameters(), lr=0.5 / N), {}),
    "teacher": (teacher_student, lambda m: Adam(m.parameters(), lr=0.5 / N), {}),
    "layers": (lambda: binary(N), layers, {}),
    "maximize": (
        lambda: three_classes(N, labels=torch.tensor([1, 2, 0])),
        lambda m: Adam(m.parameters(), lr=0.3 / N, maximize=True), {},
    ),
    "schedule": (
        lambda: binary(N), lambda m: Adam(m.parameters(), lr=0.5 / N), {"schedule": warm_up},
    ),
}  # fmt: skip

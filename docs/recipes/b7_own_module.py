"""A module of one's own, as it stands: its training loop beside what theory predicts of it."""

import torch
from torch import nn

import torchlimits as tl

N = 400
model = nn.Sequential(nn.Linear(N, 3), nn.GELU(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=2 / N, momentum=0.5)
problem = tl.NetworkProblem.of(  # the layer "0" sees x, the rest is the head
    model, "0", loss=nn.functional.cross_entropy, snr=4.0,
    means=2 * torch.eye(3, N), directions=torch.eye(3, N), labels=torch.arange(3),
)  # fmt: skip
with tl.track(model, optimizer, problem.statistics, writer="runs/own") as tracker:
    for _ in range(600):
        x, y = problem.sample(2)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
dynamics = problem.dynamics(optimizer, batch_size=2)  # reads the optimizer
predicted = dynamics.solve(tracker.trajectory())
print(tl.compare(tracker.trajectory(), predicted))
print("accuracy", *(dynamics.accuracy(predicted.values)[[0, -1]].tolist()))

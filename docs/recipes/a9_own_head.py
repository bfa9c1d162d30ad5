"""A head and a loss of one's own, noisy labels: SGD over its theory, risk and all."""

import torch
from torch import nn

import torchlimits as tl

N, K = 400, 3
problem = tl.NetworkProblem(
    dim=N, width=K, snr=1.0, ridge=0.01,
    head=nn.Sequential(nn.SiLU(), nn.Linear(K, 4), nn.Tanh(), nn.Linear(4, 1)),
    loss=lambda output, y: (output - y).cosh().log().mean(),
    directions=torch.eye(2, N),  # what the label reads of x
    labels=lambda x, component: x[:, 0] * x[:, 1], label_noise=0.1,
)  # fmt: skip
measured = tl.train(problem, step_size=1.0, time=2.0, progress=False)
dynamics = problem.dynamics(step_size=1.0)  # or an optimizer: its layers' learning rates, momentum
print(dynamics)  # how many nodes the averages have, and their error
predicted = dynamics.solve(measured)
print(tl.compare(measured, predicted))
risks = [float(dynamics.risk(path.values[..., -1, :]).mean()) for path in (measured, predicted)]
print("risk: measured {:.4f}, predicted {:.4f}".format(*risks))
tl.figures.save(tl.figures.overlay(measured, predicted), "own_head.png")

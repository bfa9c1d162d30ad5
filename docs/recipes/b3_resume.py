"""Kill this (kill -9) at any moment and start it again: it goes on from the last checkpoint."""

import os

import torch

import torchlimits as tl

model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tracker = tl.track(model, optimizer, tl.statistics.norms(model), writer="runs", path="runs/u.npz")
parts = {"model": model, "optimizer": optimizer, "tracker": tracker}
if os.path.exists("runs/checkpoint.pt"):
    for name, state in torch.load("runs/checkpoint.pt").items():
        parts[name].load_state_dict(state)
while tracker.step < 100:
    if tracker.step % 20 == 0:
        torch.save({k: part.state_dict() for k, part in parts.items()}, "runs/checkpoint.pt")
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
tracker.close()

"""A log function like wandb.run.log and a CSV table at the same time."""

import torch

import torchlimits as tl


def log(row, step):  # wandb.run.log, accelerator.log, or your own
    if step % 25 == 0:
        print(step, row)


model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
statistics = {"norm": lambda p: p["weight"].norm()}
with tl.track(model, optimizer, statistics, writer=[log, tl.CSV("u.csv")]):
    for _ in range(100):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()

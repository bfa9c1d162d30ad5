"""Two experiments side by side in TensorBoard, told apart: tensorboard --logdir runs/side."""

import torch

import torchlimits as tl

for name, lr in (("slow", 0.01), ("fast", 0.1)):
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    statistics = {"weight": lambda p: p["weight"][0, :3], **tl.statistics.norms(model)}
    logdir, facts = f"runs/side/{name}", {"experiment": name}  # a folder for each
    with tl.track(model, optimizer, statistics, writer=logdir, parameters=facts):
        for _ in range(200):
            x = torch.randn(16, 20)
            optimizer.zero_grad()
            (model(x)[:, 0] - x[:, 0]).square().mean().backward()
            optimizer.step()

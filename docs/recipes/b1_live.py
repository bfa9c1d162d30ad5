"""Live curves in TensorBoard of a small CNN: tensorboard --logdir runs, while this runs."""

import torch

import torchlimits as tl

model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
statistics = {
    **tl.statistics.norms(model),
    "filters": lambda p: p["0.weight"].flatten(1) @ p["0.weight"].flatten(1).T,
}
with tl.track(model, optimizer, statistics, writer="runs/cnn", every=5) as tracker:
    for _ in range(200):
        x = torch.randn(32, 1, 8, 8)
        y = 5 * (x.mean((1, 2, 3)) > 0).long()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tracker.log(loss=loss)

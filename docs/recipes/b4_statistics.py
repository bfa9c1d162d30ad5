"""Held-out loss, activations, gradient norm and sharpness as statistics."""

import torch

import torchlimits as tl

model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
x = torch.randn(200, 20)
y = (x[:, 0] > 0).long()
loss_of = torch.nn.functional.cross_entropy
statistics = {
    "held out": tl.statistics.held_out(loss_of, x, y),
    "hidden": tl.statistics.activations("1", x),  # mean square of the layer named "1"
    "gradient": tl.statistics.gradient_norm(loss_of, x, y),
    "sharpness": tl.statistics.sharpness(loss_of, x, y),
}
with tl.track(model, optimizer, statistics, every=10) as tracker:
    for _ in range(100):
        inputs = torch.randn(16, 20)
        optimizer.zero_grad()
        loss_of(model(inputs), (inputs[:, 0] > 0).long()).backward()
        optimizer.step()
print(tracker.trajectory().to_pandas())

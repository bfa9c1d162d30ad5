"""What part of the change is drift, what corrector, what noise?"""

import torch

import torchlimits as tl


def sampler(batch, generator=None):
    x = torch.randn(batch, 1, 6, 6, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 3, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
)
loss = torch.nn.functional.cross_entropy
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
probe = tl.Probe(loss, sampler, every=25, samples=256, batch_size=4)
with tl.track(model, optimizer, tl.statistics.norms(model), probe=probe) as tracker:
    for _ in range(100):
        x, y = sampler(4)
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
print(tracker.explanation())

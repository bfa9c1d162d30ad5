"""A small convolutional network on images of two classes, and what a probe says of its runs."""

import torch
from torch import nn

import torchlimits as tl


def convolution(seed):
    """The network, whose filters start small."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.Tanh(), nn.Flatten(), nn.Linear(128, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.2)
    return model


def images(count, generator=None):
    """Images and their classes."""
    label = torch.randint(2, (count,), generator=generator)
    means = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return 0.3 * means[label] + torch.randn(count, 3, 8, 8, generator=generator), label


def explained(run, make, *, steps, every):
    """The explanation of one run of the squared length of the filters.

    Args:
        run: its number, which gives all seeds.
        make: parameters -> optimizer.
        steps, every: how long, and how often the probe looks.
    """
    loss = nn.functional.cross_entropy
    model, data = convolution(run), torch.Generator().manual_seed(100 + run)
    optimizer = make(model.parameters())
    statistics = {"filters": lambda p: p["0.weight"].square().sum()}
    probe = tl.Probe(loss, images, every=every, samples=48, seed=1000 * run)
    with tl.track(model, optimizer, statistics, probe=probe) as tracker:
        for _ in range(steps):
            x, y = images(1, data)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return tracker.explanation()

"""Modules called with other tensors are what they were afterwards, whatever names parts have."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import torchlimits as tl
from torchlimits._stateless import called, places


class Shared(nn.Module):
    """A layer with two names, a weight in two layers, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.third = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second, self.third.weight = self.first, self.first.weight
        self.register_buffer("shift", torch.tensor(0.5))

    def forward(self, x):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x))))) + self.shift


def other(module):
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() + 0.1 for name, tensor in tensors.items()}


def test_tensors_are_replaced_wherever_they_are_and_put_back():
    module, x = Shared(), torch.randn(5, 3)
    own, before = {name: id(p) for name, p in module.named_parameters()}, module(x)
    assert places(module)["third.weight"] == "first.weight"
    assert not any(place.startswith("second") for place in places(module))
    found = called(module, other(module), (x,))
    assert {name: id(p) for name, p in module.named_parameters()} == own
    assert torch.equal(module(x), before)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.add_(0.1)
    assert torch.allclose(found, module(x))
    # torch's own does the same, and leaves the replacements: if it no longer does, use that again
    damaged = Shared()
    functional_call(damaged, other(damaged), (x,))
    assert not isinstance(damaged.first.weight, nn.Parameter)


def test_estimates_and_replicas_leave_modules_whole():
    torch.manual_seed(0)
    module = Shared()
    own = {name: id(p) for name, p in module.named_parameters()}

    def sample(batch, generator=None):
        x = torch.randn(batch, 3, generator=generator)
        return x, x.flip(-1)

    statistics = {"norm": lambda p: p["first.weight"].square().sum()}
    found = tl.estimate(module, F.mse_loss, sample, statistics, step_size=0.1, samples=50)
    assert bool(found.drift.value.isfinite().all())
    assert {name: id(p) for name, p in module.named_parameters()} == own
    copies = tl.replicate(module, 2)
    x = torch.randn(4, 3).expand(2, 4, 3)
    for _ in range(2):
        assert torch.allclose(copies(x)[1], module(x[1]))

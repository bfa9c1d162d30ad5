"""Random starts of a network: W ~ N(0, I/N), b = 0, a head as torch initialises it."""

from __future__ import annotations

import torch
from torch import nn

from torchlimits.problems.network.module import has_bias


def restarted(
    network: nn.Module, first: str | None, generator: torch.Generator | None, device: torch.device,
    *, scale: float = 1.0,
) -> None:  # fmt: skip
    """Draw the parameters anew, in place: W ~ N(0, scale^2/N) an entry, b = 0.

    Other parts with ``reset_parameters()`` are initialised by it, those inside a part before the
    part itself; other parameters, and those that are frozen, keep their values.

    Args:
        network: the module.
        first: the name of its linear first layer; None leaves that to its ``reset_parameters()``.
        generator: draws the start, on ``device``.
        device: the device on which W is drawn.
        scale: the scale of W.
    """
    layer = None if first is None else network.get_submodule(first)
    if isinstance(layer, nn.Linear):
        _restart_first(layer, generator, device, scale)
    seed = torch.randint(2**62, (), generator=generator, device=device)
    # modules draw from torch's global generator
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(int(seed))
        for part in reversed(list(network.modules())):
            if part is not layer:
                _reset(part)


def _restart_first(
    layer: nn.Linear, generator: torch.Generator | None, device: torch.device, scale: float
) -> None:
    K, N = layer.weight.shape
    with torch.no_grad():
        if layer.weight.requires_grad:
            normal = torch.randn(K, N, generator=generator, device=device, dtype=torch.float64)
            layer.weight.copy_(normal * N**-0.5 * scale)
        if has_bias(layer) and layer.bias.requires_grad:
            layer.bias.zero_()


def _reset(part: nn.Module) -> None:
    own = list(part.parameters())
    reset = getattr(part, "reset_parameters", None)
    if not callable(reset) or not any(p.requires_grad for p in own):
        return
    frozen = [(p, p.detach().clone()) for p in own if not p.requires_grad]
    reset()
    with torch.no_grad():
        for parameter, value in frozen:
            parameter.copy_(value)

"""`Training`: how a network is trained, as far as its limit is concerned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from torchlimits.optim.listed import Optimizers


@dataclass(frozen=True)
class Training:
    """What a problem's ``dynamics`` is told of the training loop.

    Args:
        optimizer, step_size, momentum, batch_size, dim: as in `Problem.dynamics`.
        model: the network that the optimizer trains, if it is known.
        clip_norm, clip_value: what torch.nn.utils clips a batch's gradient to, or None.

    Example:
        >>> Training(dim=100, step_size=1.0, clip_norm=3.0).batch_size
        1
    """

    dim: int
    optimizer: Optimizers | None = None
    step_size: float | Tensor | None = None
    momentum: float | Tensor = 0.0
    batch_size: int = 1
    model: nn.Module | None = None
    clip_norm: float | None = None
    clip_value: float | None = None

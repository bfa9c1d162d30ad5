"""`chosen_limit`: the limit for a network's problem, chosen by an optimizer or by numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from torchlimits.optim.held_parameters import Shape
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit


def chosen_limit(
    optimizer: torch.optim.Optimizer | None, *, step_size: float | Tensor | None,
    momentum: float | Tensor, batch_size: int, ridge: float | Tensor, dim: int,
    parameters: Mapping[str, Shape], dims: Iterable[int], model: nn.Module | None = None,
) -> SGDLimit:  # fmt: skip
    """The limit of an SGD optimizer, parameter by parameter, or of SGD with the given numbers.

    An optimizer whose weight decay is not the problem's ridge draws a warning.

    Args:
        optimizer, step_size, momentum, batch_size, dim: as in a problem's ``dynamics``.
        ridge: the problem's ridge.
        parameters, dims, model: as in `Layers.of`.

    Raises:
        ValueError: if not exactly one of optimizer and step_size is given, their values are out
            of range, or the optimizer is not that of the network.
        TypeError: if the optimizer is not SGD.

    Example:
        >>> options = {"batch_size": 1, "ridge": 0.0, "dim": 5}
        >>> shapes = {"parameters": {"weight": (2, None), "bias": (2,)}, "dims": {5}}
        >>> chosen_limit(None, step_size=2.0, momentum=0.5, **options, **shapes).speed
        2.0
    """
    if optimizer is None or step_size is not None:
        return SGDLimit.of(
            SGDSettings.chosen(optimizer, dim, ridge, step_size, momentum, batch_size)
        )
    found = Layers.of(
        optimizer, parameters=parameters, dims=dims, dim=dim, batch_size=batch_size, model=model
    )
    if isinstance(found, Layers):
        found.check_beside(ridge=ridge, momentum=momentum)
        return SGDLimit.of(found.reference, found)
    found.check_beside(ridge=ridge, momentum=momentum)
    return SGDLimit.of(found)

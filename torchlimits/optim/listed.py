"""`listed`: one optimizer, or several that train one model together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

#: what problems take: an optimizer, or all that step once for every batch
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def listed(optimizer: Any) -> list[Any]:
    """The optimizers, one or several.

    Args:
        optimizer: an optimizer, or a list of them, in the order that `torchlimits.track` is given.

    Raises:
        TypeError: if something else is in the list.
        ValueError: if there is none in the list, or one twice, or a parameter in two.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> first, last = (torch.optim.SGD([p]) for p in model.parameters())
        >>> listed([first, last]) == [first, last], listed(first) == [first]
        (True, True)
    """
    if not isinstance(optimizer, (list, tuple)):
        return [optimizer]
    if not optimizer:
        raise ValueError("expected an optimizer or several, got an empty list")
    for one in optimizer:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(f"expected a list of torch optimizers, got {type(one).__name__} in it")
    if len({id(one) for one in optimizer}) < len(optimizer):
        raise ValueError("expected different optimizers, got one of them twice: list it once")
    held = [id(p) for one in optimizer for group in one.param_groups for p in group["params"]]
    if len({*held}) < len(held):
        raise ValueError(
            "expected every parameter in one optimizer, got some in two: both would move it"
        )
    return [*optimizer]


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    """The parameter groups of all of them.

    Args:
        optimizer: as in `listed`.

    Example:
        >>> import torch
        >>> groups = groups_of(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5))
        >>> [group["lr"] for group in groups]
        [0.5]
    """
    return [group for one in listed(optimizer) for group in getattr(one, "param_groups", [])]

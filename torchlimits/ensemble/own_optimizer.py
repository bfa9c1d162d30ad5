"""`OwnOptimizer`: an optimizer of the user's for replicas, each of which it treats by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

#: they treat every entry of a parameter by itself, and so every replica
_ENTRY_BY_ENTRY = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
    torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.Rprop, torch.optim.ASGD,
)  # fmt: skip


def made(make: Any, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of some replicas' parameters.

    Args:
        make: makes it of parameters.
        parameters: the stacked parameters of all replicas.

    Raises:
        TypeError: if ``make`` does not make an optimizer.
        ValueError: if it may couple replicas, does not hold what it was given, or has parameter
            groups with learning rates that differ.

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.zeros(7, 3))]
        >>> type(made(lambda p: torch.optim.AdamW(p, lr=0.1), weights)).__name__
        'AdamW'
    """
    held = list(parameters)
    if not callable(make) or isinstance(make, torch.optim.Optimizer):
        raise TypeError(
            "expected optimizer as a function of parameters, lambda parameters: "
            f"torch.optim.AdamW(parameters, lr=...), got {type(make).__name__}"
        )
    optimizer: Any = make(held)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"expected optimizer(parameters) to make a torch optimizer, got "
            f"{type(optimizer).__name__}"
        )
    alone = getattr(optimizer, "treats_replicas_alone", type(optimizer) in _ENTRY_BY_ENTRY)
    if not alone:
        raise ValueError(
            "expected an optimizer that treats every entry of a parameter by itself, as runs are "
            f"replicas in one module, got {type(optimizer).__name__}, which may couple them: "
            "train one model after the other in a loop of your own, with tl.track"
        )
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if own != {id(p) for p in held}:
        raise ValueError(
            "expected optimizer(parameters) to hold all the parameters that it is given, got "
            f"{len(own)} of {len(held)}: freeze those that shall not move in the problem's head"
        )
    if len({float(group["lr"]) for group in optimizer.param_groups}) > 1:
        raise ValueError("expected one learning rate for all parameters, got several")
    return optimizer


def learning_rate(make: Any) -> float:
    """The learning rate of the optimizers that a function makes.

    Args:
        make: as in `made`.

    Example:
        >>> import torch
        >>> learning_rate(lambda p: torch.optim.SGD(p, lr=0.5))
        0.5
    """
    # of two dimensions, as some optimizers ask for
    optimizer = made(make, [nn.Parameter(torch.zeros(1, 1, device="cpu"))])
    return float(optimizer.param_groups[0]["lr"])


def options(make: Any) -> str:
    """The options of the optimizers that a function makes, which tell trainings apart.

    Args:
        make: as in `made`.

    Example:
        >>> import torch
        >>> "momentum: 0.9" in options(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9))
        True
    """
    optimizer = made(make, [nn.Parameter(torch.zeros(1, 1, device="cpu"))])
    return " ".join(repr(optimizer).split())

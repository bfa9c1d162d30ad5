"""Which optimizers `track` follows, and what it refuses: wrappers that hide the steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

#: wrappers that do nothing to the parameters after the step of their ``optimizer``
_SEEN_THROUGH = {
    "AcceleratedOptimizer": ("accelerate",),
    "_FabricOptimizer": ("lightning", "lightning_fabric"),
    "LightningOptimizer": ("lightning", "pytorch_lightning"),
}
#: methods in which sharpness-aware optimizers step, beside or instead of ``step``
_HALVES = ("second_step", "descent_step")


def followed(model: object, given: object) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers whose steps are followed, the last of them the one that ends a step.

    Args:
        model: it has to be a module.
        given: an optimizer, or a list of several for one model.

    Raises:
        TypeError: if ``model`` is not a module or ``given`` holds no optimizer.
        ValueError: if a list is empty or holds one twice, or if an optimizer calls no hooks or
            steps elsewhere than in ``step``; the message says what to track.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> first, last = (torch.optim.SGD([p], lr=0.1) for p in model.parameters())
        >>> followed(model, [first, last]) == (first, last)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    several = isinstance(given, (list, tuple))
    listed: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed:
        raise ValueError("expected an optimizer or several, got an empty list")
    for number, one in enumerate(listed):
        what = f"optimizers[{number}]" if several else "optimizer"
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(
                f"expected {what} to be a torch.optim.Optimizer, got {type(one).__name__}"
                + _advice(what, one)
            )
        listed[number] = _seen_through(one)
        _check_steps(what, listed[number])
    if len({id(one) for one in listed}) < len(listed):
        raise ValueError("expected different optimizers, got one of them twice: list it once")
    return tuple(listed)


def _seen_through(optimizer: Any) -> torch.optim.Optimizer:
    """The one that steps, inside the wrappers of trainers, which call no hooks."""
    while any(
        kind.__module__.partition(".")[0] in _SEEN_THROUGH.get(kind.__name__, ())
        for kind in type(optimizer).__mro__
    ) and isinstance(optimizer.optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _check_steps(what: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose steps no hook sees."""
    kind, inside = type(optimizer).__name__, inner(optimizer)
    if not hasattr(optimizer, "_optimizer_step_post_hooks") or (
        # an optimizer that makes the place for hooks itself, and does not have them called
        inside is not None and not getattr(type(optimizer).step, "hooked", False)
    ):
        raise ValueError(
            f"expected an optimizer that calls hooks at its steps, got {kind}, whose __init__ does "
            "not call that of torch.optim.Optimizer" + _advice(what, optimizer)
        )
    halves = [name for name in _HALVES if callable(getattr(optimizer, name, None))]
    if halves and inside is not None:
        raise ValueError(
            f"expected an optimizer that steps in .step(), got {kind}, which does so in "
            f".{halves[0]}() as well" + _advice(what, optimizer)
        )


def _advice(what: str, optimizer: object) -> str:
    """What to track instead of an optimizer, as the end of a message."""
    path, found = what, inner(optimizer)
    if found is None:
        return ": give the torch.optim.Optimizer that steps"
    seen: list[object] = [optimizer]
    while found is not None and not any(found[1] is one for one in seen):
        path, optimizer = f"{path}.{found[0]}", found[1]
        seen.append(optimizer)
        if hasattr(optimizer, "_optimizer_step_post_hooks"):
            break
        found = inner(optimizer)
    return (
        f": track {path}, the {type(optimizer).__name__} that makes its steps; should parameters "
        "change after those, .remove() the tracker and call .stepped() after each whole step"
    )


def inner(optimizer: object) -> tuple[str, torch.optim.Optimizer] | None:
    """The attribute of an optimizer that holds another one of the same parameters, and that one."""
    mine = {id(p) for p in _parameters(optimizer)}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        # by type: isinstance would ask proxies, which may answer anything
        if issubclass(type(value), torch.optim.Optimizer) and value is not optimizer:
            theirs = {id(p) for p in _parameters(value)}
            if theirs & mine or not mine:
                return name, value
    return None


def _parameters(optimizer: object) -> Iterator[Any]:
    groups = getattr(optimizer, "param_groups", None)
    for group in groups if isinstance(groups, list) else []:
        yield from group["params"]


def others_that_hold(
    parameter: torch.Tensor, known: tuple[torch.optim.Optimizer, ...]
) -> list[torch.optim.Optimizer]:
    """Optimizers in memory, besides the known ones, that hold a parameter."""
    import gc

    return [
        one
        for one in gc.get_objects()
        if issubclass(type(one), torch.optim.Optimizer)
        and not any(one is other for other in known)
        and any(p is parameter for p in _parameters(one))
    ]

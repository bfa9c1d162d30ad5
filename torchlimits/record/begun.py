"""A step that has begun, and what tells later whether it happened."""

from __future__ import annotations

import itertools
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

#: parameters that are looked at for one with a gradient
_LOOKED_AT = 64
#: torch's function around every ``step`` that has hooks; there is one code for all of them
_STEP: Any = torch.optim.Optimizer.profile_hook_step(lambda optimizer: None)


#: what the hook before a step notes: number and time of the step before (another value, once this
#: one is counted); the learning rate; a parameter that the step moves, and its version; by which
#: a GradScaler tells fused optimizers to skip a step; whether the step was given a closure
Begun = tuple[tuple[int, float], float, Tensor | None, int, Any, bool]


def version_of(parameter: Tensor | None) -> int:
    """How many times a parameter was changed in place."""
    return 0 if parameter is None else parameter._version


def happened(
    begun: Begun, ended: tuple[Begun, int] | None, optimizer: torch.optim.Optimizer
) -> bool:
    """Whether a step that began moved its parameter, as far as is known.

    Args:
        begun: the step.
        ended: one whose end was seen, and the version of its parameter then. If the version was the
            one before the step (fused kernels do not count), this step's version tells nothing
            either; nor does that of a parameter that the optimizer no longer holds. Then only a
            closure is believed to raise errors.
        optimizer: the optimizer whose step it is.
    """
    _, _, parameter, version, found_inf, closure = begun
    if found_inf is not None and bool(found_inf):
        return False
    if version_of(parameter) != version:
        return True
    held = any(p is parameter for group in optimizer.param_groups for p in group["params"])
    silent = not held or (ended is not None and ended[0][3] == ended[1])
    return silent and not closure


def witness_of(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """A parameter that an optimizer moves: one that has a gradient, if there is one.

    Example:
        >>> weight, bias = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        >>> bias.grad = torch.ones(2)
        >>> witness_of(torch.optim.SGD([weight, bias], lr=0.1)) is bias
        True
    """
    held = (p for group in optimizer.param_groups for p in group["params"])
    # parameters of inference mode have no versions
    few = list(
        itertools.islice((p for p in held if p.requires_grad and not p.is_inference()), _LOOKED_AT)
    )
    # a closure may be about to make the gradients
    return next((p for p in few if p.grad is not None), few[0] if few else None)


def running(optimizer: torch.optim.Optimizer) -> int:
    """How many calls of the optimizer's ``step`` are under way, in all threads.

    A step of a subclass that calls that of its base is two calls.

    Example:
        >>> running(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))
        0
    """
    count = 0
    for newest in sys._current_frames().values():  # pyright: ignore[reportPrivateUsage]
        frame: FrameType | None = newest
        while frame is not None:
            code, known = frame.f_code, _STEP.__code__
            # by name: code that torch.compile has rewritten is another object
            if code.co_name == known.co_name and code.co_filename == known.co_filename:
                count += frame.f_locals.get("self") is optimizer
            frame = frame.f_back
    return count

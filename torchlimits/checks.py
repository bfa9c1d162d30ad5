"""Checks of user input that several modules make: each says what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positive(name: str, value: float, hint: str = "") -> float:
    """A finite number > 0, or ValueError."""
    return _number(name, value, value > 0, "a finite number > 0", hint)


def non_negative(name: str, value: float, hint: str = "") -> float:
    """A finite number >= 0, or ValueError."""
    return _number(name, value, value >= 0, "a finite number >= 0", hint)


def positive_int(name: str, value: int) -> int:
    """An int >= 1, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {name} to be an int >= 1, got {value!r}")
    return value


def increasing_times(times: object) -> Tensor:
    """Times as a float64 tensor (T,), strictly increasing, or ValueError."""
    result = torch.as_tensor(times, dtype=torch.float64)
    if result.ndim != 1 or len(result) == 0 or not bool(result.isfinite().all()):
        raise ValueError(
            f"expected times to be a non-empty list of finite numbers, shape (T,), got "
            f"{'non-finite values' if result.ndim == 1 and len(result) else tuple(result.shape)}"
        )
    falls = (result.diff() <= 0).nonzero()
    if len(falls):
        i = int(falls[0]) + 1
        raise ValueError(
            f"expected strictly increasing times, got times[{i}] = {result[i]:g} after "
            f"{result[i - 1]:g}: sort them and drop repeats"
        )
    return result


def _number(name: str, value: float, holds: bool, expected: str, hint: str) -> float:
    if not holds or not math.isfinite(value):
        raise ValueError(f"expected {name} to be {expected}, got {value!r}{hint and ': ' + hint}")
    return float(value)

"""`interleaved`, `timed`: seconds of several ways to do something, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from torchlimits import _checks


def timed(work: Callable[[], object], units: float | int = 1) -> float:
    """Return the seconds per unit of one call, with what it left running on a device.

    Args:
        work: what to time.
        units: how many units (steps, files ...) of work it does.

    Raises:
        ValueError: if there is no work.

    Example:
        >>> timed(lambda: None) < 1
        True
    """
    _checks.positive("units", units, "the work of a round")
    begin = time.perf_counter()
    work()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / units


def interleaved(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Return what each contender returned in each round; every other round runs backwards.

    A first round warms up and is left out. Ratios are to be taken within a round, so that a
    machine that is slow for a while does not enter them.

    Args:
        contenders: functions that do their work once and return their seconds per unit.
        rounds: how many rounds count.

    Example:
        >>> interleaved({"one": lambda: 1.0}, rounds=2)
        {'one': [1.0, 1.0]}
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name in list(contenders)[:: 1 if round_ % 2 else -1]:
            found[name].append(contenders[name]())
    return {name: seconds[1:] for name, seconds in found.items()}

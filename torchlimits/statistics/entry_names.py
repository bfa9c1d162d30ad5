"""The entries of a statistic's value: their names, and a type that keeps all their digits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def as_float(entries: Tensor) -> Tensor:
    """The value in a type that torch.cat takes beside other floats, with all digits."""
    if entries.is_floating_point() and entries.itemsize > 1:
        return entries
    # bytes (float8 among them) and 16-bit integers fit into float32; MPS has nothing longer
    short = entries.itemsize <= 2 or entries.device.type == "mps"
    return entries.to(torch.float32 if short else torch.float64)


def entry_names(name: str, shape: Sequence[int], symmetric: bool) -> list[str]:
    """The names of the entries of a value; of a symmetric one, only those with i <= j.

    Example:
        >>> entry_names("R", (2, 2), True)
        ['R[0,0]', 'R[0,1]', 'R[1,1]']
    """
    if not shape:
        return [name]
    indices = itertools.product(*map(range, shape))
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in indices
        if not symmetric or index[0] <= index[1]
    ]

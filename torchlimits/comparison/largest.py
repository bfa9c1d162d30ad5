"""`largest`: the largest value of each column, and where it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: numbers in a temporary array: it stays in the cache, and in memory that the allocator keeps
_BLOCK = 2**18


def largest(sizes: Float[Tensor, "T k"]) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The largest value of each column that is not NaN, if there is one, and its row.

    Args:
        sizes: values >= 0.

    Example:
        >>> largest(torch.tensor([[1.0], [torch.nan], [3.0], [2.0]]))
        (tensor([3.]), tensor([2]))
    """
    rows = sizes.nan_to_num(nan=-1.0, posinf=torch.inf).argmax(dim=0)
    return sizes.gather(0, rows[None])[0], rows


def largest_of(
    parts: Iterable[Float[Tensor, "_ k"]],
) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """`largest` of parts that lie below each other, which need not be there at once.

    Args:
        parts: at least one.

    Example:
        >>> largest_of([torch.tensor([[1.0], [torch.nan]]), torch.tensor([[3.0], [3.0]])])
        (tensor([3.]), tensor([2]))
    """
    one, *others = ((*largest(part), len(part)) for part in parts)
    found, rows, before = one
    for value, row, length in others:
        better = (value > found) | (found.isnan() & ~value.isnan())
        found, rows = value.where(better, found), (row + before).where(better, rows)
        before += length
    return found, rows


def blocks(runs: Float[Tensor, "runs T k"]) -> Iterator[tuple[slice, slice]]:
    """So many runs at a time as fit a small temporary array, or so many times of a single one.

    >>> [some.start for some, _ in blocks(torch.zeros(5, 2, 2**16))]
    [0, 2, 4]
    >>> [(some.start, times.start) for some, times in blocks(torch.zeros(2, 5, 2**16))]
    [(0, 0), (0, 4), (1, 0), (1, 4)]
    """
    R, T, k = runs.shape
    together = max(1, _BLOCK // (T * k))
    rows = T if together > 1 or T * k <= _BLOCK else max(1, _BLOCK // k)
    for run in range(0, R, together):
        for row in range(0, T, rows):
            yield slice(run, run + together), slice(row, row + rows)

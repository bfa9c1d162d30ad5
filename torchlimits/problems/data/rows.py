"""`Rows`: data as they are given, checked, and as deviations from their means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks

#: a column that varies by less than this part of its size is constant
_CONSTANT = 1e-10
#: a mean that is less than this part of the standard deviation is 0
_CENTRED = 1e-6
#: names of columns that a message lists
_NAMED = 8
#: numbers in a temporary array: it stays in the cache, and in memory that the allocator keeps
_BLOCK = 2**18


@dataclass(frozen=True)
class Rows:
    """M inputs of dimension N, as deviations from the mean of their class, with their labels.

    Attributes:
        deviations: x less its mean, ``(M, N)``.
        means: ``(A, N)``, one row for each class, or a single one.
        component: the row of the means that belongs to each input, ``(M,)``.
        classes: the class of each row of the means, ``(A,)``; None without classes.
        numbers: y as columns of numbers, ``(M, q)``; classes are -1 and 1 where there are two, and
            one column each, of 0 and 1, otherwise; None without y.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 5.0], [5.0, 7.0]])
        >>> rows = Rows.of(x, torch.tensor([3, 3, 8, 8]))
        >>> rows.means.tolist(), rows.classes.tolist(), rows.shares.tolist()
        ([[1.0, 2.0], [5.0, 6.0]], [3, 8], [0.5, 0.5])
        >>> rows.numbers[:, 0].tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """

    deviations: Float[Tensor, "M N"]
    means: Float[Tensor, "A N"]
    component: Int[Tensor, " M"]
    classes: Int[Tensor, " A"] | None
    numbers: Float[Tensor, "M q"] | None

    @classmethod
    def of(cls, x: object, y: object = None, *, centre: bool = True) -> Rows:
        """Check data; `Covariance.of_data` says what is refused."""
        inputs = _inputs(x)
        labels = None if y is None else _labels(y, len(inputs))
        if labels is None or labels.is_floating_point():
            means = _mean(inputs) if centre else torch.zeros_like(inputs[:1])
            component = torch.zeros(len(inputs), dtype=torch.int64, device="cpu")
            return cls(inputs - means, means, component, None, labels)
        classes, component, counts = labels.unique(return_inverse=True, return_counts=True)
        _check_classes(classes, counts, centre)
        sums = inputs.new_zeros(len(classes), inputs.shape[1])
        means = sums.index_add_(0, component, inputs) / counts[:, None]
        deviations = torch.empty_like(inputs)
        for part in blocks(inputs):
            torch.sub(inputs[part], means[component[part]], out=deviations[part])
        return cls(deviations, means, component, classes, _coded(component))

    @property
    def shares(self) -> Float[Tensor, " A"]:
        """The fraction of the rows in each class."""
        return self.component.bincount(minlength=len(self.means)) / len(self.component)


def blocks(rows: Float[Tensor, "M N"], least: int = 1) -> Iterator[slice]:
    """So many rows at a time as fit a small temporary array, or more if fewer do not pay.

    >>> [part.start for part in blocks(torch.zeros(5, 2**17))]
    [0, 2, 4]
    """
    size = max(least, _BLOCK // rows.shape[1])
    return (slice(first, first + size) for first in range(0, len(rows), size))


def _mean(inputs: Float[Tensor, "M N"]) -> Float[Tensor, "1 N"]:
    """The mean, 0 where it is what rounding left of inputs less their mean."""
    mean = inputs.mean(0, keepdim=True)
    return mean.where(mean.abs() > _CENTRED * inputs.std(0, correction=0), 0.0)


def _inputs(x: object) -> Float[Tensor, "M N"]:
    inputs = _checks.float64("x", x)
    if inputs.ndim != 2 or not inputs.numel():
        raise ValueError(
            "expected x of shape (M, N), one row for each sample, got "
            f"{tuple(inputs.shape)}: flatten images by x.reshape(len(x), -1)"
        )
    if not _checks.all_finite(inputs):
        bad = inputs.isfinite().logical_not().any(0).nonzero().flatten()
        raise ValueError(
            f"expected finite data, got NaN or infinity in {_columns(bad)} of x: leave out those "
            "rows or fill them in"
        )
    rows, dim = inputs.shape
    if rows < 2:
        raise ValueError("expected at least 2 rows of data, got 1: a single one has no covariance")
    spread = inputs.std(0, correction=0)
    low, high = inputs.aminmax(dim=0)
    constant = (spread <= _CONSTANT * torch.maximum(-low, high)).nonzero().flatten()
    if len(constant):
        raise ValueError(
            f"expected features that vary, got constant ones, {_columns(constant)} of x: leave "
            "them out, x[:, x.std(0) > 0]"
        )
    if rows <= dim:
        raise ValueError(
            f"expected more rows than dimensions, got {rows} rows of dimension {dim}, whose "
            "covariance is singular: give more rows, fewer features, or project, as by "
            "x @ torch.pca_lowrank(x, k)[2] with k well below the number of rows"
        )
    return inputs


def _labels(y: object, rows: int) -> Tensor:
    """Classes as int64 ``(M,)``, or numbers as float64 ``(M, q)``."""
    given = y if isinstance(y, Tensor) else np.asarray(y)
    if isinstance(given, np.ndarray) and given.dtype.kind in "OSU" and given.size:
        raise TypeError(
            f"expected y as integers (classes) or numbers, got {given.flat[0]!r} and others: "
            "number the classes, np.unique(y, return_inverse=True)[1]"
        )
    labels = _checks.float64("y", given)
    if labels.ndim not in (1, 2) or len(labels) != rows:
        raise ValueError(
            f"expected y of shape ({rows},) or ({rows}, q), one label for each row of x, got "
            f"{tuple(labels.shape)}"
        )
    if not bool(labels.isfinite().all()):
        raise ValueError("expected finite labels y, got NaN or infinity: leave out those rows")
    if torch.as_tensor(given).is_floating_point():
        return labels.reshape(rows, -1)
    if labels.ndim == 2:
        raise ValueError(
            f"expected classes y of shape ({rows},), got integers of shape "
            f"{tuple(labels.shape)}: give y.argmax(1), or numbers as y.float()"
        )
    return labels.long()


def _check_classes(classes: Tensor, counts: Tensor, centre: bool) -> None:
    if not centre:
        raise ValueError(
            "expected numbers y with centre=False, got classes, each of which has a mean of its "
            "own: give numbers, y.float()"
        )
    few = classes[counts < 2].tolist()
    if few:
        raise ValueError(
            f"expected at least 2 rows of each class, got 1 of {few[:_NAMED]}"
            f"{' ...' if len(few) > _NAMED else ''}: leave these classes out; if y are numbers "
            "and not classes, give them as floats, y.float()"
        )


def _coded(component: Int[Tensor, " M"]) -> Float[Tensor, "M q"]:
    """Two classes as -1 and 1, more as 0 and 1 in a column each."""
    onehot = torch.nn.functional.one_hot(component).double()
    return onehot[:, 1:] * 2 - 1 if onehot.shape[1] == 2 else onehot


def _columns(which: Tensor) -> str:
    few = ", ".join(map(str, which[:_NAMED].tolist()))
    rest = len(which) - _NAMED
    return f"column{'s' if len(which) > 1 else ''} {few}" + (f" and {rest} more" * (rest > 0))

"""The law of runs at dimension n, told by many paths: means, deviations, bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.trajectory import Trajectory

#: paths with more bytes are refused
_MOST_BYTES = 2**32
#: quantiles are found for so many numbers at once
_AT_ONCE = 2**20


def law_of(paths: Trajectory, level: float) -> Trajectory:
    """Describe the law that independent paths come from.

    The bounds are the quantiles of order (1 -+ level)/2 at positions i/(M + 1) of M paths, between
    which one more path lies with probability ``level`` at each time.

    Args:
        paths: values ``(M, ..., T, k)``.
        level: the probability between the bounds.

    Returns:
        `Trajectory` with the paths' means as values ``(..., T, k)``, their ``std``, ``lower`` and
        ``upper``, and the paths as ``samples``. Its metadata say ``"level"`` under ``"law"``.

    Raises:
        ValueError: if level is not between 0 and 1, or there are too few paths for it.

    Example:
        >>> times, u = torch.tensor([0.0]), torch.arange(1.0, 40.0).reshape(39, 1, 1)
        >>> law = law_of(Trajectory(times, torch.tensor([0]), u, ["m"]), level=0.9)
        >>> law.values.item(), round(law.lower.item(), 9), round(law.upper.item(), 9)
        (20.0, 2.0, 38.0)
    """
    level = _checks.positive("level", level)
    outside = (1 - level) / 2
    if level >= 1:
        raise ValueError(f"expected level between 0 and 1, got {level:g}: a probability, 0.95 say")
    samples = paths.values
    if outside * (len(samples) + 1) < 1:
        raise ValueError(
            f"expected at least {int(-(-1 // outside)) - 1} runs for bounds of level {level:g}, "
            f"got {len(samples)}: draw more, or take a smaller level"
        )
    lower, upper = quantiles(samples, (outside, 1 - outside))
    facts = {**paths.metadata.get("law", {}), "level": level, "runs": len(samples)}
    return replace(
        paths, values=samples.mean(0), std=samples.std(0), lower=lower, upper=upper,
        samples=samples, metadata={**paths.metadata, "law": facts},
    )  # fmt: skip


def quantiles(
    samples: Float[Tensor, "M *shape"], orders: Sequence[float]
) -> list[Float[Tensor, "*shape"]]:
    """Quantiles over the first dimension, the i-th smallest of M standing for order i/(M + 1).

    Args:
        samples: shape ``(M, ...)``.
        orders: between 1/(M + 1) and M/(M + 1).
    """
    columns = samples.flatten(1).numpy().T
    pieces = np.array_split(columns, max(1, columns.size // _AT_ONCE))
    found = np.concatenate([_of_rows(piece, orders) for piece in pieces], axis=1)
    return list(torch.from_numpy(found).unflatten(1, samples.shape[1:]))


def _of_rows(rows: np.ndarray, orders: Sequence[float]) -> np.ndarray:
    """The quantiles of each row, ``(orders, rows)``."""
    # numbers beside each other are sorted in a third of the time that np.quantile takes
    ordered = np.array(rows, order="C")
    ordered.sort(axis=1)
    last = ordered.shape[1] - 1
    places = [min(max(order * (last + 2) - 1, 0.0), float(last)) for order in orders]
    below = [int(place) for place in places]
    low, high = ordered[:, below], ordered[:, [min(i + 1, last) for i in below]]
    return (low + (high - low) * (np.array(places) - below)).T


def check_size(runs: int, start: Sequence[int], times: int) -> None:
    """Refuse paths that take more than 4 GiB.

    Args:
        runs: from each start.
        start: the shape of the starts, ``(..., k)``.
        times: T.

    Raises:
        MemoryError: if there are too many.
    """
    size = 8 * runs * times * int(np.prod(start))
    if size > _MOST_BYTES:
        raise MemoryError(
            f"expected paths of at most {_MOST_BYTES / 2**30:.0f} GiB, got {runs} runs of "
            f"{times} times and statistics {tuple(start)}, {size / 2**30:.1f} GiB: give fewer "
            "times (measured.thin(200)), fewer starts or fewer runs"
        )

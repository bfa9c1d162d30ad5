"""Whether a law has more than one hump, by Hartigan's dip, and where its humps are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

#: sqrt(M) times the dip of M numbers from the uniform law, the worst that has one hump, is larger
#: than this once in 10^4 times (simulated: 0.79, 0.80, 0.86 for M = 100, 500, 2000)
CRITICAL = 0.85
#: of more numbers the dip is that significant even where it is too shallow to be seen
_MOST = 2000
#: a share of the numbers that is worth telling
_LEAST = 0.05


@dataclass(frozen=True)
class Humps:
    """Where the humps of a law are.

    Attributes:
        shares: how much of the law belongs to each.
        places: their medians, from left to right.
    """

    shares: list[float]
    places: list[float]


def dip(sample: np.ndarray) -> float:
    """The distance of the empirical distribution function from the nearest with one hump.

    Source: J. A. Hartigan and P. M. Hartigan, The dip test of unimodality, Annals of Statistics 13
    (1985), section 4.

    Args:
        sample: numbers, shape ``(M,)``.

    Example:
        >>> dip(np.array([0.0, 0.1, 0.2, 1.0, 1.1, 1.2]))
        0.2
    """
    x, counts = np.unique(sample, return_counts=True)
    total = counts.sum()
    above = np.cumsum(counts) / total
    below = above - counts / total
    if len(x) == 1:
        return 0.0
    low, high, found = 0, len(x) - 1, 1 / total
    while high > low:
        part = slice(low, high + 1)
        minorant, at_minorant = _minorant(x[part], below[part])
        negative, at_majorant = _minorant(x[part], -above[part])
        gap = -negative - minorant
        left = at_minorant[gap[at_minorant].argmax()]
        right = at_majorant[gap[at_majorant].argmax()]
        if gap[left] > gap[right]:
            largest = gap[left]
            right = at_majorant[np.searchsorted(at_majorant, left)]
        else:
            largest = gap[right]
            left = at_minorant[np.searchsorted(at_minorant, right, side="right") - 1]
        if largest <= found:
            break
        # without the ends: one of them may be the mode, where the nearest function can jump as well
        outside = (above[part] - minorant)[:left], (-negative - below[part])[right + 1 :]
        found = max(found, *(side.max(initial=0.0) for side in outside))
        low, high = low + left, low + right
    return float(found / 2)


def _minorant(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greatest convex minorant at the points, and which of them it touches."""
    from scipy.optimize import isotonic_regression

    width = np.diff(x)
    slopes = isotonic_regression(np.diff(y) / width, weights=width)
    return np.concatenate([y[:1], y[0] + np.cumsum(slopes.x * width)]), slopes.blocks


def several(sample: np.ndarray) -> bool:
    """Whether a sample's law has more than one hump.

    Small humps need to be far off: of 2000 numbers, a tenth 7 deviations away, a half 3.

    Args:
        sample: numbers, shape ``(M,)``, at least 100 of them.

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=1000)
        >>> several(numbers), several(np.concatenate([numbers, numbers + 4]))
        (False, True)
    """
    return clearness(sample) > CRITICAL


def clearness(sample: np.ndarray) -> float:
    """The dip times the root of the number, which is about the same for all uniform samples.

    Args:
        sample: numbers, shape ``(M,)``, of which the finite ones count; of fewer than 100, or if
            all are the same, it is 0.

    Example:
        >>> clearness(np.zeros(500))
        0.0
    """
    sample = sample[np.isfinite(sample)]
    if len(sample) < 100:
        return 0.0
    spread = np.ptp(sample)
    if spread <= 1e-6 * (1 + np.abs(sample).max()):
        return 0.0
    return dip(sample) * min(len(sample), _MOST) ** 0.5


def humps(sample: np.ndarray) -> Humps:
    """Where the humps are, by a kernel density.

    Args:
        sample: numbers, shape ``(M,)``, that are not all the same; the finite ones count.

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=1000)
        >>> found = humps(np.concatenate([numbers, numbers[:500] + 6]))
        >>> [round(share, 2) for share in found.shares], [round(x, 1) for x in found.places]
        ([0.67, 0.33], [-0.1, 6.0])
    """
    from scipy.signal import find_peaks

    sample = sample[np.isfinite(sample)]
    along, height = density(sample)
    peaks, _ = find_peaks(np.concatenate([[0.0], height, [0.0]]), prominence=0.05 * height.max())
    peaks = peaks - 1
    valleys = [along[a + height[a:b].argmin()] for a, b in itertools.pairwise(peaks)]
    group = np.searchsorted(valleys, sample)
    parts = [sample[group == i] for i in range(len(peaks))]
    parts = [part for part in parts if len(part) >= _LEAST * len(sample)]
    return Humps(
        [len(part) / len(sample) for part in parts], [float(np.median(part)) for part in parts]
    )


def density(sample: np.ndarray, points: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """A kernel density, half as wide as is best for a normal law, which would hide humps.

    Args:
        sample: numbers, shape ``(M,)``, that are not all the same.
        points: how many.

    Returns:
        The points and the density there.

    Example:
        >>> along, height = density(np.random.default_rng(0).normal(size=1000))
        >>> round(float(height.sum() * (along[1] - along[0])), 2)
        1.0
    """
    from scipy.stats import gaussian_kde

    kernel = gaussian_kde(sample)
    kernel.set_bandwidth(kernel.silverman_factor() / 2)
    margin = 3 * float(np.sqrt(kernel.covariance[0, 0]))
    along = np.linspace(sample.min() - margin, sample.max() + margin, points)
    return along, kernel(along)

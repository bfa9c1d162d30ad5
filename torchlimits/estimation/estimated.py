"""`Estimated`: numbers estimated from data, each with its standard error."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Estimated:
    """Numbers estimated from data, and their standard errors in a tensor of the same shape."""

    value: Tensor
    standard_error: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return lower and upper ends of normal confidence intervals, entry by entry.

        Raises:
            ValueError: if level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"expected level in (0, 1), got {level}")
        half = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - half, self.value + half


def standard_error(rows: Float[Tensor, "S ..."]) -> Tensor:
    """Return the standard error of the mean over the first dimension."""
    # this takes a tenth of the time of std(0)
    centred = rows - rows.mean(0)
    return (centred.square().sum(0) / (len(rows) - 1) / len(rows)).sqrt()


def covariance(rows: Float[Tensor, "S k"], delta: float) -> Estimated:
    """Estimate delta times the covariance of the rows, entry by entry."""
    count = len(rows)
    centred = rows - rows.mean(0)
    mean = centred.mT @ centred / count
    # Var(x_i x_j) without an array of S k^2 numbers
    square = centred.square()
    variance = (square.mT @ square / count - mean.square()).clamp_min(0)
    unbiased = count / (count - 1)
    return Estimated(delta * unbiased * mean, delta * unbiased * (variance / count).sqrt())

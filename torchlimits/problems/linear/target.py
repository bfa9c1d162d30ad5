"""The target w* of a linear model, given as such or by its square in each level."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.data.covariance import Covariance
from torchlimits.problems.linear.levels import Levels


def target_of(
    covariance: Covariance, levels: Levels, errors: object, target: object
) -> tuple[Float[Tensor, " N"], Float[Tensor, " L"]]:
    """w* and its squares in the levels; one is given, and the other made from it.

    Squares are spread evenly within each level: all directions there are alike.

    Args:
        covariance: that of the inputs.
        levels: its levels.
        errors: the squares ``(L,)``, or None.
        target: w*, ``(N,)``, or None. If both are None w* has length 1 and its square is spread
            like the fractions.

    Raises:
        ValueError: if both are given, shapes do not fit, or a number is out of range.

    Example:
        >>> covariance = Covariance.of([(4.0, 0.25), (1.0, 0.75)], dim=8)
        >>> target, squares = target_of(covariance, Levels.of(covariance), [2.0, 6.0], None)
        >>> target.tolist(), squares.tolist()
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 6.0])
    """
    if errors is not None and target is not None:
        raise ValueError(
            "expected either errors=, the squares of the target in the levels, or target=, the "
            "vector, got both: leave one out"
        )
    if target is not None:
        vector = _vector(target, covariance.dim)
        return vector, levels.sums(covariance.coordinates(vector).square())
    squares = levels.fractions if errors is None else _squares(errors, levels)
    return covariance.vectors((squares / levels.counts).sqrt()[levels.place]), squares


def _vector(target: object, dim: int) -> Float[Tensor, " N"]:
    vector = _checks.float64("target", target)
    if vector.shape != (dim,) or not bool(vector.isfinite().all()):
        what = "not finite" if vector.shape == (dim,) else f"shape {tuple(vector.shape)}"
        raise ValueError(f"expected target as a finite vector of shape ({dim},), got {what}")
    return vector


def _squares(errors: object, levels: Levels) -> Float[Tensor, " L"]:
    squares = _checks.float64("errors", errors)
    L = len(levels.eigenvalues)
    if squares.shape != (L,):
        listed = [round(x, 6) for x in levels.eigenvalues[:5].tolist()]
        raise ValueError(
            f"expected errors of shape ({L},), one for each distinct eigenvalue {listed}"
            f"{' ...' if L > 5 else ''}, got shape {tuple(squares.shape)}: equal eigenvalues are "
            "one level"
        )
    if not bool(squares.isfinite().all()) or float(torch.min(squares)) < 0:
        raise ValueError(
            "expected finite errors >= 0, which are squared lengths, got "
            f"{[round(x, 6) for x in squares[:5].tolist()]}"
        )
    return squares

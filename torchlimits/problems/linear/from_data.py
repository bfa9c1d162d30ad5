"""What a `LinearModel` takes from data where it is not given: dimension, noise, target, moments."""

from __future__ import annotations

from torch import Tensor

from torchlimits.problems.data.covariance import Covariance, DataCovariance


def dim_of(dim: int | None, covariance: object) -> int:
    """N as given, or that of a `Covariance`.

    Raises:
        ValueError: if neither says it.

    Example:
        >>> dim_of(None, Covariance.of([(1.0, 1.0)], dim=8))
        8
    """
    if dim is not None:
        return dim
    if not isinstance(covariance, Covariance):
        raise ValueError("expected dim=, the dimension N, got none: only a tl.Covariance has one")
    return covariance.dim


def noise_of(noise: float | None, covariance: object) -> float:
    """The standard deviation of the labels' noise as given, or the residual of data.

    Raises:
        ValueError: if neither says it.

    Example:
        >>> noise_of(0.5, None)
        0.5
    """
    if noise is not None:
        return noise
    data = _labelled(covariance, "noise=")
    return data.residual


def target_from(covariance: object, errors: object, target: object) -> object:
    """The target as given, or the best linear prediction of labelled data.

    Example:
        >>> target_from(None, None, [1.0, 2.0])
        [1.0, 2.0]
    """
    labelled = isinstance(covariance, DataCovariance) and covariance.rows.numbers is not None
    if target is not None or errors is not None or not labelled:
        return target
    return _labelled(covariance, "target=").target


def moments_of(
    fourth_moments: object, covariance: object, noise: object, errors: object, target: object
) -> object:
    """The fourth moments as given, or those of data for True.

    Raises:
        ValueError: if there are no labelled data, or moments of residuals would be those of another
            target or noise than the model's.

    Example:
        >>> moments_of(False, None, 0.1, None, None)
        False
    """
    if fourth_moments is not True:
        return fourth_moments
    data = _labelled(covariance, "fourth_moments as False or a pair")
    if not all(x is None for x in (noise, errors, target)):
        raise ValueError(
            "expected noise and target of the data with fourth_moments=True, whose moments are "
            "those of the data's residuals, got others: leave out noise=, errors= and target=, or "
            "give fourth_moments as a pair"
        )
    return data.fourth_moments()


def _labelled(covariance: object, instead: str) -> DataCovariance:
    """Data with one number y for each row, or ValueError."""
    if not isinstance(covariance, DataCovariance) or covariance.rows.numbers is None:
        raise ValueError(
            f"expected {instead}, or covariance=tl.Covariance.of_data(x, y) with labels y, which "
            "says it"
        )
    numbers: Tensor = covariance.rows.numbers
    if covariance.labels is not None or numbers.shape[1] != 1:
        what = "classes" if covariance.labels is not None else f"y with {numbers.shape[1]} columns"
        raise ValueError(
            f"expected data with one number y a row for a linear model, got {what}: give numbers, "
            "as 2.0 * y - 1 for classes 0 and 1, or one column"
        )
    return covariance

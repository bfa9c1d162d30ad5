"""What a network problem takes from data where it is not given: means, labels, weights, noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.data.covariance import DataCovariance

#: standard deviations of noise that differ by more than this factor draw a warning
_UNEQUAL = 1.2
#: singular values below this part of the largest are those of no further direction
_SPANNED = 1e-10


def filled(labels: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Labels and settings of a problem, with what its data say in place of None.

    Classes give one component each; numbers give the best linear prediction, and its residual as
    the noise of the labels.

    Raises:
        TypeError: if labels or snr are None and there are no data that say them.
        ValueError: if data have no labels, or other settings do not go with theirs.

    Example:
        >>> labels, given = filled(torch.ones(1), {"snr": 2.0, "label_noise": None})
        >>> labels, given["label_noise"]
        (tensor([1.]), 0.0)
    """
    data = given.get("covariance")
    known = dict(given)
    if not isinstance(data, DataCovariance):
        if labels is None or given["snr"] is None:
            what = "labels as a tensor, a function or a law" if labels is None else "a number snr="
            raise TypeError(
                f"expected {what}, or covariance=tl.Covariance.of_data(x, y), which says it, got "
                "neither"
            )
    else:
        labels = _from(data, labels, known)
    known["label_noise"] = 0.0 if known["label_noise"] is None else known["label_noise"]
    return labels, known


def _from(data: DataCovariance, labels: Any, known: dict[str, Any]) -> Any:
    """The labels of data; the settings are filled in place."""
    if known["snr"] is None:
        known["snr"] = 1.0
    if labels is not None:
        if known["means"] is None:
            _put(known, data, _spanning(data.means))
        return labels
    held = [name for name in ("means", "directions", "weights") if known[name] is not None]
    if held:
        raise ValueError(
            f"expected labels= beside {held[0]}=, got none: those of the data go with the data's "
            f"own means and directions; leave out {', '.join(f'{name}=' for name in held)}"
        )
    if data.labels is not None:
        _put(known, data, _spanning(data.means))
        return data.labels
    if data.rows.numbers is None:
        raise ValueError(
            "expected labels=, got none, and data without: give them, tl.Covariance.of_data(x, y)"
        )
    linear = data.linear_labels
    _put(known, data, linear.directions)
    if known["label_noise"] is None:
        each = data.label_noise
        if float(each.max()) > _UNEQUAL * float(each.min()):
            _checks.warn_user(
                f"labels of {len(each)} numbers have noise of standard deviations from "
                f"{float(each.min()):.3g} to {float(each.max()):.3g}: the prediction takes one for "
                "all of them; scale each number by its own, or give label_noise="
            )
        known["label_noise"] = float(each.square().mean().sqrt())
    return linear


def _put(known: dict[str, Any], data: DataCovariance, directions: Float[Tensor, "d N"]) -> None:
    known["means"] = data.means
    if known["directions"] is None:
        known["directions"] = directions
    if known["weights"] is None:
        known["weights"] = data.shares.double()


def _spanning(means: Float[Tensor, "A N"]) -> Float[Tensor, "d N"]:
    """Orthonormal rows that span the means."""
    _, sizes, rows = torch.linalg.svd(means, full_matrices=False)
    return rows[(sizes > _SPANNED * sizes[0]) & (sizes > 0)]

"""`Means`: means over runs, measured and predicted, and how far they are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison.largest import blocks, largest_of
from torchlimits.comparison.match import Match


@dataclass(frozen=True, eq=False)
class Means:
    """What `Comparison` says of means over the runs, under the same names."""

    measured: Float[Tensor, " k"]
    predicted: Float[Tensor, " k"]
    standard_error: Float[Tensor, " k"]
    sup_difference: Float[Tensor, " k"]
    sup_time: Float[Tensor, " k"]
    sup_standard_error: Float[Tensor, " k"]
    predicted_error: Float[Tensor, " k"] | None


def means(match: Match) -> Means:
    """Means over the runs.

    Args:
        match: both sides, at the same times.

    Example:
        >>> from torchlimits.comparison.match import matched
        >>> from torchlimits.trajectory import Trajectory
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 9])
        >>> runs = torch.tensor([[[0.0], [0.5]], [[0.0], [3.5]]])
        >>> ours, theirs = (Trajectory(times, steps, x, ["m"]) for x in (runs, runs[0]))
        >>> found = means(matched(ours, theirs))
        >>> found.sup_difference, found.standard_error
        (tensor([1.5000], dtype=torch.float64), tensor([1.5000], dtype=torch.float64))
    """
    measured, predicted = match.both
    difference = match.difference
    runs, k = len(difference), len(match.names)
    mean = difference.mean(dim=0) if runs > 1 else difference[0]
    unknown = mean.new_tensor(torch.nan).expand_as(mean)
    error = difference.std(dim=0) / runs**0.5 if runs > 1 else unknown
    # estimates from one set of samples err together
    own = None
    if predicted.error is not None:
        own = predicted.error.reshape(-1, *mean.shape).mean(dim=0)
    whole = error if own is None else torch.hypot(own, error.nan_to_num(0.0))
    sup, at = largest_of(mean[part].abs() for _, part in blocks(mean[None]))
    return Means(
        measured=measured.final.reshape(-1, k).mean(dim=0),
        predicted=predicted.final.reshape(-1, k).mean(dim=0),
        standard_error=error[-1],
        sup_difference=sup,
        sup_time=measured.times[at],
        sup_standard_error=whole.gather(0, at[None])[0],
        predicted_error=None if own is None else own[-1],
    )

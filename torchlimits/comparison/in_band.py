"""`InBand`: runs beside the band that is predicted for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits.comparison.largest import blocks, largest_of
from torchlimits.comparison.match import Match
from torchlimits.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class InBand:
    """What `Comparison` says of the predicted band, under the same names."""

    sup_in_std: Float[Tensor, " k"] | None
    inside: Float[Tensor, " k"] | None


def in_band(match: Match) -> InBand:
    """The largest difference in predicted deviations, and the share inside the predicted band.

    Args:
        match: both sides, at the same times.

    Example:
        >>> from torchlimits.comparison.match import matched
        >>> from torchlimits.trajectory import Trajectory
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 9])
        >>> u, std = torch.tensor([[0.0], [0.5]]), torch.ones(2, 1)
        >>> ours = Trajectory(times, steps, u, ["m"])
        >>> found = in_band(matched(ours, Trajectory(times, steps, 0 * u, ["m"], std=std)))
        >>> found.sup_in_std.tolist(), found.inside.tolist()
        ([0.5], [1.0])
    """
    difference, (_, predicted) = match.difference, match.both
    after = predicted.times > predicted.times[0]
    bounds, shape = predicted.bounds, (-1, *difference.shape[1:])
    in_std = inside = None
    # what has no noise at all, as the number of steps, has no band either: rounding would count
    certain = _certain(predicted)
    if predicted.std is not None:
        std, own = predicted.std, predicted.error
        std = (std if own is None else torch.hypot(std, own)).reshape(shape)
        in_std, _ = largest_of(
            (difference[part].abs() / _of(std, part).clamp_min(1e-300)).flatten(0, 1)
            for part in blocks(difference)
        )
        in_std[certain] = torch.nan
    # a measured start is on its prediction, and the band has no width before time passes
    if bounds is not None and bool(after.any()):
        values, low, high = (x.reshape(shape) for x in (predicted.values, *bounds))
        within, known = values.new_zeros(shape[-1]), values.new_zeros(shape[-1])
        for part in blocks(difference):
            at, centre, counts = difference[part], _of(values, part), after[part[1]]
            least, most = (_of(end, part) - centre for end in (low, high))
            within += ((at >= least) & (at <= most))[:, counts].sum((0, 1))
            # where one of them is NaN there is no band, or nothing measured
            known += (~(at + least + most).isnan())[:, counts].sum((0, 1))
        inside = within / known
        inside[certain] = torch.nan
    return InBand(in_std, inside)


def _of(predicted: Float[Tensor, "_ T k"], part: tuple[slice, slice]) -> Float[Tensor, "_ _ k"]:
    """What is predicted for some runs and times, or of the one prediction for all runs."""
    return predicted[part] if len(predicted) > 1 else predicted[:, part[1]]


def _certain(predicted: Trajectory) -> Bool[Tensor, " k"]:
    """The statistics that are predicted without any deviation at all times after the first."""
    if predicted.std is None or predicted.error is not None or len(predicted) < 2:
        return torch.zeros(predicted.values.shape[-1], dtype=torch.bool)
    after = predicted.std[..., 1:, :].reshape(-1, predicted.std.shape[-1])
    return (after == 0).all(0)

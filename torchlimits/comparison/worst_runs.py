"""`WorstRuns`: of runs from different starts, those that are predicted worst."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from torchlimits.comparison.largest import blocks, largest_of
from torchlimits.comparison.match import Match, share_start


@dataclass(frozen=True, eq=False)
class WorstRuns:
    """The run with the largest difference for each statistic, where starts differ.

    Attributes:
        run: its number, counted from 0 over all leading dimensions, shape ``(k,)``.
        measured, predicted: its values at the last time, ``(k,)``.
        difference: its largest |measured - predicted| at any time, ``(k,)``.
        time: when that was, ``(k,)``.
    """

    run: Int[Tensor, " k"]
    measured: Float[Tensor, " k"]
    predicted: Float[Tensor, " k"]
    difference: Float[Tensor, " k"]
    time: Float[Tensor, " k"]


def worst_runs(match: Match) -> WorstRuns | None:
    """The run with the largest difference for each statistic; None where all have one start.

    Args:
        match: both sides, at the same times.

    Example:
        >>> import torch
        >>> from torchlimits.comparison.match import matched
        >>> from torchlimits.trajectory import Trajectory
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 9])
        >>> runs = torch.tensor([[[0.0], [0.5]], [[1.0], [3.0]]])
        >>> ours, theirs = (Trajectory(times, steps, x, ["m"]) for x in (runs, 0 * runs))
        >>> worst_runs(matched(ours, theirs)).run.tolist()
        [1]
    """
    measured, predicted = match.both
    if share_start(measured):
        return None
    k = len(match.names)
    ours, theirs = (path.final.reshape(-1, k) for path in (measured, predicted))
    apart = match.difference
    worst, place = largest_of(apart[part].abs().flatten(0, 1) for part in blocks(apart))
    times = measured.times
    run = place // len(times)
    return WorstRuns(
        run=run,
        measured=ours.gather(0, run[None])[0],
        predicted=theirs.expand_as(ours).gather(0, run[None])[0],
        difference=worst,
        time=times[place % len(times)],
    )

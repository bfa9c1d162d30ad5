"""Which runs of a measured and a predicted trajectory a figure draws in which row."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison.match import Match, share_start
from torchlimits.trajectory import Trajectory

_MOST_ROWS = 4


@dataclass(frozen=True)
class Row:
    """What one row of panels shows."""

    label: str
    measured: Curves | None
    predicted: Curves | None


@dataclass(frozen=True)
class Curves:
    """The curves of one side in one row: those of one run, or means over several.

    Attributes:
        times, values, names: as those of a trajectory of one run.
        band: one standard error below and above (measured), or the predicted band.
        samples: paths of the predicted law, ``(M, T, k)``.
        humped: the statistics whose law has more than one hump.
        runs: how many runs are averaged.
    """

    times: Float[Tensor, " T"]
    values: Float[Tensor, "T k"]
    band: tuple[Float[Tensor, "T k"], Float[Tensor, "T k"]] | None
    names: list[str]
    samples: Float[Tensor, "M T k"] | None = None
    humped: frozenset[str] = frozenset()
    runs: int = 1


def rows_of(match: Match) -> list[Row]:
    """One row of means where all runs share their start; otherwise one for each of a few runs."""
    measured, predicted = match.sides.get("measured"), match.sides.get("predicted")
    first = next(iter(match.sides.values()))
    if share_start(first):
        humped = _humped(match, 0)
        return [Row("", _mean(measured, error=True), _mean(predicted, humped, error=False))]
    return [
        Row(f"run {run}", _one(measured, run), _one(predicted, run, _humped(match, run)))
        for run in range(min(first.runs, _MOST_ROWS))
    ]


def _flat(values: Float[Tensor, "*runs T k"]) -> Float[Tensor, "flat T k"]:
    return values.reshape(-1, *values.shape[-2:])


def _humped(match: Match, number: int) -> frozenset[str]:
    """The statistics whose law, as it is predicted for a run, has more than one hump."""
    predicted = match.sides.get("predicted")
    run = number if predicted is not None and predicted.runs > 1 else 0
    return frozenset(one.name for one in match.humps if one.run == run)


def _mean(
    path: Trajectory | None, humped: frozenset[str] = frozenset(), *, error: bool
) -> Curves | None:
    if path is None or path.runs == 1:
        return _one(path, 0, humped)
    values = _flat(path.values)
    mean, band = values.mean(dim=0), None
    if error:
        spread = values.std(dim=0) / len(values) ** 0.5
        band = mean - spread, mean + spread
    elif path.bounds is not None:
        low, high = path.bounds
        band = _flat(low).mean(dim=0), _flat(high).mean(dim=0)
    return Curves(path.times, mean, band, list(path.names), runs=len(values))


def _one(
    path: Trajectory | None, number: int, humped: frozenset[str] = frozenset()
) -> Curves | None:
    if path is None:
        return None
    run = path.run(0 if path.runs == 1 else number)
    return Curves(run.times, run.values, run.bounds, list(run.names), run.samples, humped)

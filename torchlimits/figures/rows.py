"""Which runs of a measured and a predicted trajectory a figure draws in which row."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison import Match, share_start
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
    """The curves of one side in one row: those of one run, or means over several."""

    times: Float[Tensor, " T"]
    values: Float[Tensor, "T k"]
    spread: Float[Tensor, "T k"] | None  # standard error (measured), standard deviation (predicted)
    names: list[str]
    runs: int = 1


def rows_of(match: Match) -> list[Row]:
    """One row of means where all runs share their start; otherwise one for each of a few runs."""
    measured, predicted = match.sides.get("measured"), match.sides.get("predicted")
    first = next(iter(match.sides.values()))
    if share_start(first):
        return [Row("", _mean(measured, error=True), _mean(predicted, error=False))]
    return [
        Row(f"run {run}", _one(measured, run), _one(predicted, run))
        for run in range(min(first.runs, _MOST_ROWS))
    ]


def _flat(values: Float[Tensor, "*runs T k"]) -> Float[Tensor, "flat T k"]:
    return values.reshape(-1, *values.shape[-2:])


def _mean(path: Trajectory | None, *, error: bool) -> Curves | None:
    if path is None:
        return None
    values = _flat(path.values)
    spread = None
    if error and len(values) > 1:
        spread = values.std(dim=0) / len(values) ** 0.5
    elif not error and path.std is not None:
        spread = _flat(path.std).mean(dim=0)
    return Curves(path.times, values.mean(dim=0), spread, list(path.names), len(values))


def _one(path: Trajectory | None, run: int) -> Curves | None:
    if path is None:
        return None
    run = 0 if path.runs == 1 else run
    spread = None if path.std is None else _flat(path.std)[run]
    return Curves(path.times, _flat(path.values)[run], spread, list(path.names))

"""Measured against predicted: which statistics match, and how far they are apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from torchlimits import _text
from torchlimits.trajectory import BAND, Trajectory

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found, an entry for each statistic; print it, or show `table()` with rich.

    Attributes:
        names: the k statistics that both sides have, in the measured order.
        measured, predicted: their values at the last time, means over the runs, shape ``(k,)``.
        standard_error: of ``measured``, from the spread of (measured - predicted) over the runs;
            NaN for one run.
        sup_difference: largest |mean over runs of (measured - predicted)| at any time, ``(k,)``.
        sup_time: when that was, ``(k,)``.
        sup_standard_error: standard error of the difference there; NaN for one run.
        sup_in_std: the largest |difference| in predicted standard deviations, or None without a
            band.
        inside: the share of the rows (and runs) in which measured values are inside the predicted
            95 % band, of those after the time of the start; None without a band or such rows.
        runs: how many runs.
        unmatched: the statistics that only one side has, by side: ``"measured"``,
            ``"predicted"``.

    Example:
        >>> import torch
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 10])
        >>> values = torch.tensor([[1.0, 1.0], [2.5, 3.0]])
        >>> measured = Trajectory(times, steps, values, ["m", "r2"])
        >>> found = compare(measured, Trajectory(times, steps, values / 2, ["m", "r2"]))
        >>> found.worst, found.sup_difference.tolist(), found.table().row_count
        ('r2', [1.25, 1.5], 2)
        >>> found.to_pandas().sup_difference.to_dict()
        {'m': 1.25, 'r2': 1.5}
    """

    names: list[str]
    measured: Float[Tensor, " k"]
    predicted: Float[Tensor, " k"]
    standard_error: Float[Tensor, " k"]
    sup_difference: Float[Tensor, " k"]
    sup_time: Float[Tensor, " k"]
    sup_standard_error: Float[Tensor, " k"]
    sup_in_std: Float[Tensor, " k"] | None
    inside: Float[Tensor, " k"] | None
    runs: int
    unmatched: dict[str, list[str]]

    @property
    def worst(self) -> str:
        """The statistic with the largest difference."""
        return self.names[int(self.sup_difference.argmax())]

    def to_pandas(self) -> pandas.DataFrame:
        """A table with one row for each statistic; needs pandas.

        Returns:
            The index ``statistic``, and a column for each of the numbers that the attributes hold
            for every statistic, under the attribute's name.

        Raises:
            ImportError: without pandas.
        """
        import pandas

        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        numbers = {name: x.numpy() for name, x in columns.items() if isinstance(x, Tensor)}
        return pandas.DataFrame(numbers, index=pandas.Index(self.names, name="statistic"))

    def table(self) -> Table:
        """The rich table that holds what ``print`` shows."""
        header, *rows = self._cells()
        # 80 characters hold it, with a band too
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        table.title_justify = table.caption_justify = "left"
        table.title = "measured against predicted" + f", mean of {self.runs} runs" * (self.runs > 1)
        table.caption = escape("\n".join(unmatched_lines(self.unmatched))) or None
        for i, column in enumerate(header):
            width = max(len(row[i]) for row in rows)
            table.add_column(column, justify="right" if i else "left", min_width=width)
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return "\n".join([_text.table(self._cells()), *unmatched_lines(self.unmatched)])

    def _cells(self) -> list[list[str]]:
        """The header and a row for each statistic."""
        header = ["statistic", "measured, end", "predicted, end", "sup |difference|", "at t"]
        rows = [
            [
                name,
                _number(self.measured[i], self.standard_error[i]),
                f"{self.predicted[i]:.4f}",
                _number(self.sup_difference[i], self.sup_standard_error[i]),
                f"{self.sup_time[i]:.3g}",
            ]
            for i, name in enumerate(self.names)
        ]
        if self.sup_in_std is not None:
            header.append("in sd")
            for row, value in zip(rows, self.sup_in_std, strict=True):
                row.append(f"{value:.2f}")
        if self.inside is not None:
            header.append("in 95 %")
            for row, value in zip(rows, self.inside, strict=True):
                row.append(f"{100 * value:.0f} %")
        return [header, *rows]


def compare(measured: Trajectory, predicted: Trajectory) -> Comparison:
    """Compare two trajectories at the same times, statistic by statistic.

    Statistics match by name, whatever their order; those that only one side has are listed. Runs
    (leading dimensions) are averaged; a prediction without runs is compared with each. Each run
    may have a start and so a prediction of its own: the standard errors are those of the
    differences, run by run.

    Args:
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)``, one run for each measured one or one for all.

    Raises:
        ValueError: if no statistic is in both, a trajectory is empty, or the times or the numbers
            of runs differ.
        TypeError: if an argument is not a `Trajectory`.

    Example:
        >>> import torch
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 10])
        >>> measured = Trajectory(times, steps, torch.tensor([[1.0], [2.5]]), ["m"])
        >>> predicted = Trajectory(times, steps, torch.tensor([[1.0], [2.0]]), ["m"])
        >>> print(compare(measured, predicted))
        statistic  measured, end  predicted, end  sup |difference|  at t
        m                 2.5000          2.0000            0.5000     1
    """
    for side, path in (("measured", measured), ("predicted", predicted)):
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected {side} as a Trajectory, got {type(path).__name__}")
    match = matched(measured, predicted)
    if not match.comparable:
        raise ValueError(
            f"expected the same times, got {len(measured)} and {len(predicted)} of them: "
            "predict with dynamics.solve(measured.initial, measured.times)"
        )
    difference, k = match.difference(), len(match.names)
    runs = len(difference)
    mean = difference.mean(dim=0)
    error = difference.std(dim=0) / runs**0.5 if runs > 1 else torch.full_like(mean, torch.nan)
    sup, at = mean.abs().max(dim=0)
    in_std, inside = _in_band(difference, predicted.select(match.names))
    return Comparison(
        names=match.names,
        measured=measured.select(match.names).final.reshape(-1, k).mean(dim=0),
        predicted=predicted.select(match.names).final.reshape(-1, k).mean(dim=0),
        standard_error=error[-1],
        sup_difference=sup,
        sup_time=measured.times[at],
        sup_standard_error=error.gather(0, at[None])[0],
        sup_in_std=in_std,
        inside=inside,
        runs=runs,
        unmatched=match.unmatched,
    )


def _in_band(
    difference: Float[Tensor, "runs T k"], predicted: Trajectory
) -> tuple[Float[Tensor, " k"] | None, Float[Tensor, " k"] | None]:
    """The largest difference in predicted deviations, and the share inside the 95 % band."""
    if predicted.std is None:
        return None, None
    std = predicted.std.reshape(-1, *difference.shape[1:])
    scaled = (difference.abs() / std.clamp_min(1e-300)).nan_to_num(0.0)
    # a measured start is on its prediction, and the band has no width before time passes
    after = predicted.times > predicted.times[0]
    inside = (scaled[:, after] <= BAND).double().mean((0, 1)) if bool(after.any()) else None
    return scaled.amax((0, 1)), inside


# --- which statistics match ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Match:
    """A measured trajectory beside a predicted one, or one of them alone; made by `matched`.

    Attributes:
        sides: the trajectories given, under ``"measured"`` and ``"predicted"``.
        names: the statistics that both sides have, in the measured order.
        unmatched: the statistics that only one of two sides has, by side.
    """

    sides: dict[str, Trajectory]
    names: list[str]
    unmatched: dict[str, list[str]]

    @property
    def all_names(self) -> list[str]:
        """Every statistic: the measured ones in their order, then those that are predicted only."""
        return list(dict.fromkeys(name for path in self.sides.values() for name in path.names))

    @property
    def comparable(self) -> bool:
        """Whether both sides are given, at the same times."""
        if len(self.sides) < 2:
            return False
        ours, theirs = (path.times for path in self.sides.values())
        return len(ours) == len(theirs) and torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    def difference(self) -> Float[Tensor, "runs T k"]:
        """Measured minus predicted, for each run and each of ``names``."""
        paths = [path.select(self.names) for path in self.sides.values()]
        ours, theirs = (path.values.reshape(-1, *path.values.shape[-2:]) for path in paths)
        return ours - theirs


def matched(measured: object, predicted: object) -> Match:
    """Which statistics match: the one rule of `compare`, `tensorboard.write` and `figures.overlay`.

    They match by name, whatever their order.

    Args:
        measured, predicted: a `Trajectory` each, one of which may be None.

    Raises:
        ValueError: if neither is given, one is empty, no statistic is in both, or there is not
            one predicted run for each measured one or one for all.
        TypeError: if an argument is not a `Trajectory`.

    Example:
        >>> times, steps, u = torch.tensor([0.0]), torch.tensor([0]), torch.zeros(1, 2)
        >>> ours = Trajectory(times, steps, u, ["m", "r"])
        >>> match = matched(ours, Trajectory(times, steps, u, ["v", "m"]))
        >>> match.names, match.unmatched, match.all_names
        (['m'], {'measured': ['r'], 'predicted': ['v']}, ['m', 'r', 'v'])
    """
    sides: dict[str, Trajectory] = {}
    for side, path in (("measured", measured), ("predicted", predicted)):
        if path is None:
            continue
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected {side} as a Trajectory, got {type(path).__name__}")
        if not len(path) or not path.names or not path.runs:
            raise ValueError(f"expected {side} to hold values, got {path!r}: record a step first")
        sides[side] = path
    if not sides:
        raise ValueError("expected a measured or a predicted trajectory, got neither: give one")
    if len(sides) < 2:
        return Match(sides, [], {})
    ours, theirs = sides.values()
    if theirs.runs not in (1, ours.runs):
        raise ValueError(
            f"expected a prediction for each run or one for all, got {theirs.runs} for "
            f"{ours.runs} measured runs"
        )
    names = [name for name in ours.names if name in theirs.names]
    if not names:
        raise ValueError(
            f"expected statistics that are both measured and predicted, got {list(ours.names)} "
            f"measured and {list(theirs.names)} predicted: give them the same names"
        )
    only = {side: [n for n in path.names if n not in names] for side, path in sides.items()}
    return Match(sides, names, only)


def unmatched_lines(unmatched: dict[str, list[str]]) -> list[str]:
    """A line for each side that has statistics of its own."""
    return [f"{side} only: {', '.join(names)}" for side, names in unmatched.items() if names]


def _number(value: Tensor, error: Tensor) -> str:
    return f"{value:.4f}" + ("" if torch.isnan(error) else f" ± {error:.4f}")

"""`compare`: measured against predicted, statistic by statistic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from torchlimits import _text
from torchlimits.trajectory import BAND, Trajectory


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found, one entry a statistic; print it, or show `table()` with rich.

    Attributes:
        names: the k statistics.
        measured, predicted: their values at the last time, means over the runs, shape ``(k,)``.
        standard_error: of ``measured``, from the spread of (measured - predicted) over the runs;
            NaN for one run.
        sup_difference: largest |mean over runs of (measured - predicted)| at any time, ``(k,)``.
        sup_time: when that was, ``(k,)``.
        sup_standard_error: standard error of the difference there; NaN for one run.
        sup_in_std: the largest |difference| in predicted standard deviations, or None without a
            band.
        inside: the share of time (and runs) that the measured values are inside the predicted 95 %
            band, after the start; None without a band.
        runs: how many runs.

    Example:
        >>> import torch
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 10])
        >>> values = torch.tensor([[1.0, 1.0], [2.5, 3.0]])
        >>> measured = Trajectory(times, steps, values, ["m", "r2"])
        >>> found = compare(measured, Trajectory(times, steps, values / 2, ["m", "r2"]))
        >>> found.worst, found.sup_difference.tolist(), found.table().row_count
        ('r2', [1.25, 1.5], 2)
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

    @property
    def worst(self) -> str:
        """The statistic with the largest difference."""
        return self.names[int(self.sup_difference.argmax())]

    def table(self) -> Table:
        """A rich table."""
        title = "measured against predicted" + (f", mean of {self.runs} runs" * (self.runs > 1))
        header, *rows = self._cells()
        # 80 characters hold it, with a band too
        table = Table(
            title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, show_edge=False
        )
        for i, column in enumerate(header):
            width = max(len(row[i]) for row in rows)
            table.add_column(column, justify="right" if i else "left", min_width=width)
        for row in rows:
            table.add_row(*map(escape, row))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return _text.table(self._cells())

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
    """Compare two trajectories of the same statistics at the same times.

    Runs (leading dimensions) are averaged; a prediction without runs is compared with each. Each
    run may have a start and so a prediction of its own: the standard errors are those of the
    differences, run by run.

    Args:
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)`` or ``(T, k)``.

    Raises:
        ValueError: if the statistics, the times or the runs differ.

    Example:
        >>> import torch
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 10])
        >>> measured = Trajectory(times, steps, torch.tensor([[1.0], [2.5]]), ["m"])
        >>> predicted = Trajectory(times, steps, torch.tensor([[1.0], [2.0]]), ["m"])
        >>> print(compare(measured, predicted))
        statistic  measured, end  predicted, end  sup |difference|  at t
        m                 2.5000          2.0000            0.5000     1
    """
    _check_alike(measured, predicted)
    k = len(measured.names)
    difference = (measured.values - predicted.values).reshape(-1, len(measured), k)
    runs = len(difference)
    mean = difference.mean(dim=0)
    error = difference.std(dim=0) / runs**0.5 if runs > 1 else torch.full_like(mean, torch.nan)
    sup, at = mean.abs().max(dim=0)
    in_std = inside = None
    if predicted.std is not None:
        scaled = (measured.values - predicted.values).abs() / predicted.std.clamp_min(1e-300)
        scaled = scaled.nan_to_num(0.0).reshape(-1, len(measured), k)
        in_std = scaled.amax((0, 1))
        # a measured start is on its prediction
        inside = (scaled[:, 1:] <= BAND).double().mean((0, 1)) if len(measured) > 1 else None
    return Comparison(
        names=list(measured.names),
        measured=measured.final.reshape(-1, k).mean(dim=0),
        predicted=predicted.final.reshape(-1, k).mean(dim=0),
        standard_error=error[-1],
        sup_difference=sup,
        sup_time=measured.times[at],
        sup_standard_error=error.gather(0, at[None])[0],
        sup_in_std=in_std,
        inside=inside,
        runs=runs,
    )


def _check_alike(measured: Trajectory, predicted: Trajectory) -> None:
    for path in (measured, predicted):
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected two trajectories, got {type(path).__name__}")
    if list(measured.names) != list(predicted.names):
        missing = sorted(set(measured.names) ^ set(predicted.names))
        raise ValueError(
            "expected the same statistics in the same order, "
            f"got {'other ones' if missing else 'another order'}: {missing or predicted.names}"
        )
    same_times = len(measured) == len(predicted) and torch.allclose(
        measured.times, predicted.times, rtol=1e-9, atol=1e-12
    )
    if not same_times:
        raise ValueError(
            f"expected the same times, got {len(measured)} and {len(predicted)} of them: "
            "predict with dynamics.solve(measured.initial, measured.times)"
        )
    if predicted.runs != 1 and predicted.values.shape != measured.values.shape:
        raise ValueError(
            f"expected a prediction for each run or one for all, got values of shape "
            f"{tuple(predicted.values.shape)} for {tuple(measured.values.shape)}"
        )


def _number(value: Tensor, error: Tensor) -> str:
    return f"{value:.4f}" + ("" if torch.isnan(error) else f" ± {error:.4f}")

"""Measured against predicted: how far they are apart, and whether runs are within the band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits._text import Table, Tabular
from torchlimits.comparison.law_check import LEAST_RUNS, TwoHumps, law_distance, several_humps
from torchlimits.comparison.match import matched, share_start, unmatched_lines
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas
    from rich.table import Table as RichTable

#: so many statistics whose law has several humps are told one by one
_HUMPS = 4


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


@dataclass(frozen=True, eq=False)
class Comparison(Tabular):
    """What `compare` found, with an entry for each statistic; print it, with rich too, or show it.

    The table explains its columns beneath, and folds in a narrow terminal. Runs from one start are
    averaged. Of runs from different starts, whose means would tell little, the table shows for each
    statistic the run that is worst predicted, beside the mean difference.

    Attributes:
        names: the k statistics that both sides have, in the measured order.
        measured, predicted: their values at the last time, means over the runs, shape ``(k,)``.
        standard_error: of ``measured``, from the spread of (measured - predicted) over the runs;
            NaN for one run.
        sup_difference: largest |mean over runs of (measured - predicted)| at any time, ``(k,)``.
        sup_time: when that was, ``(k,)``.
        sup_standard_error: standard error of the difference there, with that of the prediction
            where it is an estimate itself; NaN for one run and an exact prediction.
        predicted_error: standard error of ``predicted`` (`Trajectory.error`), or None where it is
            exact.
        sup_in_std: the largest |difference| in predicted standard deviations, or None without a
            band.
        inside: the share of the rows (and runs) in which measured values are inside the predicted
            band (`Trajectory.bounds`), of those after the time of the start; None without a band or
            such rows.
        level: the probability of the band, 0.95 unless the prediction says otherwise.
        law_distance: the largest Kolmogorov-Smirnov distance, at any time, between the runs and
            the law predicted for them: of their probability-integral transforms from the uniform
            law; None without a law's ``samples`` or with fewer than 5 runs.
        usual_distance: what that distance stays below in 95 % of cases if the law is right.
        humps: the statistics whose predicted law has more than one hump (Hartigan's dip), where
            means, deviations and curves tell little.
        runs: how many runs.
        unmatched: the statistics that only one side has, by side: ``"measured"``,
            ``"predicted"``.
        worst_runs: the run with the largest difference, for each statistic: ``run``, ``measured``,
            ``predicted``, ``difference``, ``time``; None for one run, or runs from one start.

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
    worst_runs: WorstRuns | None = None
    predicted_error: Float[Tensor, " k"] | None = None
    level: float = 0.95
    law_distance: Float[Tensor, " k"] | None = None
    usual_distance: Float[Tensor, " k"] | None = None
    humps: Sequence[TwoHumps] = ()

    @property
    def worst(self) -> str:
        """The statistic with the largest difference."""
        return self.names[int(self.sup_difference.argmax())]

    def to_pandas(self) -> pandas.DataFrame:
        """A table with one row for each statistic; needs pandas.

        Returns:
            The index ``statistic``, and a column for each of the numbers that the attributes hold
            for every statistic, under the attribute's name; those of ``worst_runs`` as
            ``worst_run``, ``worst_measured`` ...

        Raises:
            ImportError: without pandas.
        """
        import pandas

        columns = dict(vars(self))
        if self.worst_runs is not None:
            columns |= {f"worst_{name}": x for name, x in vars(self.worst_runs).items()}
        numbers = {name: x.numpy() for name, x in columns.items() if isinstance(x, Tensor)}
        return pandas.DataFrame(numbers, index=pandas.Index(self.names, name="statistic"))

    def table(self) -> RichTable:
        """The rich table, to be put beside others; only a printed comparison folds."""
        return self._table().rich()

    def _table(self) -> Table:
        mean = f", mean of {self.runs} runs" * (self.runs > 1)
        if self.worst_runs is None:
            rows, notes = self._of_means()
            below = [f"all {self.runs} runs have one start"] if self.runs > 1 else []
        else:
            rows, notes = self._of_worst_runs(self.worst_runs)
            mean, below = f", the worst of {self.runs} runs from different starts", []
        if self.sup_in_std is not None:
            rows[0].append("in sd")
            notes["in sd"] = "largest difference of any run in its predicted standard deviations"
            for row, value in zip(rows[1:], self.sup_in_std, strict=True):
                row.append("" if torch.isnan(value) else f"{value:.2f}")
        if self.inside is not None:
            title, runs = f"in {100 * self.level:g} %", " and runs" * (self.runs > 1)
            rows[0].append(title)
            notes[title] = f"share of the times{runs} measured within the predicted "
            notes[title] += f"{100 * self.level:g} % band"
            for row, value in zip(rows[1:], self.inside, strict=True):
                row.append("" if torch.isnan(value) else f"{100 * value:.0f} %")
        if self.law_distance is not None and self.usual_distance is not None:
            rows[0] += ["KS", "usual"]
            notes["KS"] = (
                "Kolmogorov-Smirnov distance of the runs from the predicted law, largest at any "
                "time"
            )
            notes["usual"] = "what it stays below in 95 % of cases if the law is right"
            distances = zip(self.law_distance, self.usual_distance, strict=True)
            for row, pair in zip(rows[1:], distances, strict=True):
                row += ["" if torch.isnan(x) else f"{x:.2f}" for x in pair]
        below += [*self._hump_lines(), *unmatched_lines(self.unmatched)]
        return Table(rows, notes, f"measured against predicted{mean}", below)

    def _hump_lines(self) -> list[str]:
        """Which laws have more than one hump, in words."""
        if not self.humps:
            return []
        several = len({one.run for one in self.humps}) > 1
        told = [f"{f'run {one.run}, ' * several}{one}" for one in self.humps[:_HUMPS]]
        more = len(self.humps) - len(told)
        lines = [
            "the predicted law has more than one hump: runs part, and no single curve or deviation "
            "stands for them:",
            *(f"  {one}" for one in told),
        ]
        return [*lines, f"  and {more} more statistics"] if more else lines

    def _of_means(self) -> tuple[list[list[str]], dict[str, str]]:
        """Rows and explanations of the means over all runs, or of the one run."""
        several, error = self.runs > 1, " ± standard error" * (self.runs > 1)
        estimated = " ± standard error" * (self.predicted_error is not None)
        notes = {
            "measured, end": f"{'mean over the runs' if several else 'value'} at the last time"
            + error,
            "predicted, end": f"what theory says there{estimated}",
            "sup |difference|": "largest |measured - predicted|"
            + " of the means over the runs" * several
            + (error or estimated),
            "at t": "the limit time (sum of the learning rates) of that difference",
        }
        rows = [
            [
                name,
                _number(self.measured[i], self.standard_error[i]),
                self._predicted(i),
                _number(self.sup_difference[i], self.sup_standard_error[i]),
                f"{self.sup_time[i]:.3g}",
            ]
            for i, name in enumerate(self.names)
        ]
        return [["statistic", *notes], *rows], notes

    def _predicted(self, i: int) -> str:
        error = self.predicted_error
        return f"{self.predicted[i]:.4f}" if error is None else _number(self.predicted[i], error[i])

    def _of_worst_runs(self, worst: WorstRuns) -> tuple[list[list[str]], dict[str, str]]:
        """Rows and explanations of the run with the largest difference of each statistic."""
        notes = {
            "run": "the run with the largest difference, counted from 0",
            "measured, end": "its value at the last time",
            "predicted, end": "what theory says there, from that run's start",
            "sup |difference|": "its largest |measured - predicted|",
            "at t": "the limit time (sum of the learning rates) of that difference",
            "mean difference": "largest |mean over the runs of (measured - predicted)| at any time "
            "± standard error",
        }
        rows = [
            [
                name,
                str(int(worst.run[i])),
                f"{worst.measured[i]:.4f}",
                f"{worst.predicted[i]:.4f}",
                f"{worst.difference[i]:.4f}",
                f"{worst.time[i]:.3g}",
                _number(self.sup_difference[i], self.sup_standard_error[i]),
            ]
            for i, name in enumerate(self.names)
        ]
        return [["statistic", *notes], *rows], notes


def compare(measured: Trajectory, predicted: Trajectory) -> Comparison:
    """Compare two trajectories at the same times, statistic by statistic.

    Statistics match by name, whatever their order; those that only one side has are listed. Where
    one side has no value (NaN, as `Tracker.log` leaves it), there is no difference. Runs (leading
    dimensions) are averaged; a prediction without runs is compared with each. Each run may have a
    start, and so a prediction, of its own: the standard errors are those of the differences, run by
    run, and `Comparison.worst_runs` says which run is predicted worst.

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
        measured against predicted
        statistic  measured, end  predicted, end  sup |difference|  at t
        m                 2.5000          2.0000            0.5000     1
        <BLANKLINE>
        measured, end     value at the last time
        predicted, end    what theory says there
        sup |difference|  largest |measured - predicted|
        at t              the limit time (sum of the learning rates) of that difference
    """
    for side, path in (("measured", measured), ("predicted", predicted)):
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected {side} as a Trajectory, got {type(path).__name__}")
    match = matched(measured, predicted)
    measured, predicted = match.sides.values()
    if not match.comparable:
        raise ValueError(
            f"expected the same times, got {len(measured)} and {len(predicted)} of them: "
            "predict with dynamics.solve(measured.initial, measured.times)"
        )
    difference, k = match.difference(), len(match.names)
    runs = len(difference)
    mean = difference.mean(dim=0)
    error = difference.std(dim=0) / runs**0.5 if runs > 1 else torch.full_like(mean, torch.nan)
    theirs = predicted.select(match.names)
    # estimates from one set of samples err together
    own = None if theirs.error is None else theirs.error.reshape(-1, *mean.shape).mean(dim=0)
    whole = error if own is None else torch.hypot(own, error.nan_to_num(0.0))
    sup, at = _largest(mean.abs())
    in_std, inside = _in_band(difference, theirs)
    ours = measured.select(match.names).values.reshape(-1, len(measured), k)
    ends = [path.select(match.names).final.reshape(-1, k) for path in (measured, predicted)]
    alike = share_start(measured.select(match.names))
    return Comparison(
        names=match.names,
        measured=ends[0].mean(dim=0),
        predicted=ends[1].mean(dim=0),
        standard_error=error[-1],
        sup_difference=sup,
        sup_time=measured.times[at],
        sup_standard_error=whole.gather(0, at[None])[0],
        predicted_error=None if own is None else own[-1],
        sup_in_std=in_std,
        inside=inside,
        runs=runs,
        unmatched=match.unmatched,
        worst_runs=None if alike else _worst_runs(difference, measured.times, *ends),
        level=float(predicted.metadata.get("law", {}).get("level", 0.95)),
        **_against_law(ours, theirs),
    )


def _against_law(ours: Float[Tensor, "runs T k"], law: Trajectory) -> dict[str, Any]:
    """How far runs are from a law that is told by samples, and where it has several humps."""
    if law.samples is None:
        return {}
    found: dict[str, Any] = {"humps": several_humps(law)}
    after = law.times > law.times[0]
    if len(ours) < LEAST_RUNS or not bool(after.any()):
        return found
    samples = law.samples.reshape(len(law.samples), -1, *ours.shape[1:])
    distance = law_distance(ours[:, after], samples[:, :, after])
    return {**found, "law_distance": distance.largest, "usual_distance": distance.usual}


def _largest(sizes: Float[Tensor, "T k"]) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The largest value of each column that is not NaN, if there is one, and its row."""
    rows = sizes.nan_to_num(nan=-1.0, posinf=torch.inf).argmax(dim=0)
    return sizes.gather(0, rows[None])[0], rows


def _worst_runs(
    difference: Float[Tensor, "runs T k"], times: Float[Tensor, " T"],
    measured: Float[Tensor, "runs k"], predicted: Float[Tensor, "any k"],
) -> WorstRuns:  # fmt: skip
    sizes = difference.abs()
    worst, place = _largest(sizes.flatten(0, 1))
    run = place // len(times)
    return WorstRuns(
        run,
        measured.gather(0, run[None])[0],
        predicted.expand_as(measured).gather(0, run[None])[0],
        worst,
        times[place % len(times)],
    )


def _in_band(
    difference: Float[Tensor, "runs T k"], predicted: Trajectory
) -> tuple[Float[Tensor, " k"] | None, Float[Tensor, " k"] | None]:
    """The largest difference in predicted deviations, and the share inside the 95 % band."""
    after = predicted.times > predicted.times[0]
    bounds, shape = predicted.bounds, (-1, *difference.shape[1:])
    in_std = inside = None
    if predicted.std is not None:
        own = torch.zeros_like(predicted.std) if predicted.error is None else predicted.error
        std = torch.hypot(predicted.std, own).reshape(shape)
        scaled = (difference.abs() / std.clamp_min(1e-300)).flatten(0, 1)
        in_std, _ = _largest(scaled)
    # a measured start is on its prediction, and the band has no width before time passes
    if bounds is not None and bool(after.any()):
        values = predicted.values.reshape(shape)
        low, high = (end.reshape(shape) - values for end in bounds)
        within = ((difference >= low) & (difference <= high)).double()
        # where one of them is NaN there is no band, or nothing measured
        within[(difference + low + high).isnan()] = torch.nan
        inside = within[:, after].nanmean((0, 1))
    return in_std, inside


def _number(value: Tensor, error: Tensor) -> str:
    return f"{value:.4f}" + ("" if torch.isnan(error) else f" ± {error:.4f}")

"""`compare`: measured against predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from torchlimits._text import Table, Tabular
from torchlimits.comparison.findings import Findings
from torchlimits.comparison.in_band import in_band
from torchlimits.comparison.law_distance import LEAST_RUNS, law_distance
from torchlimits.comparison.match import Match, matched
from torchlimits.comparison.means import means
from torchlimits.comparison.momentum_lag import momentum_lag
from torchlimits.comparison.table import table_of
from torchlimits.comparison.worst_runs import worst_runs
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas
    from rich.table import Table as RichTable


@dataclass(frozen=True, eq=False)
class Comparison(Findings, Tabular):
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
        momentum_lag: where the memory of a momentum of 0.9 or more is larger than the errors,
            so that the limit is not what is measured and `NextOrder` is to be asked; else None.
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
        return table_of(self)


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
    both = set(match.names)
    return Comparison(
        names=match.names,
        runs=len(match.difference),
        unmatched=match.unmatched,
        worst_runs=worst_runs(match),
        humps=[one for one in match.humps if one.name in both],
        momentum_lag=momentum_lag(match),
        level=float(predicted.metadata.get("law", {}).get("level", 0.95)),
        **vars(means(match)),
        **vars(in_band(match)),
        **_against_law(match),
    )


def _against_law(match: Match) -> dict[str, Float[Tensor, " k"]]:
    """How far runs are from a law that is told by samples."""
    measured, law = match.both
    after = law.times > law.times[0]
    if law.samples is None or measured.runs < LEAST_RUNS or not bool(after.any()):
        return {}
    ours = measured.values.reshape(-1, *measured.values.shape[-2:])
    samples = law.samples.reshape(len(law.samples), -1, *ours.shape[1:])
    distance = law_distance(ours[:, after], samples[:, :, after])
    return {"law_distance": distance.largest, "usual_distance": distance.usual}

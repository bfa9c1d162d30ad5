"""`table_of`: what a comparison found, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from torchlimits._text import Table
from torchlimits.comparison.findings import Findings
from torchlimits.comparison.match import unmatched_lines
from torchlimits.comparison.worst_runs import WorstRuns

#: so many statistics whose law has several humps are told one by one
_HUMPS = 4


def table_of(found: Findings) -> Table:
    """The table, with its columns explained, and what is to be said in words beneath.

    Args:
        found: what `torchlimits.compare` found.

    Example:
        >>> import torch
        >>> from torchlimits.comparison import compare
        >>> from torchlimits.trajectory import Trajectory
        >>> path = Trajectory(torch.zeros(1), torch.zeros(1), torch.ones(1, 1), ["m"])
        >>> table_of(compare(path, path)).rows[1]
        ['m', '1.0000', '1.0000', '0.0000', '0']
    """
    mean = f", mean of {found.runs} runs" * (found.runs > 1)
    if found.worst_runs is None:
        rows, notes = _of_means(found)
        below = [f"all {found.runs} runs have one start"] if found.runs > 1 else []
    else:
        rows, notes = _of_worst_runs(found, found.worst_runs)
        mean, below = f", the worst of {found.runs} runs from different starts", []
    for title, note, cells in _columns(found):
        notes[title] = note
        for row, cell in zip(rows, [title, *cells], strict=True):
            row.append(cell)
    below += [*_hump_lines(found), *unmatched_lines(found.unmatched)]
    below += [] if found.momentum_lag is None else [str(found.momentum_lag)]
    return Table(rows, notes, f"measured against predicted{mean}", below)


def _columns(found: Findings) -> Iterator[tuple[str, str, list[str]]]:
    """The further columns: title, explanation, and a cell for each statistic."""
    if found.sup_in_std is not None:
        note = "largest difference of any run in its predicted standard deviations"
        yield "in sd", note, _cells(found.sup_in_std, "{:.2f}")
    if found.inside is not None:
        level, runs = f"{100 * found.level:g} %", " and runs" * (found.runs > 1)
        note = f"share of the times{runs} measured within the predicted {level} band"
        yield f"in {level}", note, _cells(100 * found.inside, "{:.0f} %")
    if found.law_distance is not None and found.usual_distance is not None:
        note = "Kolmogorov-Smirnov distance of the runs from the predicted law, largest at any time"
        yield "KS", note, _cells(found.law_distance, "{:.2f}")
        note = "what it stays below in 95 % of cases if the law is right"
        yield "usual", note, _cells(found.usual_distance, "{:.2f}")


def _cells(values: Tensor, form: str) -> list[str]:
    """The values as text, and nothing where there is none."""
    return ["" if value != value else form.format(value) for value in values.tolist()]


def _of_means(found: Findings) -> tuple[list[list[str]], dict[str, str]]:
    """Rows and explanations of the means over all runs, or of the one run."""
    several, error = found.runs > 1, " ± standard error" * (found.runs > 1)
    estimated = " ± standard error" * (found.predicted_error is not None)
    notes = {
        "measured, end": f"{'mean over the runs' if several else 'value'} at the last time" + error,
        "predicted, end": f"what theory says there{estimated}",
        "sup |difference|": "largest |measured - predicted|"
        + " of the means over the runs" * several
        + (error or estimated),
        "at t": "the limit time (sum of the learning rates) of that difference",
    }
    columns = (
        found.names,
        _numbers(found.measured, found.standard_error),
        _numbers(found.predicted, found.predicted_error),
        _numbers(found.sup_difference, found.sup_standard_error),
        [f"{time:.3g}" for time in found.sup_time.tolist()],
    )
    rows = [[*row] for row in zip(*columns, strict=True)]
    return [["statistic", *notes], *rows], notes


def _of_worst_runs(found: Findings, worst: WorstRuns) -> tuple[list[list[str]], dict[str, str]]:
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
    columns = (
        found.names,
        map(str, worst.run.tolist()),
        *(_numbers(x) for x in (worst.measured, worst.predicted, worst.difference)),
        [f"{time:.3g}" for time in worst.time.tolist()],
        _numbers(found.sup_difference, found.sup_standard_error),
    )
    rows = [[*row] for row in zip(*columns, strict=True)]
    return [["statistic", *notes], *rows], notes


def _hump_lines(found: Findings) -> list[str]:
    """Which laws have more than one hump, in words."""
    if not found.humps:
        return []
    several = len({one.run for one in found.humps}) > 1
    told = [f"{f'run {one.run}, ' * several}{one}" for one in found.humps[:_HUMPS]]
    more = len(found.humps) - len(told)
    lines = [
        "the predicted law has more than one hump: runs part, and no single curve or deviation "
        "stands for them:",
        *(f"  {one}" for one in told),
    ]
    return [*lines, f"  and {more} more statistics"] if more else lines


def _numbers(values: Tensor, errors: Tensor | None = None) -> list[str]:
    """Values with their errors, where there are some."""
    if errors is None:
        return [f"{value:.4f}" for value in values.tolist()]
    pairs = zip(values.tolist(), errors.tolist(), strict=True)
    return [f"{x:.4f}" + ("" if math.isnan(e) else f" ± {e:.4f}") for x, e in pairs]

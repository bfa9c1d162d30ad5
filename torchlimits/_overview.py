"""What a notebook shows of values along time: each statistic's start, end and range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchlimits._text import Table

#: at most so many statistics are listed
_SHOWN = 30


def overview(title: str, names: Sequence[str], values: np.ndarray) -> Table:
    """A row for each statistic; for several runs their range, and never an average.

    Args:
        title: above the table.
        names: of the k statistics.
        values: shape ``(runs, T, k)``; NaN where none was given.

    Example:
        >>> print(overview("two runs", ["m"], np.array([[[0.0], [2.0]], [[0.5], [-1.0]]])).text())
        two runs
        statistic      start       end  least  largest
        m          0 ... 0.5  -1 ... 2     -1        2
        <BLANKLINE>
        least    smallest value over all runs and times
        largest  largest value over all runs and times
    """
    runs, rows = len(values), [["statistic", "start", "end", "least", "largest"]]
    for i, name in enumerate(names[:_SHOWN] if values.size else ()):
        one = values[..., i]
        there = one[~np.isnan(one)]
        parts = (one[:, 0], one[:, -1], there.min(initial=np.inf), there.max(initial=-np.inf))
        rows.append([name, *(span(part, ".4g") for part in parts)])
    over = "over all runs and times" if runs > 1 else "at any time"
    notes = {"least": f"smallest value {over}", "largest": f"largest value {over}"}
    more = max(0, len(names) - _SHOWN)
    return Table(rows, notes, title, [f"... and {more} other statistics"] if more else [])


def span(values: np.ndarray | float, form: str) -> str:
    """The one value of all runs, or their smallest and largest values.

    Example:
        >>> span(np.array([0.5, 2.0]), ".2f"), span(1.0, ".4g")
        ('0.50 ... 2.00', '1')
    """
    low, high = f"{np.min(values):{form}}", f"{np.max(values):{form}}"
    return low if low == high else f"{low} ... {high}"

"""`table`: the one text table that results are printed as."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, prose: bool = False) -> str:
    """Rows of cells as text: the first column to the left, the others to the right.

    Args:
        rows: the header and one row for each entry, all of the same length.
        prose: whether the last column holds sentences, which begin below each other.

    Example:
        >>> print(table([["statistic", "u"], ["m", "0.25"]]))
        statistic     u
        m          0.25
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  ".join([*cells[:-1], row[-1]] if prose else cells))
    return "\n".join(lines)

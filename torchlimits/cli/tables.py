"""`laid_out`: rows of cells as wide as the terminal, without losing any."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchlimits import _text

if TYPE_CHECKING:
    from torchlimits.trajectory import Trajectory


def laid_out(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table, or where it is too wide, a block of lines for each row.

    Args:
        rows: the header, and one row for each entry.
        width: of the place; by default that of the terminal, and no limit where there is none.

    Example:
        >>> print(laid_out([["run", "rows"], ["0001", "12"]], width=8))
        run: 0001
          rows: 12
    """
    text = _text.table(rows)
    if width is None:
        if not sys.stdout.isatty():
            return text
        width = shutil.get_terminal_size().columns
    if max(map(len, text.splitlines())) <= width:
        return text
    header, *entries = rows
    blocks = [
        "\n".join(
            f"{'  ' * (i > 0)}{name}: {cell}"
            for i, (name, cell) in enumerate(zip(header, entry, strict=True))
        )
        for entry in entries
    ]
    return "\n".join(blocks)


def trajectory_rows(path: Trajectory) -> list[list[str]]:
    """Return a row for each statistic: its first and last value, and their range over the runs.

    Args:
        path: the trajectory.

    Example:
        >>> import torch
        >>> from torchlimits.trajectory import Trajectory
        >>> u = torch.tensor([[0.0], [0.5]])
        >>> trajectory_rows(Trajectory(torch.tensor([0.0, 1.0]), torch.tensor([0, 9]), u, ["m"]))
        [['statistic', 'at t = 0', 'at t = 1'], ['m', '0.0000', '0.5000']]
    """
    if not len(path):
        return [["statistic"], *([name] for name in path.names)]
    ends = [f"at t = {float(path.times[i]):g}" for i in (0, -1)]
    rows = [["statistic", *ends]]
    for name in path.names:
        values = path[name].reshape(-1, len(path))
        rows.append([name, *(_cell(values[:, i].tolist()) for i in (0, -1))])
    return rows


def _cell(values: Sequence[float]) -> str:
    """One value, or where the runs differ, the least and the greatest."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} ... {high}"

"""`laid_out`: rows of cells as wide as the terminal, without losing any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchlimits._overview import span
from torchlimits._text import Table, terminal_width

if TYPE_CHECKING:
    from torchlimits.trajectory import Trajectory


def laid_out(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Return a table that the terminal has room for, and that loses nothing.

    Args:
        rows: the header, and one row for each entry.
        width: the room there is; by default the terminal's, and no limit where there is none.

    Example:
        >>> print(laid_out([["run", "rows"], ["0001", "12"]], width=8))
        0001
          rows:
            12
    """
    return Table(rows).text(terminal_width() if width is None else width)


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
        rows.append([name, *(span(values[:, i].numpy(), ".4f") for i in (0, -1))])
    return rows

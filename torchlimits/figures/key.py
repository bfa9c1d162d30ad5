"""`Key`: what the dots, lines and shades of a figure are, above its panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import TextPath

from torchlimits.figures.axes import GREY
from torchlimits.figures.rows import Row
from torchlimits.trajectory import BAND, Trajectory

_SIZE = 9
#: beside each text, between columns and at both ends, in units of the letters' size
_HANDLE, _BETWEEN, _ENDS = 2.8, 2.0, 0.8
#: to the left of the key, the height of a line and of the least key, in inches
_LEFT, _LINE, _LEAST = 0.2, 0.205, 0.45


@dataclass(frozen=True)
class Key:
    """Entries in as many columns as fit into the figure.

    Attributes:
        entries: lines and patches with labels.
        columns: how many columns.
    """

    entries: Sequence[Line2D | Patch]
    columns: int

    @property
    def height(self) -> float:
        """The height in inches."""
        return max(_LEAST, 0.1 + _LINE * math.ceil(len(self.entries) / self.columns))

    def draw(self, figure: Figure, below: float) -> None:
        """Add the key to a figure, so many inches below its upper end."""
        width, height = figure.get_size_inches()
        figure.legend(
            handles=list(self.entries), loc="upper left", ncols=self.columns, fontsize=_SIZE,
            bbox_to_anchor=(_LEFT / width, 1 - below / height), frameon=False,
        )  # fmt: skip


def key_of(
    given: Sequence[Trajectory], rows: Sequence[Row], width: float, left_out: str = ""
) -> Key:
    """The key to what is drawn.

    Args:
        given: the trajectories.
        rows: what is drawn of them.
        width: of the figure, in inches.
        left_out: what else is to be said.

    Example:
        >>> import torch
        >>> from torchlimits.comparison.match import matched
        >>> from torchlimits.figures.rows import rows_of
        >>> path = Trajectory(torch.zeros(1), torch.zeros(1), torch.ones(1, 1), ["m"])
        >>> rows = rows_of(matched(path, path))
        >>> key_of([path, path], rows, 5.0).columns, key_of([path, path], rows, 1.0).columns
        (2, 1)
    """
    entries = _entries(given, rows)
    entries += [Line2D([], [], linestyle="none", label=left_out)] if left_out else []
    texts = [TextPath((0, 0), str(one.get_label()), size=_SIZE) for one in entries]
    widths = [_HANDLE * _SIZE + float(text.get_extents().width) for text in texts]
    columns = max(1, len(entries))
    while columns > 1 and _width(widths, columns) > 72 * (width - _LEFT):
        columns -= 1
    return Key(entries, columns)


def _width(widths: Sequence[float], columns: int) -> float:
    """The width of a legend in points; matplotlib fills its columns one after the other."""
    short, more = divmod(len(widths), columns)
    sizes = [short + 1] * more + [short] * (columns - more)
    left, total = list(widths), 0.0
    for size in sizes:
        total += max(left[:size])
        left = left[size:]
    return total + _SIZE * (_BETWEEN * (columns - 1) + _ENDS)


def _entries(given: Sequence[Trajectory], rows: Sequence[Row]) -> list[Line2D | Patch]:
    dots, line = rows[0].measured, rows[0].predicted
    entries: list[Line2D | Patch] = []
    if dots is not None:
        note = f", mean of {dots.runs} runs ± standard error" if dots.runs > 1 else ""
        if len(rows) < given[0].runs and len(rows) > 1:
            note = f", {len(rows)} of {given[0].runs} runs"
        mark = Line2D([], [], color=GREY, linestyle="none", label="measured" + note)
        mark.set(marker="o", markerfacecolor="white", markersize=4.5)
        entries.append(mark)
    if line is not None:
        entries.append(Line2D([], [], color=GREY, linewidth=1.6, label="predicted"))
        if line.band is not None:
            entries.append(Patch(color=GREY, alpha=0.2, label=_band(given[-1])))
        if any(row.predicted is not None and row.predicted.humped for row in rows):
            entries.append(Patch(color=GREY, alpha=0.55, label="density, several humps"))
    return entries


def _band(predicted: Trajectory) -> str:
    """What the shaded band is."""
    law = predicted.metadata.get("law")
    if predicted.lower is None or law is None:
        return f"± {BAND} predicted sd"
    kind = "predicted" if law.get("exact") else "approximate"
    return f"{100 * law['level']:g} % of the {kind} law"

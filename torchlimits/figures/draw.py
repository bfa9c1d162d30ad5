"""Figures of measured statistics over their prediction, made without pyplot's global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchlimits.comparison.match import Match, matched
from torchlimits.figures.axes import LEGEND_LINE, draw, dress, legend, legend_lines, share_y
from torchlimits.figures.key import Key, key_of
from torchlimits.figures.panels import MOST_PANELS, Panel, panels_of
from torchlimits.figures.rows import rows_of
from torchlimits.files.folder import prepared
from torchlimits.trajectory import Trajectory

_TITLE_KEYS = ("problem", "dim", "width", "order", "snr", "ridge", "step_size", "momentum")

# inches
_PANEL_WIDTH, _PANEL_HEIGHT = 2.75, 1.85
_LEFT, _RIGHT, _BOTTOM, _GAP = 0.85, 0.2, 0.5, 0.5
_LEGEND_TITLE = 0.32


def overlay(
    measured: Trajectory | None = None, predicted: Trajectory | None = None, *, max_points: int = 40
) -> Figure:
    r"""All statistics along limit time: measured as dots over predicted lines, bands shaded.

    Each family of statistics has its panels: ``v[i]`` one, ``m[i,j]`` one for each j, a symmetric
    ``R[i,j]`` one for the diagonal and one for the rest, and the entries of a parameter under its
    own name, ``head.1.weight[i,j]``, one. There are at most 24 panels, the first ones, as the key
    says, and 48 statistics in each, evenly spread among its own, as its title says:
    `Trajectory.select` shows others. Each first index has the same colour everywhere. Runs
    that share their start are averaged, with the standard error of the mean as error bars; runs
    with different starts, which may go to different fixed points, are drawn in rows of their own,
    the first four of them. Statistics match by name; those that only one side has are drawn without
    the other. Where a predicted law (``band="law"``) has more than one hump, its density is drawn
    behind the curves.

    Args:
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)``, one run for each measured one or one for all; its times
            may be different.
        max_points: how many dots are drawn for each statistic.

    Raises:
        ValueError: if neither is given, one is empty, no statistic is in both, or the numbers of
            runs do not fit.
        TypeError: if an argument is not a `Trajectory`.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 3, 50)
        >>> values = torch.stack([torch.exp(-t), 1 - torch.exp(-t)], dim=-1)
        >>> path = Trajectory(t, torch.arange(50), values, ["v[0]", "m[0,0]"])
        >>> [axes.get_title(loc="left") for axes in overlay(path, path).axes]
        ['$v_{0}$', '$m_{0,0}$']
    """
    return overlay_of(matched(measured, predicted), max_points=max_points)


def overlay_of(
    match: Match, *, max_points: int = 40, panels: Sequence[Panel] | None = None
) -> Figure:
    """The `overlay` of trajectories that are matched.

    Args:
        match: of them.
        max_points: as in `overlay`.
        panels: what is drawn; by default, all statistics.

    Example:
        >>> import torch
        >>> path = Trajectory(torch.zeros(1), torch.zeros(1), torch.ones(1, 1), ["m"])
        >>> len(overlay_of(matched(path, None)).axes)
        1
    """
    given, rows = list(match.sides.values()), rows_of(match)
    known = panels_of(match.all_names) if panels is None else panels
    panels = known[:MOST_PANELS]
    left_out = f"{len(panels)} of {len(known):,} panels" if len(panels) < len(known) else ""
    # in a page or a browser, text is too small beside more than three panels
    lines = math.ceil(len(panels) / (3 if len(rows) == 1 else 5))
    across = math.ceil(len(panels) / lines)
    names = max(legend_lines(panel) for panel in panels)
    title, width = _title(given), _width(across)
    key = key_of(given, rows, width, left_out)
    top = key.height + _LEGEND_TITLE + LEGEND_LINE * names + (0.25 if title else 0.0)
    figure, grid = _grid(len(rows), lines, across, names, top)
    for p, panel in enumerate(panels):
        # the panels of one run fill their lines from the left
        column = [grid[r * lines + p // across][p % across] for r in range(len(rows))]
        for axes, row in zip(column, rows, strict=True):
            draw(axes, panel, row, max_points)
            dress(axes)
            axes.set_ylabel(row.label if p == 0 else "", fontsize=9)
            axes.tick_params(labelbottom=lines > 1 or row is rows[-1])
        if p >= len(panels) - across:
            column[-1].set_xlabel("limit time $t$", fontsize=9)
        # one legend for all runs, unless the panels of another run lie in between
        for axes in column if lines > 1 else column[:1]:
            legend(axes, panel, names)
        share_y(column)
    _head(figure, title, key)
    for axes in [axes for axes in figure.axes if not axes.has_data()]:
        axes.remove()
    return figure


def png(figure: Figure, *, dpi: int = 100) -> bytes:
    r"""The figure as a PNG file's bytes.

    Args:
        figure: one made by `overlay`, or any other of matplotlib's.
        dpi: dots per inch.

    Example:
        >>> png(Figure(figsize=(1, 1)))[:4]
        b'\x89PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def save(figure: Figure, path: str | Path, *, dpi: int = 200) -> None:
    """Write the figure in the format that the name ends in (``.png``, ``.pdf``, ``.svg`` ...).

    Args:
        figure: one made by `overlay`, or any other of matplotlib's.
        path: the file; its folder is made if it is not there.
        dpi: dots per inch, where the format has dots.

    Raises:
        ValueError: if matplotlib does not know the format; it lists those that it does. Also if
            there is a folder of that name.
        OSError: if the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(figsize=(1, 1)), Path(folder) / "figures" / "empty.pdf")
    """
    figure.savefig(prepared(Path(path)), dpi=dpi, facecolor="white")


def _width(across: int) -> float:
    """The width in inches of so many panels side by side."""
    return _LEFT + _RIGHT + across * _PANEL_WIDTH + (across - 1) * _GAP


def _grid(
    runs: int, lines: int, across: int, legend: int, top: float
) -> tuple[Figure, list[list[Axes]]]:
    """Axes at fixed places in inches: a layout engine would take longer than the drawing."""
    names = _LEGEND_TITLE + LEGEND_LINE * legend
    # every line of panels after a run's first has names of its own above it
    between = 0.22 if lines == 1 else 0.35 + names
    down = runs * lines
    width = _width(across)
    height = _BOTTOM + top + down * _PANEL_HEIGHT + (down - 1) * between
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(down, across, squeeze=False)
    figure.subplots_adjust(
        left=_LEFT / width, right=1 - _RIGHT / width, bottom=_BOTTOM / height,
        top=1 - top / height, wspace=_GAP / _PANEL_WIDTH, hspace=between / _PANEL_HEIGHT,
    )  # fmt: skip
    return figure, [list(row) for row in grid]


def _head(figure: Figure, title: str, key: Key) -> None:
    """Add the title and the key to dots, lines and bands."""
    width, height = figure.get_size_inches()
    if title:
        figure.text(0.3 / width, 1 - 0.15 / height, title, fontsize=11, va="top", weight="bold")
    key.draw(figure, below=0.35 if title else 0.1)


def _title(given: Sequence[Trajectory]) -> str:
    """``metadata["title"]``, or the parameters that tell experiments apart."""
    for path in given:
        if "title" in path.metadata:
            return str(path.metadata["title"])
    parameters = {
        k: v for path in given for k, v in (path.metadata.get("parameters") or {}).items()
    }
    # what is zero is switched off
    parts = [f"{key} {parameters[key]}" for key in _TITLE_KEYS if parameters.get(key)]
    title = ", ".join(part.removeprefix("problem ") for part in parts)
    return title.replace("_", " ").replace("$", r"\$")

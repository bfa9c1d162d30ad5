"""Figures of measured statistics over their prediction, made without pyplot's global state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torchlimits.figures.panels import Panel, panels_of
from torchlimits.trajectory import BAND, Trajectory

_MOST_ROWS, _LINE_POINTS = 4, 300
_TITLE_KEYS = ("problem", "dim", "width", "order", "snr", "ridge", "step_size", "momentum")

# inches
_PANEL_WIDTH, _PANEL_HEIGHT = 2.75, 1.85
_LEFT, _RIGHT, _BOTTOM, _KEY, _GAP = 0.85, 0.2, 0.5, 0.45, 0.5
_LEGEND_TITLE, _LEGEND_LINE = 0.32, 0.16

_GREY = "#666666"


def overlay(
    measured: Trajectory | None = None,
    predicted: Trajectory | None = None,
    *,
    max_points: int = 40,
) -> Figure:
    r"""All statistics along limit time: measured as dots over predicted lines, bands shaded.

    One panel for each family of statistics: ``v[i]`` in one, ``m[i,j]`` in one for each j, a
    symmetric ``R[i,j]`` in one for the diagonal and one for the rest. The first index has the same
    colour everywhere. Runs that share their start are averaged, with the standard error of the
    mean as error bars; runs with different starts, which may go to different fixed points, are
    drawn in rows of their own, the first four of them.

    Args:
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)``, one run for each measured one or one for all.
        max_points: dots for each statistic.

    Raises:
        ValueError: if neither is given, there is nothing in them, a measured statistic is not
            predicted, or the numbers of runs do not fit.

    Example:
        >>> t = torch.linspace(0, 3, 50)
        >>> values = torch.stack([torch.exp(-t), 1 - torch.exp(-t)], dim=-1)
        >>> path = Trajectory(t, torch.arange(50), values, ["v[0]", "m[0,0]"])
        >>> [axes.get_title(loc="left") for axes in overlay(path, path).axes]
        ['$v_{0}$', '$m_{0,0}$']
    """
    given = [path for path in (measured, predicted) if path is not None]
    _check(measured, predicted, given)
    panels = panels_of(given[0].names)
    rows = _rows(measured, predicted, given[0])
    lines = math.ceil(len(panels) / 5)
    across = math.ceil(len(panels) / lines)
    legend = max(_legend_lines(panel) for panel in panels)
    figure, grid = _grid(len(rows), lines, across, legend, bool(_title(given)))
    # (panel, run): the panels of one run fill their lines from the left
    columns = [
        [grid[r * lines + p // across][p % across] for r in range(len(rows))]
        for p in range(len(panels))
    ]
    for p, (panel, column) in enumerate(zip(panels, columns, strict=True)):
        for axes, row in zip(column, rows, strict=True):
            _draw(axes, panel, row, max_points)
            _dress(axes)
            axes.set_ylabel(row.label if p == 0 else "", fontsize=9)
            axes.tick_params(labelbottom=lines > 1 or row is rows[-1])
        if p >= len(panels) - across:
            column[-1].set_xlabel("limit time $t$", fontsize=9)
        # one legend for all runs, unless the panels of another run lie in between
        for axes in column if lines > 1 else column[:1]:
            _legend(axes, panel, legend)
        _share_y(column)
    _head(figure, given, rows)
    for axes in {*figure.axes} - {axes for column in columns for axes in column}:
        axes.remove()
    return figure


def png(figure: Figure, *, dpi: int = 100) -> bytes:
    r"""The figure as a PNG file's bytes.

    Args:
        figure: of `overlay`, or any other of matplotlib's.
        dpi: dots an inch.

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
        figure: of `overlay`, or any other of matplotlib's.
        path: the file; its folder is made if it is not there.
        dpi: dots an inch, where the format has dots.

    Raises:
        ValueError: if matplotlib does not know the format; it lists those that it does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(figsize=(1, 1)), Path(folder) / "figures" / "empty.pdf")
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor="white")


# --- which runs go into which row ----------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """What one row of panels shows."""

    label: str
    measured: _Curves | None
    predicted: _Curves | None


@dataclass(frozen=True)
class _Curves:
    times: Float[Tensor, " T"]
    values: Float[Tensor, "T k"]
    spread: Float[Tensor, "T k"] | None  # standard error (measured), standard deviation (predicted)
    names: list[str]
    runs: int = 1


def _rows(
    measured: Trajectory | None, predicted: Trajectory | None, reference: Trajectory
) -> list[_Row]:
    if _share_start(reference):
        return [_Row("", _mean(measured, error=True), _mean(predicted, error=False))]
    return [
        _Row(f"run {run}", _one(measured, run), _one(predicted, run))
        for run in range(min(reference.runs, _MOST_ROWS))
    ]


def _share_start(path: Trajectory) -> bool:
    starts = path.initial.reshape(-1, len(path.names))
    return torch.allclose(starts, starts[:1].expand_as(starts), rtol=1e-6, equal_nan=True)


def _flat(values: Float[Tensor, "*runs T k"]) -> Float[Tensor, "flat T k"]:
    return values.reshape(-1, *values.shape[-2:])


def _mean(path: Trajectory | None, *, error: bool) -> _Curves | None:
    if path is None:
        return None
    values = _flat(path.values)
    spread = None
    if error and len(values) > 1:
        spread = values.std(dim=0) / len(values) ** 0.5
    elif not error and path.std is not None:
        spread = _flat(path.std).mean(dim=0)
    return _Curves(path.times, values.mean(dim=0), spread, list(path.names), len(values))


def _one(path: Trajectory | None, run: int) -> _Curves | None:
    if path is None:
        return None
    run = 0 if path.runs == 1 else run
    spread = None if path.std is None else _flat(path.std)[run]
    return _Curves(path.times, _flat(path.values)[run], spread, list(path.names))


# --- drawing -------------------------------------------------------------------------------------


def _draw(axes: Axes, panel: Panel, row: _Row, max_points: int) -> None:
    for name, colour in zip(panel.names, panel.colours, strict=True):
        if row.predicted is not None:
            _line(axes, row.predicted, name, colour)
        if row.measured is not None:
            _dots(axes, row.measured, name, colour, max_points)


def _line(axes: Axes, curves: _Curves, name: str, colour: str) -> None:
    rows, column = _spread_rows(len(curves.times), _LINE_POINTS), curves.names.index(name)
    times, values = curves.times[rows].numpy(), curves.values[rows, column].numpy()
    axes.plot(times, values, color=colour, linewidth=1.4, zorder=3)
    if curves.spread is not None:
        half = BAND * curves.spread[rows, column].numpy()
        axes.fill_between(
            times, values - half, values + half, color=colour, alpha=0.16, linewidth=0, zorder=2
        )


def _dots(axes: Axes, curves: _Curves, name: str, colour: str, max_points: int) -> None:
    rows, column = _spread_rows(len(curves.times), max_points), curves.names.index(name)
    times, values = curves.times[rows].numpy(), curves.values[rows, column].numpy()
    axes.plot(
        times,
        values,
        linestyle="none",
        marker="o",
        markersize=3.4,
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=0.9,
        zorder=4,
    )
    if curves.runs > 1 and curves.spread is not None:
        half = curves.spread[rows, column].numpy()
        axes.vlines(times, values - half, values + half, color=colour, linewidth=0.8, zorder=3.5)


def _spread_rows(count: int, points: int) -> Tensor:
    """At most so many row numbers, evenly spread, first and last included."""
    return torch.linspace(0, count - 1, min(count, points), device="cpu").round().long()


def _dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(labelsize=8, color=_GREY, length=2.5)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.02)


def _legend_lines(panel: Panel) -> int:
    return 0 if len(panel.names) == 1 else 1 if len(panel.names) <= 4 else 2


def _legend(axes: Axes, panel: Panel, lines: int) -> None:
    """The panel's title, and between it and the panel at most two lines of colours."""
    alone = len(panel.names) == 1
    title = panel.labels[0] if alone else panel.title
    axes.set_title(title, loc="left", fontsize=11, pad=6 + 72 * _LEGEND_LINE * lines)
    if alone:
        return
    shown = list(zip(panel.labels, panel.colours, strict=True))
    if len(shown) > 12:
        shown = [shown[i] for i in _spread_rows(len(shown), 6).tolist()]
    axes.legend(
        [Line2D([], [], color=colour, linewidth=2.2) for _, colour in shown],
        [label for label, _ in shown],
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=math.ceil(len(shown) / _legend_lines(panel)),
        fontsize=8.5,
        frameon=False,
        handlelength=0.9,
        handletextpad=0.35,
        columnspacing=0.9,
        labelspacing=0.1,
        borderpad=0.1,
    )


def _share_y(column: list[Axes]) -> None:
    """The same y range for all rows, so that runs can be compared by eye."""
    limits = [axes.get_ylim() for axes in column]
    for axes in column:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _grid(
    runs: int, lines: int, across: int, legend: int, title: bool
) -> tuple[Figure, list[list[Axes]]]:
    """Axes at fixed places in inches: a layout engine would take longer than the drawing."""
    names = _LEGEND_TITLE + _LEGEND_LINE * legend
    top = _KEY + names + (0.25 if title else 0.0)
    # every line of panels after a run's first has names of its own above it
    between = 0.22 if lines == 1 else 0.35 + names
    down = runs * lines
    width = _LEFT + _RIGHT + across * _PANEL_WIDTH + (across - 1) * _GAP
    height = _BOTTOM + top + down * _PANEL_HEIGHT + (down - 1) * between
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(down, across, squeeze=False)
    figure.subplots_adjust(
        left=_LEFT / width,
        right=1 - _RIGHT / width,
        bottom=_BOTTOM / height,
        top=1 - top / height,
        wspace=_GAP / _PANEL_WIDTH,
        hspace=between / _PANEL_HEIGHT,
    )
    return figure, [list(row) for row in grid]


def _head(figure: Figure, given: Sequence[Trajectory], rows: Sequence[_Row]) -> None:
    """Title and the key to dots, lines and bands."""
    width, height = figure.get_size_inches()
    title = _title(given)
    if title:
        figure.text(0.3 / width, 1 - 0.15 / height, title, fontsize=11, va="top", weight="bold")
    dots, line = rows[0].measured, rows[0].predicted
    handles: list[Line2D | Patch] = []
    if dots is not None:
        note = f", mean of {dots.runs} runs ± standard error" if dots.runs > 1 else ""
        if len(rows) < given[0].runs and len(rows) > 1:
            note = f", {len(rows)} of {given[0].runs} runs"
        mark = Line2D([], [], color=_GREY, linestyle="none", label="measured" + note)
        mark.set(marker="o", markerfacecolor="white", markersize=4.5)
        handles.append(mark)
    if line is not None:
        handles.append(Line2D([], [], color=_GREY, linewidth=1.6, label="predicted"))
        if line.spread is not None:
            handles.append(Patch(color=_GREY, alpha=0.2, label=f"± {BAND} predicted sd"))
    below = (0.35 if title else 0.1) / height
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.2 / width, 1 - below),
        ncols=3,
        fontsize=9,
        frameon=False,
    )


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


def _check(
    measured: Trajectory | None, predicted: Trajectory | None, given: Sequence[Trajectory]
) -> None:
    if not given:
        raise ValueError("expected a measured or a predicted trajectory, got neither: give one")
    if not all(len(path) and path.names and path.runs for path in given):
        raise ValueError(f"expected trajectories that hold values, got {list(given)}")
    if measured is None or predicted is None:
        return
    missing = [name for name in measured.names if name not in predicted.names]
    if missing:
        raise ValueError(
            f"expected a prediction of every measured statistic, got none of {missing}"
        )
    if predicted.runs not in (1, measured.runs):
        raise ValueError(
            f"expected a prediction for each of the {measured.runs} measured runs or one for all, "
            f"got {predicted.runs}"
        )

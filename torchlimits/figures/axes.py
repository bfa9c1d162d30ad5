"""Curves, dots, bands and legends inside the panels of a figure."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from torchlimits.figures.panels import Panel
from torchlimits.figures.rows import Curves, Row
from torchlimits.trajectory import spread_rows

_LINE_POINTS = 300
#: the resolution of the density of a law
_CLOUD_TIMES, _CLOUD_BINS = 80, 60
GREY = "#666666"
#: the height of a line in inches
LEGEND_LINE = 0.16


def draw(axes: Axes, panel: Panel, row: Row, max_points: int) -> None:
    """Draw the statistics of a panel: as lines where predicted, as dots where measured."""
    for name, colour in zip(panel.names, panel.colours, strict=True):
        if row.predicted is not None and name in row.predicted.names:
            _line(axes, row.predicted, name, colour)
        if row.measured is not None and name in row.measured.names:
            _dots(axes, row.measured, name, colour, max_points)


def _line(axes: Axes, curves: Curves, name: str, colour: str) -> None:
    column = curves.names.index(name)
    rows = _rows(curves.times, curves.values[:, column], _LINE_POINTS)
    times, values = curves.times[rows].numpy(), curves.values[rows, column].numpy()
    axes.plot(times, values, color=colour, linewidth=1.4, zorder=3)
    samples = curves.samples if name in curves.humped else None
    if curves.band is not None:
        low, high = (end[rows, column].numpy() for end in curves.band)
        if samples is not None:  # shading would cover the density
            for end in (low, high):
                axes.plot(times, end, color=colour, linewidth=0.7, linestyle=":", zorder=2)
        else:
            axes.fill_between(times, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    if samples is not None:
        cloud(axes, curves.times, samples[:, :, column], colour)


def _dots(axes: Axes, curves: Curves, name: str, colour: str, max_points: int) -> None:
    column = curves.names.index(name)
    rows = _rows(curves.times, curves.values[:, column], max_points)
    times, values = curves.times[rows].numpy(), curves.values[rows, column].numpy()
    axes.plot(
        times, values, linestyle="none", marker="o", markersize=3.4, markerfacecolor="white",
        markeredgecolor=colour, markeredgewidth=0.9, zorder=4,
    )  # fmt: skip
    if curves.runs > 1 and curves.band is not None:
        low, high = (end[rows, column].numpy() for end in curves.band)
        axes.vlines(times, low, high, color=colour, linewidth=0.8, zorder=3.5)


def cloud(
    axes: Axes, times: Float[Tensor, " T"], samples: Float[Tensor, "M T"], colour: str
) -> None:
    """Draw the density of a law behind the curves, darkest where it is highest at each time.

    Args:
        axes: where.
        times: limit times.
        samples: paths of the law.
        colour: that of the statistic.
    """
    rows = _rows(times, samples.nanmean(0), _CLOUD_TIMES)
    moments, paths = times[rows].numpy(), samples[:, rows].numpy()
    low, high = np.quantile(paths[np.isfinite(paths)], (0.001, 0.999)).tolist()
    ends = np.linspace(low, high, _CLOUD_BINS + 1)
    counts = np.stack([np.histogram(column, ends)[0] for column in paths.T], axis=1)
    shade = counts / counts.max(axis=0).clip(1)
    fading = LinearSegmentedColormap.from_list("", [(colour, 0.0), (colour, 0.8)])
    edges = np.concatenate([moments[:1], (moments[1:] + moments[:-1]) / 2, moments[-1:]])
    mesh = axes.pcolormesh(edges, ends, shade, cmap=fading, vmin=0, vmax=1, linewidth=0, zorder=1)
    # dots at both ends would be cut in half
    mesh.sticky_edges.x.clear()


def _rows(times: Tensor, values: Tensor, points: int) -> Tensor:
    """At most so many rows to draw, evenly spread; of rows at one time, the first and the last.

    Where limit time stands still, rows lie upon each other, and would take up the points of the
    rest; so would rows for which a loop has logged no value.
    """
    there = (~values.isnan()).nonzero()[:, 0]
    if not len(there):
        return there
    moves = times[there].diff() > 0
    end = moves.new_ones(1)
    kept = there[(torch.cat([end, moves]) | torch.cat([moves, end])).nonzero()[:, 0]]
    return kept[spread_rows(len(kept), points)]


def dress(axes: Axes) -> None:
    """Set spines, grid and ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY, length=2.5)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.02)


def legend_lines(panel: Panel) -> int:
    """How many lines the colours of a panel take up in its legend."""
    return 0 if len(panel.names) == 1 else 1 if len(panel.key) <= 4 else 2


def legend(axes: Axes, panel: Panel, lines: int) -> None:
    """Add the panel's title, and between it and the panel at most two lines of colours."""
    alone = len(panel.names) == 1
    title = panel.labels[0] if alone else panel.title
    axes.set_title(title, loc="left", fontsize=11, pad=6 + 72 * LEGEND_LINE * lines)
    if alone:
        return
    shown = list(panel.key.items())
    if len(shown) > 12:
        shown = [shown[i] for i in spread_rows(len(shown), 6).tolist()]
    axes.legend(
        [Line2D([], [], color=colour, linewidth=2.2) for _, colour in shown],
        [label for label, _ in shown], loc="lower left", bbox_to_anchor=(-0.02, 0.99),
        ncols=math.ceil(len(shown) / legend_lines(panel)), fontsize=8.5, frameon=False,
        handlelength=0.9, handletextpad=0.35, columnspacing=0.9, labelspacing=0.1, borderpad=0.1,
    )  # fmt: skip


def share_y(column: list[Axes]) -> None:
    """Set the same y range for all rows, so that runs can be compared by eye."""
    limits = [axes.get_ylim() for axes in column]
    for axes in column:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))

"""Curves of statistics in matplotlib axes, with labels, bands and a legend."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: at most so many runs of one statistic have a colour and a line of the legend each
_RUNS_TOLD = 10
#: at most so many entries have matplotlib's own colours, and more are on a scale of colours
_COLOURS = 10
#: the legend of a family has at most so many lines; of more entries, some stand for all
_LEGEND = 16


@dataclass(frozen=True)
class Curves:
    """What is drawn into one panel.

    Attributes:
        title: on the y axis, the name of the statistic or of the family.
        along: what is on the x axis, shape ``(T,)``.
        names: of the k statistics.
        values: shape ``(runs, T, k)``.
        band: its lower and its upper end, of the same shape, or None.
    """

    title: str
    along: np.ndarray
    names: Sequence[str]
    values: np.ndarray
    band: tuple[np.ndarray, ...] | None


def new_panels(count: int) -> list[Axes]:
    """Axes for so many panels, at most three side by side, in a figure that nobody else holds."""
    from matplotlib.figure import Figure

    across = min(3, max(1, count))
    down = -(-count // across)
    size = (6.4, 4.8) if count == 1 else (4.0 * across, 2.8 * down)
    figure: Figure = Figure(figsize=size, layout="constrained")
    return [figure.add_subplot(down, across, i + 1) for i in range(count)]


def draw(axes: Axes, curves: Curves, x_label: str, style: dict[str, Any]) -> None:
    """Draw every run of every statistic as a line, with labels and a legend."""
    runs, alone = len(curves.values), len(curves.names) == 1
    colours, before = _colours(len(curves.names)), bool(axes.lines)
    told = set(axes.get_legend_handles_labels()[1])
    with _fitted_once(axes):
        for i, name in enumerate(curves.names):
            for run in range(runs):
                own: dict[str, Any] = {"label": _label(name, run, runs, alone), **style}
                if not alone and not {"color", "c"} & set(style):
                    own["color"] = colours[i]
                own["label"] = None if own["label"] in told else own["label"]
                told.add(own["label"])
                _line(axes, curves, run, i, own)
    axes.set_xlabel(x_label)
    # where different statistics are drawn over each other, only the legend tells their names
    same = not before or axes.get_ylabel() == curves.title
    axes.set_ylabel(curves.title if same else "")
    _legend(axes, runs if not alone else 1)


@contextmanager
def _fitted_once(axes: Axes) -> Generator[None]:
    """Fit the view when all is drawn: with each band, matplotlib looks at all lines before it."""
    fitted = axes.get_autoscalex_on(), axes.get_autoscaley_on()
    axes.set_autoscale_on(False)
    try:
        yield
    finally:
        axes.set_autoscalex_on(fitted[0])
        axes.set_autoscaley_on(fitted[1])
        axes.autoscale_view(scalex=fitted[0], scaley=fitted[1])


def _label(name: str, run: int, runs: int, alone: bool) -> str | None:
    if alone and 1 < runs <= _RUNS_TOLD:
        return f"{name}, run {run}"
    return name if run == 0 else None


def _line(axes: Axes, curves: Curves, run: int, i: int, style: dict[str, Any]) -> None:
    values = curves.values[run, :, i]
    # where no number was given, the line goes on to the next one
    there = ~np.isnan(values)
    along, values = curves.along[there], values[there]
    (drawn,) = axes.plot(along, values, **style)
    if len(values) == 1 and drawn.get_marker() in ("None", ""):
        drawn.set_marker("o")  # a line of one point is not seen
    if curves.band is not None:
        low, high = (end[run, there, i] for end in curves.band)
        axes.fill_between(along, low, high, color=drawn.get_color(), alpha=0.2, lw=0)


def _colours(count: int) -> list[Any]:
    import matplotlib as mpl

    if count <= _COLOURS:
        return [f"C{i}" for i in range(count)]
    scale = mpl.colormaps["viridis"]
    return [scale(0.92 * i / (count - 1)) for i in range(count)]


def _legend(axes: Axes, runs: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if len(labels) > _LEGEND:
        rows = np.linspace(0, len(labels) - 1, _LEGEND // 2).round().astype(int)
        handles, labels = [handles[r] for r in rows], [labels[r] for r in rows]
    # above the curves, which it could hide, where the layout makes room and there is no title
    titled = any(axes.get_title(loc=side) for side in ("left", "center", "right"))
    above = not titled and getattr(axes.figure, "get_layout_engine", lambda: None)() is not None
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1),
        "frameon": False,
        "borderpad": 0.1,
    }
    axes.legend(
        handles, labels, fontsize="small", ncols=4 if above else 1 + (len(labels) > 5),
        handlelength=1.2, columnspacing=1.0, **(place if above else {}),
        title=f"{runs} runs, a line each" if runs > 1 else None, title_fontsize="small",
    ).set_alignment("left")  # fmt: skip

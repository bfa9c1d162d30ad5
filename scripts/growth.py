"""How growth is measured: the cost of one piece of work at several sizes, and the slope of that.

A `Growth` is a piece of work along one axis: its sizes, what has to be made beforehand, and the
exponents of time and memory that it has to have, with the reason. `measured` gives its costs, in a
process of its own for each size, so that no size profits from the memory of another. `fitted` is
the slope of the last sizes, where the cost is no longer overhead, by least squares in logarithms.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

#: the slope may be larger than expected by this much
ALLOWED = 0.1
#: the last sizes, which the slope is of
_LAST = 4
#: work is repeated so many times at most
_REPEATS = 5
#: less memory than this is not told from the allocator's own
_LEAST_BYTES = 2**20

Work = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """A piece of work along one axis.

    Args:
        operation: what is done.
        axis: what grows.
        sizes: increasing.
        prepare: makes the work of one size; it is not measured.
        time, memory: the expected exponents.
        why: the reason for them.
        faster: why it grows faster than that, where it does.
    """

    operation: str
    axis: str
    sizes: Sequence[int]
    prepare: Callable[[int], Work]
    time: float
    memory: float
    why: str
    faster: str = ""

    @property
    def name(self) -> str:
        """What it is called among others."""
        return f"{self.operation} over {self.axis}"

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"expected increasing sizes, at least two, got {self.sizes}")


@dataclass(frozen=True)
class Slope:
    """An exponent, with its standard error, beside the expected one."""

    value: float
    error: float
    expected: float

    @property
    def holds(self) -> bool:
        """Whether it is at most the expected one + 0.1."""
        return self.value <= self.expected + ALLOWED


def fitted(sizes: Sequence[int], costs: Sequence[float], expected: float) -> Slope:
    """The slope of log cost over log size, of the last four sizes.

    Args:
        sizes, costs: as many of both.
        expected: the exponent to hold it against.
    """
    x, y = (np.log(np.array(numbers[-_LAST:], dtype=float)) for numbers in (sizes, costs))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    error = math.sqrt(float(left @ left) / max(len(x) - 2, 1) / float(x @ x))
    return Slope(slope, error, expected)


def measured(growth: Growth, seconds: float = 0.2) -> dict[str, Any]:
    """Seconds (the least of some repeats) and bytes at each size, their slopes, and what holds.

    Args:
        growth: the work.
        seconds: no repeat begins after so many.
    """
    found = [_apart(growth, size, seconds) for size in growth.sizes]
    times, memory = ([one[i] for one in found] for i in range(2))
    pace = fitted(growth.sizes, times, growth.time)
    room = fitted(growth.sizes, [max(b, _LEAST_BYTES) for b in memory], growth.memory)
    return {
        "operation": growth.operation,
        "axis": growth.axis,
        "sizes": list(growth.sizes),
        "seconds": [float(f"{s:.4g}") for s in times],
        "bytes": memory,
        "time": _as_dict(pace),
        "memory": _as_dict(room),
        "why": growth.why,
        "holds": pace.holds and room.holds,
        **({"faster": growth.faster} if growth.faster else {}),
    }


def _as_dict(slope: Slope) -> dict[str, float]:
    return {
        "slope": round(slope.value, 3),
        "error": round(slope.error, 3),
        "expected": slope.expected,
    }


# --- one size -------------------------------------------------------------------------------------


def _apart(growth: Growth, size: int, seconds: float) -> tuple[float, int]:
    """Seconds and bytes of one size, in a forked process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, growth, size, seconds))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "it was killed: there was not enough memory?"
    process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"{growth.operation} over {growth.axis} at {size}: {answer}")
    return answer


def _answer(connection: Any, growth: Growth, size: int, seconds: float) -> None:
    try:
        connection.send(_costs(growth, size, seconds))
    except Exception:
        connection.send(traceback.format_exc())


def _costs(growth: Growth, size: int, seconds: float) -> tuple[float, int]:
    """The least seconds of some repeats, and the most bytes beside those before."""
    torch.set_num_threads(1)
    gc.freeze()  # what was imported is not looked at again
    growth.prepare(growth.sizes[0])()  # libraries and caches are there
    work, times, memory = growth.prepare(size), list[float](), 0
    while not times or (len(times) < _REPEATS and sum(times) < seconds):
        gc.collect()
        _give_back()
        before = _reset_peak()
        begin = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - begin)
        memory = max(memory, _peak() - before)
        del result
    return min(times), memory


def _give_back() -> None:
    """Let the allocator return what is free, so that it counts when it is taken again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak() -> int:
    """The resident bytes, from which on `_peak` counts."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The most bytes that were resident, as Linux counts them."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


# --- how it is shown ------------------------------------------------------------------------------


def told(one: dict[str, Any]) -> str:
    """What was measured of one piece of work, in two lines."""
    cells = []
    for cost in ("time", "memory"):
        slope = one[cost]
        cells.append(f"{cost} {slope['slope']:.2f} ± {slope['error']:.2f} ({slope['expected']:g})")
    sizes = zip(one["sizes"], one["seconds"], one["bytes"], strict=True)
    costs = ", ".join(f"{size}: {s:.3g} s {b / 2**20:.1f} MiB" for size, s, b in sizes)
    name = f"{one['operation']} over {one['axis']}: {', '.join(cells)}"
    return f"{name}{'' if one['holds'] else '  FASTER'}\n    {costs}"


def table(found: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown: one row for each piece of work."""
    lines = [
        "| what | over | sizes | time | expected | memory | expected | because |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for one in found:
        (low, high) = (_power(one["sizes"][i]) for i in (0, -1))
        cells = [one["operation"], one["axis"], f"{low} to {high}"]
        for cost in ("time", "memory"):
            slope = one[cost]
            told = f"{slope['slope']:.2f} ± {slope['error']:.2f}"
            over = slope["slope"] > slope["expected"] + ALLOWED
            cells += [f"**{told}**" if over else told, f"{slope['expected']:g}"]
        cells.append(one["why"] + (f"; faster: {one['faster']}" if one.get("faster") else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _power(size: int) -> str:
    """1000000 as "10⁶", other numbers as they are."""
    exponent = round(math.log10(size))
    if size >= 1000 and size == 10**exponent:
        return "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{size:,}"


def picture(found: Sequence[dict[str, Any]]) -> Figure:
    """A panel for each axis and cost: what was measured, and dotted lines of expected slope."""
    axes = list(dict.fromkeys(one["axis"] for one in found))
    columns = math.ceil(len(axes) / 2)
    figure, panels = plt.subplots(
        4, columns, figsize=(3.6 * columns, 13), layout="constrained", squeeze=False
    )
    for panel in panels.flat:
        panel.set_visible(False)
    for place, axis in enumerate(axes):
        row, column = divmod(place, columns)
        ones = [one for one in found if one["axis"] == axis]
        for half, (cost, unit) in enumerate((("time", "seconds"), ("memory", "bytes"))):
            panel = panels[2 * row + half, column]
            panel.set_visible(True)
            _panel(panel, ones, cost, unit)
            panel.set_title(f"{cost} over {axis}", fontsize=10)
            if half == 0:
                panel.legend(fontsize=5.5, loc="upper left", framealpha=0.6)
    return figure


def _panel(panel: Axes, ones: Sequence[dict[str, Any]], cost: str, unit: str) -> None:
    for i, one in enumerate(ones):
        costs = np.maximum(one[unit], 1.0 if unit == "seconds" else _LEAST_BYTES)
        costs = np.array(one["seconds"]) if unit == "seconds" else costs
        colour = plt.get_cmap("tab20")(i % 20)
        panel.loglog(one["sizes"], costs, "o-", ms=3, lw=1, color=colour, label=one["operation"])
        # through the middle of the sizes that the slope is of
        sizes = np.array(one["sizes"][-_LAST:], dtype=float)
        middle = np.exp(
            np.log(costs[-_LAST:]).mean() - one[cost]["expected"] * np.log(sizes).mean()
        )
        panel.loglog(
            sizes, middle * sizes ** one[cost]["expected"], ":", lw=1.6, color=colour, alpha=0.8
        )
    panel.set_ylabel(unit, fontsize=8)
    panel.tick_params(labelsize=7)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.2)

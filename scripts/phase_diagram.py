"""Phase diagrams of SGD at the critical step size beside those of gradient flow.

    python scripts/phase_diagram.py matrix
    python scripts/phase_diagram.py binary --plane ridge

Top: the best accuracy that an attracting fixed point has; below: the numbers of stable and of all
fixed points (mixtures: up to symmetry; a table has all kinds). Left: SGD; right: gradient flow, the
same without the corrector. What differs is the corrector's doing.
Writes <logdir>/<problem>-<plane>.png. With --folder, each cell is kept in a file there: what was
stopped goes on, and several processes share the work, on any number of machines that see it,

    torchrun --nproc-per-node=2 scripts/phase_diagram.py xor --folder runs/xor-cells

matrix, tensor: |m|/|x| over snr and c_delta. binary, xor: probability of the right label, over snr
and c_delta (--plane step) or over alpha and snr (--plane ridge).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

import torchlimits as tl
from torchlimits.experiments.phase_diagram import What
from torchlimits.experiments.ranks import rank_and_size


@dataclass
class Options:
    """Which diagram, and how fine."""

    problem: Annotated[Literal["matrix", "tensor", "binary", "xor"], tyro.conf.Positional]
    plane: Literal["step", "ridge"] = "step"
    """step: snr and c_delta; ridge (mixtures): alpha and snr"""
    points: int | None = None
    """values of each parameter; by default 41 (matrix, tensor), 9 (binary), 3 (xor)"""
    order: int = 3
    """k, of the tensor"""
    width: int | None = None
    """K, hidden units; by default 2 (binary), 4 (xor)"""
    step_size: float = 4.0
    """c_delta in the plane of alpha and snr"""
    ridge: float = 0.05
    """alpha in the plane of snr and c_delta, for the mixtures"""
    logdir: Path = Path("runs/phase_diagram")
    folder: Path | None = None
    """where to keep the cells, for all processes that are started alike"""


Axis = tuple[str, list[float]]


def chosen_axes(options: Options) -> tuple[Axis, Axis]:
    """Names and values of x and y."""
    spiked = options.problem in ("matrix", "tensor")
    points = options.points or {"binary": 9, "xor": 3}.get(options.problem, 41)
    if spiked and options.plane == "ridge":
        raise ValueError("expected --plane step for matrix and tensor: their ridge is 0")
    if points < 2:
        raise ValueError(f"expected at least two points an axis, got {points}")
    if spiked:
        return ("snr", linear(0.05, 3.0, points)), ("step_size", linear(0.0, 2.0, points))
    snr = torch.logspace(-0.7, 1.3, points, dtype=torch.float64).tolist()
    if options.plane == "step":
        return ("snr", snr), ("step_size", linear(0.5, 8.0, points))
    means = 2 if options.problem == "binary" else 4
    return ("ridge", linear(0.1 / means, 0.9 / means, points)), ("snr", snr)


def linear(start: float, stop: float, count: int) -> list[float]:
    """Evenly spaced values."""
    return torch.linspace(start, stop, count, dtype=torch.float64).tolist()


def maker(options: Options) -> Callable[..., tl.SpikedTensor | tl.GaussianMixture]:
    """The problem as a function of the parameters on the axes."""
    if options.problem in ("matrix", "tensor"):
        order = 2 if options.problem == "matrix" else options.order
        return partial(tl.SpikedTensor, dim=100, order=order)
    name = options.problem
    make = tl.GaussianMixture.binary if name == "binary" else tl.GaussianMixture.xor
    fixed = {"ridge": options.ridge} if options.plane == "step" else {}
    return partial(make, dim=100, width=hidden_units(options), **fixed)


def hidden_units(options: Options) -> int:
    """K."""
    return options.width or (2 if options.problem == "binary" else 4)


def diagrams(options: Options) -> tuple[tl.PhaseDiagram, tl.PhaseDiagram]:
    """SGD's and gradient flow's."""
    x, y = chosen_axes(options)
    make = maker(options)
    # K > 2 neurons take minutes: the rule is coarse, a picture does not show its error of 1e-3,
    # and points with some neurons at 0, which do not attract, are left out
    wide = hidden_units(options) > 2
    common = {"level": -1 if wide else 0, "idle": not wide, "progress": True}
    sgd_cells, flow_cells = (
        None if options.folder is None else options.folder / name for name in ("sgd", "flow")
    )
    if y[0] != "step_size":
        sgd = tl.phase_diagram(make, x, y, step_size=options.step_size, folder=sgd_cells, **common)
        return sgd, tl.phase_diagram(make, x, y, step_size=0.0, folder=flow_cells, **common)
    sgd = tl.phase_diagram(make, x, y, folder=sgd_cells, **common)
    # gradient flow knows no c_delta: one row, repeated
    flow = tl.phase_diagram(make, x, ("step_size", [0.0]), folder=flow_cells, **common)
    rows = len(y[1])
    repeated = tl.PhaseDiagram(x, y, flow.points * rows, flow.accuracy.expand(rows, -1))
    return sgd, repeated


def draw(options: Options, sgd: tl.PhaseDiagram, flow: tl.PhaseDiagram) -> Figure:
    """Accuracy, numbers of stable and of all fixed points; SGD left, gradient flow right."""
    figure = Figure(figsize=(8.6, 9.2), layout="constrained")
    grid = figure.subplots(3, 2, sharex=True, sharey=True)
    lowest = 0.0 if options.problem in ("matrix", "tensor") else 0.5
    counted: dict[What, str] = {"stable": "stable fixed points", "total": "all fixed points"}
    most = {kind: max(int(d.count(kind).max()) for d in (sgd, flow)) for kind in counted}
    step = f"$c_\\delta$ = {options.step_size:g}" if sgd.y[0] != "step_size" else ""
    for column, (diagram, title) in enumerate(((sgd, f"SGD {step}"), (flow, "gradient flow"))):
        upper, *lower = grid[:, column]
        mesh = diagram.draw(upper, vmin=lowest, vmax=1, cmap="viridis")
        upper.set_title(title)
        if column:
            figure.colorbar(mesh, ax=upper, label="best accuracy of an attractor")
        for axes, (kind, label) in zip(lower, counted.items(), strict=True):
            counts = diagram.draw(axes, kind, vmin=0, vmax=most[kind], cmap="cividis")
            if column:
                figure.colorbar(counts, ax=axes, label=label, ticks=MaxNLocator(integer=True))
        if options.problem in ("matrix", "tensor") and diagram is sgd:
            order = 2 if options.problem == "matrix" else options.order
            threshold = [tl.SpikedTensor(dim=100, order=order, snr=1.0)
                         .dynamics(step_size=c).critical_snr for c in sgd.y[1]]  # fmt: skip
            for axes in (upper, *lower):
                axes.plot(threshold, sgd.y[1], color="white", ls="--", lw=1.3)
                axes.set_xlim(sgd.x[1][0], sgd.x[1][-1])
            upper.text(0.04, 0.93, r"dashed: $\lambda_c$", color="white", va="top",
                       transform=upper.transAxes)  # fmt: skip
        for axes in (upper, *lower):
            axes.label_outer()
    figure.suptitle({"matrix": "matrix PCA", "tensor": f"tensor PCA, $k$ = {options.order}"}.get(
        options.problem, f"{options.problem} mixture, K = {hidden_units(options)}"
    ))  # fmt: skip
    return figure


def report(sgd: tl.PhaseDiagram, flow: tl.PhaseDiagram, console: Console) -> None:
    """How many cells have how many fixed points of each kind, and where the corrector matters."""
    table = Table(title="cells by their fixed points (stable / marginal / unstable)")
    for column in ("fixed points", "SGD", "gradient flow"):
        table.add_column(column, justify="right")
    tallies = [tally(sgd), tally(flow)]
    for key in sorted(set(tallies[0]) | set(tallies[1])):
        table.add_row(" / ".join(map(str, key)), *(str(t.get(key, 0)) for t in tallies))
    console.print(table)
    loss = flow.accuracy - sgd.accuracy
    row, column = divmod(int(loss.argmax()), loss.shape[1])
    place = f"{sgd.x[0]} = {sgd.x[1][column]:.3g}, {sgd.y[0]} = {sgd.y[1][row]:.3g}"
    reached = [float(diagram.accuracy[row, column]) for diagram in (flow, sgd)]
    console.print(
        f"The corrector costs up to {float(loss.max()):.3f} of accuracy, at {place}: "
        f"{reached[0]:.3f} by gradient flow, {reached[1]:.3f} by SGD",
        highlight=False,
        soft_wrap=True,
    )


def tally(diagram: tl.PhaseDiagram) -> dict[tuple[int, ...], int]:
    """Number of cells for each (stable, marginal, unstable)."""
    counts = torch.stack([diagram.count(kind) for kind in ("stable", "marginal", "unstable")], -1)
    keys, cells = counts.flatten(0, 1).unique(dim=0, return_counts=True)
    return {tuple(key): n for key, n in zip(keys.tolist(), cells.tolist(), strict=True)}


def main(options: Options, console: Console) -> None:
    """Compute, print, draw."""
    sgd, flow = diagrams(options)
    if rank_and_size()[0] > 0:
        return  # the first process shows what all have found
    report(sgd, flow, console)
    picture = options.logdir / f"{options.problem}-{options.plane}.png"
    tl.figures.save(draw(options, sgd, flow), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

"""`mixture_parts`, `mixture_figure`: where random starts end, and the diffusion on the rings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from torchlimits import tensorboard
from torchlimits.cli.paper.common import BLUE, GREEN, RED, STEP_SIZE, PaperOptions, say
from torchlimits.cli.paper.parts import Part, Tell
from torchlimits.cli.paper.rings import plane_panel, rank_panel, ring_runs, sde_numbers
from torchlimits.cli.paper.specs import MixtureFigure
from torchlimits.ensemble.train import train
from torchlimits.experiments import success
from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.mixture.small_noise import FixedPointComponent
from torchlimits.trajectory import Trajectory


def mixture_parts(spec: MixtureFigure, options: PaperOptions) -> list[Part]:
    """Many random starts, and runs around the rings at two noise levels.

    Args:
        spec: which of the two figures.
        options: how large they are, and their seed.
    """
    dim, runs, time, around = _sizes(spec, options)
    job = (spec, dim, time, runs, options.seed)
    starts = Part(spec.number, "random starts", spec.cost, _random_starts, job)
    rings = [
        Part(spec.number, f"rings at snr {snr:g}", 2.0, ring_runs,
             (spec, dim, snr, around, options.seed))
        for snr in (math.inf, spec.snr)
    ]  # fmt: skip
    return [starts, *rings]


def mixture_figure(
    spec: MixtureFigure, options: PaperOptions, console: Console, done: Mapping[str, Any]
) -> Figure:
    """Draw where random starts end, and the diffusion on the rings; print the numbers.

    Args:
        spec: which of the two figures.
        options: those of the parts.
        console: where numbers are printed.
        done: the result of each part, by its name.
    """
    dim, runs, _, _ = _sizes(spec, options)
    problem = spec.make(dim, spec.width, snr=spec.snr, ridge=0.1)
    (measured, predicted), *diffusions = [done[p.name] for p in mixture_parts(spec, options)]
    shown = replace(measured, values=measured.values[:8])
    tensorboard.write(options.logdir / spec.name, measured=shown, predicted=predicted)
    for one in diffusions:
        sde_numbers(console, one)

    figure = Figure(figsize=(12.5, 6.6), layout="constrained")
    grid = figure.subplots(2, 3)
    _fraction_panel(grid[0, 0], console, problem, measured)
    _endpoint_panel(grid[0, 1], console, spec, problem, measured)
    _runs_panel(grid[0, 2], spec, measured, predicted)
    for axes, plane in zip(grid[1], spec.planes, strict=False):
        plane_panel(axes, plane, diffusions)
    rank_panel(grid[1, 2], console, diffusions)
    figure.suptitle(f"{problem}, $c_\\delta$ = 1, {runs} runs", fontsize=12)
    return figure


def _sizes(spec: MixtureFigure, options: PaperOptions) -> tuple[int, int, float, int]:
    """The dimension, the number of random starts, their limit time, and the runs on the rings."""
    return (40, 20, 4.0, 40) if options.smoke else (250, 200, spec.time, 200)


def _random_starts(
    spec: MixtureFigure, dim: int, time: float, runs: int, seed: int, tell: Tell
) -> tuple[Trajectory, Trajectory]:
    """SGD from random starts, and the small-noise dynamics from the first of them."""
    problem = spec.make(dim, spec.width, snr=spec.snr, ridge=0.1)
    measured = train(
        problem, step_size=STEP_SIZE, time=time, runs=runs, seed=seed,
        every=max(1, int(time * dim) // 300), progress=tell,
    )  # fmt: skip
    dynamics = problem.small_noise().dynamics(step_size=STEP_SIZE)
    starts = measured.initial[:8]
    return measured, dynamics.solve(starts, measured.times, rtol=1e-4, atol=1e-6)


def _fraction_panel(
    axes: Axes, console: Console, problem: GaussianMixture, measured: Trajectory
) -> None:
    """The fraction of runs at the optimal classifier, with its 99 % interval."""
    optimal = problem.is_optimal(measured.values)  # (runs, T)
    runs = len(optimal)
    found = [success.Proportion(int(n), runs) for n in optimal.sum(0).tolist()]
    low, high = zip(*(p.interval(0.99) for p in found), strict=True)
    theory = problem.success_probability()
    axes.fill_between(measured.times, low, high, color=BLUE, alpha=0.2, lw=0, label="99 % interval")
    axes.plot(measured.times, [p.value for p in found], color=BLUE, label="SGD")
    axes.axhline(theory, color="black", ls=":", label=f"theory, {theory:.4g}")
    axes.set(xlabel="limit time $t$", ylim=(0, 1))
    axes.set_title("fraction of runs at an optimal classifier", fontsize=10)
    axes.legend(fontsize=7)
    last = found[-1]
    inside = low[-1] <= theory <= high[-1]
    say(
        console,
        f"optimal classifiers: {last.successes} of {runs} = {last.value:.4f}, 99 % interval "
        f"{low[-1]:.4f} to {high[-1]:.4f}; theory {theory:.5f} is "
        f"{'inside' if inside else 'OUTSIDE'}; others: {1 - last.value:.4f}, theory "
        f"{1 - theory:.5f}",
    )


def _endpoint_panel(
    axes: Axes,
    console: Console,
    spec: MixtureFigure,
    problem: GaussianMixture,
    measured: Trajectory,
) -> None:
    """Endpoints in the plane of two overlaps over the fixed points of the small-noise limit."""
    components = problem.small_noise().fixed_point_components()
    x, y = (measured.index(name) for name in spec.endpoints)
    final = measured.final.double()
    optimal = problem.is_optimal(final)
    radius = components[0].radius2 ** 0.5
    _rings_drawn(axes, components, radius, (x, y))
    for some, colour, label in ((optimal, GREEN, "optimal"), (~optimal, RED, "not optimal")):
        axes.plot(final[some, x], final[some, y], ls="none", marker="o", ms=3.5, mfc="none",
                  mec=colour, label=f"SGD, {label}", zorder=4)  # fmt: skip
    labels = [f"${name.replace('[', '_{').replace(']', '}')}$" for name in spec.endpoints]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_aspect("equal", "datalim")
    axes.set_title("endpoints over the predicted points and rings", fontsize=10)
    # below: all four corners of the panel have points in them
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    distance = torch.stack([c.distance(final) for c in components])
    nearest, which = distance.min(0)
    agree = torch.tensor([components[i].optimal for i in which.tolist()]) == optimal
    for some, label in ((optimal, "optimal"), (~optimal, "not optimal")):
        if bool(some.any()):
            say(
                console,
                f"endpoints, {label}: distance of (v, m, R) to the nearest fixed points at snr = "
                f"inf: median {float(nearest[some].median()):.3f}, largest "
                f"{float(nearest[some].max()):.3f} (radius of the rings {radius:.3f})",
            )
    say(
        console,
        f"  runs whose nearest component says correctly whether they are optimal: "
        f"{int(agree.sum())} of {len(agree)}",
    )


def _rings_drawn(
    axes: Axes, components: Sequence[FixedPointComponent], radius: float, plane: tuple[int, int]
) -> None:
    """Closed set of (m_0, m_1) at fixed points: points, and arcs where two neurons share a mean."""
    x, y = plane
    points = {tuple(round(float(c.point()[i]), 6) for i in (x, y)) for c in components
              if c.dimension == 0 and (c.stable or 0.0 in c.point()[[x, y]].tolist())}  # fmt: skip
    stable = {tuple(round(float(c.point()[i]), 6) for i in (x, y)) for c in components if c.stable}
    angle = torch.linspace(0, math.pi / 2, 60)
    for sign in (1, -1):
        axes.plot(
            sign * radius * angle.cos(), sign * radius * angle.sin(), color="black", lw=1.0,
            label="rings" if sign == 1 else None,
        )  # fmt: skip
    for some, face, label in ((stable, "black", "stable"), (points - stable, "white", "unstable")):
        if some:
            axes.plot(*zip(*some, strict=True), ls="none", marker="s", ms=6, mfc=face, mec="black",
                      label=label, zorder=3)  # fmt: skip


def _runs_panel(
    axes: Axes, spec: MixtureFigure, measured: Trajectory, predicted: Trajectory
) -> None:
    """One overlap of the first runs over the small-noise dynamics from the same starts."""
    name = spec.endpoints[0]
    for run, values in enumerate(predicted[name]):
        colour = f"C{run}"
        axes.plot(measured.times, measured[name][run], color=colour, lw=0.6, alpha=0.6)
        axes.plot(predicted.times, values, color=colour, lw=1.3, ls="--")
    axes.set(xlabel="limit time $t$")
    axes.set_title(f"{name}: 8 runs (lines), ODE at snr = $\\infty$ (dashed)", fontsize=10)

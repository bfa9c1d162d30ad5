"""`parts1` and `figure1`: matrix PCA below and above the threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from torchlimits import tensorboard
from torchlimits.cli.paper.common import BLUE, GREY, RED, STEP_SIZE, PaperOptions, say, seeded
from torchlimits.cli.paper.parts import Part, Tell
from torchlimits.dynamics.fixed_points import FixedPoint
from torchlimits.ensemble.train import train
from torchlimits.problems.spiked.problem import SpikedTensor
from torchlimits.trajectory import Trajectory

SNRS = (0.8, 1.2)


def parts1(options: PaperOptions) -> list[Part]:
    """One dense run below and one above the threshold; many implicit ones at the equator.

    Args:
        options: how large they are, and their seed.
    """
    n, time, runs = _sizes(options)
    dense = [
        Part("1", f"dense SGD at snr {snr:g}", 320.0, _dense_run, (n, snr, time, options.seed))
        for snr in SNRS
    ]
    job = (n, SNRS[0], time / 2, runs, options.seed + 1)
    return [*dense, Part("1", "runs from the equator", 80.0, _equator_runs, job)]


def figure1(options: PaperOptions, console: Console, done: Mapping[str, Any]) -> Figure:
    """Draw what the parts have found, and print its numbers.

    Args:
        options: those of the parts.
        console: where numbers are printed.
        done: the result of each part, by its name.
    """
    n, _, _ = _sizes(options)
    *measured, (many, paths) = [done[part.name] for part in parts1(options)]
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    grid = figure.subplots(2, 3)
    for row, snr, path in zip(grid, SNRS, measured, strict=True):
        problem = SpikedTensor(dim=n, order=2, snr=snr)
        dynamics = problem.dynamics(step_size=STEP_SIZE)
        predicted = dynamics.solve(path.initial, path.times)
        folder = options.logdir / f"figure1/snr {snr:g}"
        tensorboard.write(folder, measured=path, predicted=predicted)
        _pca_row(list(row), problem, path, predicted)
        _pca_numbers(console, problem, path)
    _equator_panel(grid[0, 2], console, SpikedTensor(dim=n, order=2, snr=SNRS[0]), many, paths)
    _escape_panel(grid[1, 2], measured[1], SNRS[1], n)
    figure.suptitle(
        f"Matrix PCA, n = {n}, $c_\\delta$ = 1, dense data: below (top) and above (bottom) "
        "the threshold $\\lambda_c$ = 1",
        fontsize=12,
    )
    return figure


def _sizes(options: PaperOptions) -> tuple[int, float, int]:
    """The dimension, the limit time, and the number of implicit runs."""
    return (60, 2.0, 40) if options.smoke else (1500, 10.0, 200)


def _dense_run(n: int, snr: float, time: float, seed: int, tell: Tell) -> Trajectory:
    problem = SpikedTensor(dim=n, order=2, snr=snr, sampler="dense")
    return train(problem, step_size=STEP_SIZE, time=time, seed=seed, progress=tell)


def _equator_runs(
    n: int, snr: float, time: float, runs: int, seed: int, tell: Tell
) -> tuple[Trajectory, Trajectory]:
    """SGD, and 20,000 paths of the SDE that sqrt(n) m follows there."""
    problem = SpikedTensor(dim=n, order=2, snr=snr)
    many = train(
        problem, step_size=STEP_SIZE, time=time, runs=runs, seed=seed,
        every=max(1, int(2 * time * n) // 100), progress=tell,
    )  # fmt: skip
    starts = torch.stack([torch.randn(20_000, generator=seeded(5)), torch.ones(20_000)], -1)
    limit = problem.equator(step_size=STEP_SIZE)
    return many, limit.solve(starts, many.times, generator=seeded(6))


def _pca_row(
    row: Sequence[Axes], problem: SpikedTensor, path: Trajectory, predicted: Trajectory
) -> None:
    points = problem.dynamics(step_size=STEP_SIZE).exact_fixed_points()
    stable_m = [float(p.u[0]) for p in points if p.stable]
    late = _ballistic(problem, path)
    for name, colour in (("m", BLUE), ("r2", RED)):
        label = {"m": "$m$", "r2": r"$r_\perp^2$"}[name]
        row[0].plot(path.times, path[name][0], color=colour, alpha=0.6, label=f"{label}, SGD")
        row[0].plot(
            predicted.times, predicted[name][0], color=colour, lw=1.2, ls="--",
            label=f"{label}, ODE from step 0",
        )  # fmt: skip
    if late is not None:
        row[0].plot(late.times, late["m"], color="black", lw=1.2, label="$m$, ODE once ballistic")
    for level in stable_m:
        row[0].axhline(level, color=GREY, lw=0.8, ls=":")
    row[0].set(xlabel="limit time $t$", title=f"$\\lambda$ = {problem.snr:g}")
    # below: curves are everywhere
    row[0].legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    _portrait(row[1], problem, path, points)


def _portrait(
    axes: Axes, problem: SpikedTensor, path: Trajectory, points: Sequence[FixedPoint]
) -> None:
    """The plane (m, r2): streamlines of the ODE, the run, the fixed points."""
    m, r2 = torch.linspace(-0.75, 0.75, 31), torch.linspace(0, 1.6, 31)
    plane = torch.stack(torch.meshgrid(m, r2, indexing="xy"), -1).double()
    flow = problem.dynamics(step_size=STEP_SIZE)(0.0, plane)
    axes.streamplot(
        m.numpy(), r2.numpy(), flow[..., 0].numpy(), flow[..., 1].numpy(),
        color="#c9c9c9", linewidth=0.7, arrowsize=0.7, density=0.9,
    )  # fmt: skip
    axes.plot(path["m"][0], path["r2"][0], color=BLUE, lw=0.8, label="SGD")
    _mark(axes, points, 0, 1)
    axes.set(xlabel="$m$", ylabel=r"$r_\perp^2$", xlim=(-0.75, 0.75), ylim=(-0.05, 1.6))
    axes.set_title("flow and fixed points", fontsize=10)
    axes.legend(fontsize=7, loc="upper right")


def _mark(axes: Axes, points: Sequence[FixedPoint], x: int, y: int) -> None:
    for kind, face in (("stable", "black"), ("unstable", "white"), ("marginal", GREY)):
        some = [p.u for p in points if p.kind == kind]
        if some:
            axes.plot(
                [u[x] for u in some], [u[y] for u in some], ls="none", marker="o",
                mfc=face, mec="black", label=kind, zorder=5,
            )  # fmt: skip


def _ballistic(problem: SpikedTensor, path: Trajectory) -> Trajectory | None:
    """The ODE from half of the final overlap on, if there is one and the run gets there."""
    dynamics = problem.dynamics(step_size=STEP_SIZE)
    if problem.snr <= dynamics.critical_snr:
        return None
    beyond = (path["m"][0].abs() > dynamics.m_star() / 2).nonzero().flatten()
    if not len(beyond) or int(beyond[0]) > len(path) - 3:
        return None
    later = path.slice(slice(int(beyond[0]), None))
    return dynamics.solve(later.initial[0], later.times)


def _pca_numbers(console: Console, problem: SpikedTensor, path: Trajectory) -> None:
    points = problem.dynamics(step_size=STEP_SIZE).exact_fixed_points()
    end = path.values[0, -max(1, len(path) // 20) :].mean(0)  # the last twentieth
    nearest = min((p for p in points if p.stable), key=lambda p: float((p.u - end).norm()))
    say(console, f"snr {problem.snr:g}: fixed points {', '.join(map(repr, points))}")
    say(
        console,
        f"  the run ends at (m, r2) = ({end[0]:.4f}, {end[1]:.4f}), "
        f"{float((nearest.u - end).norm()):.4f} from the stable ({nearest.u[0]:.4f}, "
        f"{nearest.u[1]:.4f}); fluctuations are of order n^-1/2 = {problem.dim**-0.5:.4f}",
    )
    late = _ballistic(problem, path)
    if late is not None:
        start = len(path) - len(late)
        gap = (path.values[0, start:] - late.values).abs().max()
        say(console, f"  from t = {late.times[0]:.2f} on within {float(gap):.4f} of the ODE")


def _equator_panel(
    axes: Axes, console: Console, problem: SpikedTensor, many: Trajectory, paths: Trajectory
) -> None:
    """sqrt(n) m over time: paths of SGD, and standard deviations of SGD and of the SDE."""
    m = problem.equator(step_size=STEP_SIZE).rescale(many)["m"]
    rate = 4 * (1 - problem.snr)
    exact = 1 / (1 - problem.snr) + (1 - 1 / (1 - problem.snr)) * torch.exp(-2 * rate * many.times)
    axes.plot(many.times, m[:40].T, color=BLUE, alpha=0.15, lw=0.6)
    spread = m.std(0)
    error = spread / (2 * len(m)) ** 0.5
    axes.errorbar(many.times, spread, 2 * error, color=BLUE, fmt="o", ms=3, label="SGD, sd")
    axes.plot(many.times, paths["m"].std(0), color=RED, label="SDE, sd (20,000 paths)")
    axes.plot(many.times, exact.sqrt(), color="black", ls=":", label="OU, sd")
    axes.set(xlabel="limit time $t$", ylim=(-8, 8))
    axes.set_title(r"diffusive limit: $\sqrt{n}\,m$ at $\lambda$ = 0.8", fontsize=10)
    axes.legend(fontsize=7, loc="lower left")
    count = len(m)
    variance, theory = float(m[:, -1].var()), float(exact[-1])
    say(
        console,
        f"equator at snr {problem.snr:g}, t = {many.times[-1]:g}: Var sqrt(n) m = {variance:.2f} "
        f"+- {variance * (2 / count) ** 0.5:.2f} ({count} runs), OU {theory:.2f}, "
        f"SDE {float(paths['m'][:, -1].var()):.2f}; settles at 1/(1 - snr) = "
        f"{1 / (1 - problem.snr):.2f}",
    )
    # drift: one step of regression of the increments on sqrt(n) m, all runs and times
    gain, before = m.diff(dim=1), m[:, :-1]
    step = float(many.times[1] - many.times[0])
    slope = float((gain * before).sum() / before.square().sum())
    fluctuation = float((gain - slope * before).var() / before.square().sum()) ** 0.5
    say(
        console,
        f"  drift of sqrt(n) m: rate {-math.log1p(slope) / step:.3f} +- "
        f"{fluctuation / step / (1 + slope):.3f}, theory 4 (1 - snr) = {rate:.3f}",
    )


def _escape_panel(axes: Axes, path: Trajectory, snr: float, n: int) -> None:
    """|m| on a logarithmic axis: a diffusive phase, then e^(4 (snr - 1) t), then m*."""
    axes.semilogy(path.times, path["m"][0].abs().clamp_min(1e-4), color=BLUE, lw=0.8, label="SGD")
    t = path.times
    axes.semilogy(t, n**-0.5 * torch.exp(4 * (snr - 1) * t), color=RED, ls="--",
                  label=r"$n^{-1/2} e^{4(\lambda - 1)t}$")  # fmt: skip
    axes.axhline((snr - 1) ** 0.5, color="black", ls=":", label=r"$m_* = \sqrt{\lambda - 1}$")
    axes.axhline(n**-0.5, color=GREY, lw=0.8, label=r"$n^{-1/2}$")
    axes.set(xlabel="limit time $t$", ylim=(n**-0.5 / 10, 1.5))
    axes.set_title(f"$|m|$ at $\\lambda$ = {snr:g}: diffusive, then ballistic", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")

"""SGD with momentum is plain SGD in another time: means and covariances of both, side by side.

    python scripts/momentum.py
    python scripts/momentum.py --snr 0.5 --momentum 0.8

Matrix PCA. Momentum beta with the learning rate delta has, after each step, the law that plain SGD
with delta / (1 - beta) has: in limit time, the sum of the learning rates, t becomes
t / (1 - beta). A buffer takes a few steps to fill, so this holds up to O(1/n). Prints z scores of
the differences in means and (co)variances, and as a control those against plain SGD of the same
delta; draws both over the prediction, <logdir>/momentum.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import torchlimits as tl


@dataclass
class Options:
    """Sizes and parameters."""

    snr: float = 2.0
    """lambda"""
    step_size: float = 0.4
    """c_delta of the runs with momentum"""
    momentum: float = 0.6
    """beta"""
    dim: int = 2000
    """n"""
    runs: int = 400
    """runs of each kind"""
    time: float = 0.4
    """limit time of the runs with momentum"""
    points: int = 5
    """times compared"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    logdir: Path = Path("runs/momentum")


def run(
    problem: tl.SpikedTensor, options: Options, *, step_size: float, momentum: float, seed: int
) -> tl.Trajectory:
    """Take as many steps as the runs with momentum have, from one start."""
    steps = round(options.time * options.dim / options.step_size)
    return tl.train(
        problem,
        step_size=step_size,
        momentum=momentum,
        time=steps * step_size / options.dim,
        runs=options.runs,
        every=max(1, steps // (4 * options.points)),
        start=problem.model(at=(0.3, 0.6), generator=torch.Generator().manual_seed(options.seed)),
        seed=seed,
        progress=False,
    )


def rows_of(options: Options, path: tl.Trajectory) -> list[int]:
    """Evenly spread rows, without the start."""
    last = len(path) - 1
    return sorted({max(1, round(last * (i + 1) / options.points)) for i in range(options.points)})


def z_scores(a: tl.Trajectory, b: tl.Trajectory, row: int) -> dict[str, float]:
    """Differences in the means and covariances of (m, r2), in standard errors."""
    x, y = a.values[:, row], b.values[:, row]
    scores = {}
    for i, name in enumerate(a.names):
        error = ((x[:, i].var() + y[:, i].var()) / len(x)) ** 0.5
        scores[f"E {name}"] = float((x[:, i].mean() - y[:, i].mean()) / error)
    x, y = x - x.mean(0), y - y.mean(0)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        p, q = x[:, i] * x[:, j], y[:, i] * y[:, j]
        error = ((p.var() + q.var()) / len(p)) ** 0.5
        scores[f"Cov {a.names[i]} {a.names[j]}"] = float((p.mean() - q.mean()) / error)
    return scores


def report(
    options: Options, heavy: tl.Trajectory, others: dict[str, tl.Trajectory], console: Console
) -> None:
    """The largest |z| of every moment over the times."""
    rows = rows_of(options, heavy)
    table = Table(
        title=f"largest |z| over {len(rows)} times, momentum {options.momentum:g} against"
    )
    table.add_column("moment")
    for label in others:
        table.add_column(label)
    found = {label: [z_scores(heavy, path, row) for row in rows] for label, path in others.items()}
    for moment in next(iter(found.values()))[0]:
        cells = [f"{max(abs(z[moment]) for z in scores):.1f}" for scores in found.values()]
        table.add_row(moment, *cells)
    console.print(table)
    count = 5 * len(rows)
    console.print(f"Chance: largest of {count} below 3.5 in {100 * (1 - 0.000465 * count):.0f} %.")


def draw(
    options: Options, problem: tl.SpikedTensor, heavy: tl.Trajectory, plain: tl.Trajectory
) -> Figure:
    """Means and bands of two standard deviations, in the time of the runs with momentum."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    dynamics = problem.dynamics(step_size=options.step_size, momentum=options.momentum)
    predicted = dynamics.solve(heavy.initial[0], heavy.times, band=True)
    for axes, name in zip(figure.subplots(1, 2), heavy.names, strict=True):
        axes.plot(heavy.times, predicted[name], color="black", linewidth=1, label="theory")
        assert predicted.std is not None
        width = 2 * predicted.std[..., predicted.index(name)]
        for sign in (-1, 1):
            axes.plot(heavy.times, predicted[name] + sign * width, color="black", linewidth=0.5)
        kinds = (("momentum", heavy, "#c8452f", "o"), ("plain, rescaled", plain, "#3b6fb6", "x"))
        for label, path, colour, marker in kinds:
            axes.errorbar(
                heavy.times,
                path[name].mean(0),
                yerr=2 * path[name].std(0),
                fmt=marker,
                markersize=4,
                linewidth=0.8,
                color=colour,
                label=label,
            )
        axes.set_xlabel("t")
        axes.set_ylabel(name)
    figure.axes[0].legend(frameon=False)
    return figure


def main(options: Options, console: Console) -> None:
    if options.smoke:
        options.dim, options.runs = 100, 20
    problem = tl.SpikedTensor(options.dim, 2, snr=options.snr)
    c, beta = options.step_size, options.momentum
    with console.status(f"{options.runs} runs of each kind"):
        heavy = run(problem, options, step_size=c, momentum=beta, seed=options.seed + 1)
        rescaled = c / (1 - beta)
        plain = run(problem, options, step_size=rescaled, momentum=0.0, seed=options.seed + 2)
        same = run(problem, options, step_size=c, momentum=0.0, seed=options.seed + 2)
    report(options, heavy, {f"plain, c = {rescaled:g}": plain, f"plain, c = {c:g}": same}, console)
    picture = options.logdir / "momentum.png"
    tl.figures.save(draw(options, problem, heavy, plain), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

"""Matrix PCA by SGD and by normalised SGD: the threshold is lower without the gradients' lengths.

    python scripts/normalized.py
    python scripts/normalized.py --smoke

Sweeps the snr lambda at one c_delta and dimension n. SGD ends at m^2 = lambda - c, from lambda = c
on; SGD-U, which scales every gradient to the length sqrt(n), at m^2 = lambda - c / (2 sqrt(2
lambda)), from lambda = c^(2/3) / 2 on. All runs start at (m, r2) = (0.6, 0.6). Near the thresholds
m settles slowly, so the table has, beside the fixed points, what the effective dynamics say at the
very times that are averaged. Writes <logdir>/normalized.png. Error bars are two standard errors
over the runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

import torchlimits as tl
from torchlimits.problems.spiked.dynamics import SpikedDynamics

KINDS = {"SGD": torch.optim.SGD, "SGD-U": tl.NormalizedSGD}
COLOURS = {"SGD": "#3b6fb6", "SGD-U": "#c8452f"}


@dataclass
class Options:
    """Sizes and parameters."""

    snrs: tuple[float, ...] = (0.2, 0.35, 0.45, 0.55, 0.7, 0.85, 0.95, 1.05, 1.2, 1.4)
    """lambda"""
    step_size: float = 1.0
    """c_delta"""
    dim: int = 1500
    """n"""
    runs: int = 20
    """runs of each optimizer at each snr"""
    time: float = 12.0
    """limit time; the second half is averaged"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    logdir: Path = Path("runs/normalized")


@dataclass(frozen=True)
class Row:
    """What was found at one snr by one optimizer."""

    kind: str
    snr: float
    theory: float
    dynamics: float
    mean: float
    error: float


def dynamics_of(options: Options, kind: str, snr: float) -> SpikedDynamics:
    """The effective dynamics of an optimizer."""
    problem = tl.SpikedTensor(options.dim, 2, snr=snr)
    parameters = problem.model().parameters()
    return problem.dynamics(KINDS[kind](parameters, lr=options.step_size / options.dim))


def theory(dynamics: SpikedDynamics) -> float:
    """m of the stable fixed point that a positive start goes to."""
    return dynamics.m_star() if dynamics.snr > dynamics.critical_snr else 0.0


def run(options: Options, kind: str, snr: float) -> Row:
    """Real runs, all at once."""
    generator = torch.Generator().manual_seed(options.seed)
    problem = tl.SpikedTensor(options.dim, 2, snr=snr)
    runs = (options.runs,)
    model = problem.model(at=(0.6, 0.6), replicas=runs, generator=generator)
    optimizer = KINDS[kind](model.parameters(), lr=options.step_size / options.dim)
    steps = round(options.time * options.dim / options.step_size)
    with tl.track(model, optimizer, problem.statistics, every=max(1, steps // 200)) as tracker:
        for _ in range(steps):
            features, data = problem.sample(1, replicas=runs, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(features), data).backward()
            optimizer.step()
    measured, dynamics = tracker.trajectory(), problem.dynamics(optimizer)
    half = len(measured) // 2
    late = measured["m"][:, half:].mean(1)
    error = float(late.std()) / options.runs**0.5
    predicted = float(dynamics.solve(measured.initial[0], measured.times)["m"][half:].mean())
    return Row(kind, snr, theory(dynamics), predicted, float(late.mean()), error)


def report(options: Options, rows: list[Row], console: Console) -> None:
    """One line per snr."""
    table = Table(title=f"matrix PCA, n = {options.dim}, c_delta = {options.step_size:g}: final m")
    table.add_column("snr")
    for kind in KINDS:
        for column in ("fixed\npoint", "dynamics", "measured"):
            table.add_column(f"{kind}:\n{column}")
    for snr in options.snrs:
        cells = []
        for row in (row for row in rows if row.snr == snr):
            measured = f"{row.mean:.3f}±{row.error:.3f}"
            cells += [f"{row.theory:.4f}", f"{row.dynamics:.4f}", measured]
        table.add_row(f"{snr:g}", *cells)
    console.print(table)
    for kind in KINDS:
        console.print(f"threshold of {kind}: {dynamics_of(options, kind, 1.0).critical_snr:.4f}")


def snrs_of(rows: list[Row]) -> list[float]:
    """The signal-to-noise ratios of the rows, in their order."""
    return [row.snr for row in rows]


def draw(options: Options, rows: list[Row]) -> Figure:
    """Measured ends on the curves, bars the dynamics at their times, thresholds dotted."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    snrs = torch.linspace(min(options.snrs), max(options.snrs), 400).tolist()
    for kind, colour in COLOURS.items():
        curve = [theory(dynamics_of(options, kind, snr)) for snr in snrs]
        axes.plot(snrs, curve, color=colour, label=f"{kind}, theory")
        axes.axvline(
            dynamics_of(options, kind, 1.0).critical_snr, color=colour, linestyle=":", linewidth=1
        )
        found = [row for row in rows if row.kind == kind]
        ends = [row.dynamics for row in found]
        axes.plot(snrs_of(found), ends, "_", color=colour, markersize=12)
        axes.errorbar(
            snrs_of(found),
            [row.mean for row in found],
            yerr=[2 * row.error for row in found],
            fmt="o",
            markersize=4,
            color=colour,
            label=f"{kind}, {options.runs} runs",
        )
    axes.set_xlabel("snr")
    axes.set_ylabel("m at the end")
    axes.set_title(f"matrix PCA, n = {options.dim}, c = {options.step_size:g}", fontsize=10)
    axes.legend(frameon=False)
    return figure


def main(options: Options, console: Console) -> None:
    if options.smoke:
        options.snrs, options.dim, options.runs, options.time = (0.3, 0.75, 1.4), 100, 5, 4.0
    cells = [(kind, snr) for snr in options.snrs for kind in KINDS]
    rows = [
        run(options, kind, snr)
        for kind, snr in track(cells, description="training", console=console, transient=True)
    ]
    report(options, rows, console)
    picture = options.logdir / "normalized.png"
    tl.figures.save(draw(options, rows), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

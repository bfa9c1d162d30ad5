"""How often random starts end at an optimal classifier, against the width: SGD, ODE, theory.

    python scripts/success.py xor
    python scripts/success.py binary --widths 2 3 4 6

Prints a table and writes <logdir>/<mixture>.png. Intervals are binomial (Wilson, 95 %). With
--folder, each width is kept in a file there: what was stopped goes on, and several processes
(torchrun, any number of machines that see the folder) share the widths.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import torchlimits as tl
from torchlimits.experiments.ranks import rank_and_size


@dataclass
class Options:
    """Which mixture, and how many runs."""

    mixture: Annotated[Literal["binary", "xor"], tyro.conf.Positional]
    widths: tuple[int, ...] | None = None
    """K; by default 1 2 3 4 6 8 (binary), 4 6 8 12 16 (xor)"""
    dim: int = 250
    """N"""
    snr: float | None = None
    """lambda; by default 100 (binary), 1000 (xor)"""
    ridge: float = 0.1
    runs: int = 200
    """runs of SGD at each width"""
    time: float = 30.0
    """limit time of SGD: which classifier a run goes to is settled early"""
    starts: int = 40
    """starts of the effective dynamics at each width; 0 leaves them out"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    logdir: Path = Path("runs/success")
    folder: Path | None = None
    """where to keep the widths, for all processes that are started alike"""


@dataclass(frozen=True)
class Row:
    """What was found at one width."""

    width: int
    theory: float
    sgd: tl.success.Proportion
    dynamics: tl.success.Proportion | None


@dataclass(frozen=True)
class AtWidth:
    """What is measured at a width; nothing else of the options matters there."""

    mixture: str
    dim: int
    snr: float | None
    ridge: float
    runs: int
    time: float
    starts: int
    seed: int

    def __call__(self, width: int) -> dict[str, Any]:
        """Theory, and what SGD and the dynamics do."""
        xor = self.mixture == "xor"
        make = tl.GaussianMixture.xor if xor else tl.GaussianMixture.binary
        snr = self.snr or (1000.0 if xor else 100.0)
        problem = make(self.dim, width, snr=snr, ridge=self.ridge)
        sgd = tl.success.by_sgd(
            problem, step_size=1.0, time=self.time, runs=self.runs, seed=self.seed
        )
        dynamics = None
        if self.starts:
            dynamics = tl.success.by_dynamics(
                problem, step_size=1.0, starts=self.starts, seed=self.seed + 1
            )
        return {"theory": problem.success_probability(), "sgd": sgd, "dynamics": dynamics}


def measure(options: Options) -> list[Row]:
    """All widths."""
    at = AtWidth(**{field.name: getattr(options, field.name) for field in fields(AtWidth)})
    widths = options.widths or ((4, 6, 8, 12, 16) if at.mixture == "xor" else (1, 2, 3, 4, 6, 8))
    found = tl.sweep(at, {"width": widths}, folder=options.folder, progress=True)
    return [row(width, **result) for width, result in zip(widths, found.results, strict=True)]


def row(width: int, theory: float, sgd: dict[str, int], dynamics: dict[str, int] | None) -> Row:
    """A width's, from what its file holds."""
    make = tl.success.Proportion
    return Row(width, theory, make(**sgd), None if dynamics is None else make(**dynamics))


def report(options: Options, rows: list[Row], console: Console) -> None:
    """One line per width."""
    table = Table(title=f"{options.mixture}: P(optimal classifier) from random starts")
    for column in ("K", "theory", "SGD", "effective dynamics"):
        table.add_column(column)
    for row in rows:
        table.add_row(str(row.width), f"{row.theory:.4f}", str(row.sgd), str(row.dynamics or "-"))
    console.print(table)


def draw(options: Options, rows: list[Row]) -> Figure:
    """The curve to 1 with the width."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    widths = list(range(1, max(row.width for row in rows) + 1))
    means = 4 if options.mixture == "xor" else 2
    axes.plot(widths, [tl.success.exact(means, K) for K in widths], color="black", label="theory")
    kinds = (("sgd", "SGD", "#3b6fb6", -0.06), ("dynamics", "effective dynamics", "#c8452f", 0.06))
    for key, label, colour, shift in kinds:
        found = [(row.width + shift, p) for row in rows if (p := getattr(row, key)) is not None]
        if not found:
            continue
        values = torch.tensor([p.value for _, p in found])
        low, high = torch.tensor([p.interval() for _, p in found]).T
        axes.errorbar(
            [x for x, _ in found], values, torch.stack([values - low, high - values]),
            fmt="o", ms=4, color=colour, label=label,
        )  # fmt: skip
    axes.set(xlabel="width $K$", ylabel="P(optimal classifier)", ylim=(0, 1.02))
    axes.set_title(f"{options.mixture}: the benefit of width (95 % intervals)", fontsize=11)
    axes.legend()
    return figure


def main(options: Options, console: Console) -> None:
    """Run, print, draw."""
    if options.smoke:
        options.widths = options.widths or ((4, 8) if options.mixture == "xor" else (2, 3))
        options.dim, options.runs, options.time, options.starts = 40, 20, 5.0, 4
    rows = measure(options)
    if rank_and_size()[0] > 0:
        return  # the first process shows what all have found
    report(options, rows, console)
    picture = options.logdir / f"{options.mixture}.png"
    tl.figures.save(draw(options, rows), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

"""How long SGD takes: matrix PCA needs n log n steps, tensor PCA n from a warm start.

    python scripts/timescales.py
    python scripts/timescales.py --smoke

Matrix PCA above the threshold, from random starts in dimension n: the overlap m starts at n^-1/2,
grows by diffusion and drift together (sqrt(n) m follows the SDE at the equator), and, once it is of
order 1, follows the ODE: the time to half its final value grows like log n / (8 (snr - c)) in limit
time, n log n in steps. Tensor PCA: cold starts stay where they are, warm ones recover at once.
Writes <logdir>/timescales.png, and event files of the largest n for TensorBoard.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import torchlimits as tl

COLOURS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#084594")


@dataclass
class Options:
    """Sizes and parameters."""

    dims: tuple[int, ...] = (100, 316, 1000, 3162, 10_000)
    """n"""
    snr: float = 2.0
    """lambda of matrix PCA, above the threshold c_delta = 1"""
    runs: int = 40
    """runs at each n"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    logdir: Path = Path("runs/timescales")


@dataclass(frozen=True)
class Escape:
    """Runs of matrix PCA in dimension n."""

    problem: tl.SpikedTensor
    measured: tl.Trajectory

    @property
    def half(self) -> torch.Tensor:
        """The limit time of every run at which |m| first is half of m_star; NaN if never."""
        m_star = self.problem.dynamics(step_size=1.0).m_star()
        beyond = self.measured["m"].abs() >= m_star / 2
        first = self.measured.times[beyond.int().argmax(-1)]
        return torch.where(beyond.any(-1), first, math.nan)

    def growth(self) -> torch.Tensor:
        """Standard deviation of sqrt(n) m at the equator, by the SDE: an unstable OU process."""
        rate, start = 4 * (self.problem.snr - 1), 1.0
        gain = torch.exp(2 * rate * self.measured.times)
        return (start * gain + 4 * 2 * (gain - 1) / (2 * rate)).sqrt()

    @property
    def switch(self) -> float:
        """When the root mean square of sqrt(n) m falls short of the SDE by a fifth: ballistic."""
        spread = self.measured["m"].square().mean(0).sqrt() * self.problem.dim**0.5
        short = spread < 0.8 * self.growth()
        short &= self.measured.times > 0.2
        return float(self.measured.times[short.int().argmax()]) if bool(short.any()) else math.nan


def escapes(options: Options, console: Console) -> list[Escape]:
    """Random starts of matrix PCA, c_delta = 1."""
    found = []
    for n in options.dims:
        time = (math.log(n) / 2 + 4.5) / (4 * (options.snr - 1))
        problem = tl.SpikedTensor(dim=n, order=2, snr=options.snr)
        with console.status(f"matrix PCA, n = {n}, {options.runs} runs, {time * n:.0f} steps"):
            measured = tl.train(
                problem, step_size=1.0, time=time, runs=options.runs, seed=options.seed,
                every=max(1, n // 100), progress=False,
            )  # fmt: skip
        found.append(Escape(problem, measured))
    return found


def report_escapes(found: list[Escape], snr: float, console: Console) -> tuple[float, float]:
    """Table of times; slope of the mean time on log n and its standard error."""
    table = Table(title="matrix PCA from random starts: time to half the final overlap")
    for column in ("n", "limit time", "steps", "steps / n", "steps / (n log n)", "switch at t"):
        table.add_column(column, justify="right")
    means, errors = [], []
    for one in found:
        n, half = one.problem.dim, one.half[one.half.isfinite()]
        mean, error = float(half.mean()), float(half.std()) / len(half) ** 0.5
        means.append(mean)
        errors.append(error)
        table.add_row(
            str(n), f"{mean:.3f} +- {error:.3f}", f"{mean * n:.0f}", f"{mean:.3f}",
            f"{mean / math.log(n):.4f}", f"{one.switch:.2f}",
        )  # fmt: skip
    console.print(table)
    logs = torch.tensor([math.log(one.problem.dim) for one in found])
    weights = torch.tensor(errors).clamp_min(1e-9) ** -2
    centre = (weights * logs).sum() / weights.sum()
    spread = (weights * (logs - centre) ** 2).sum()
    slope = float((weights * (logs - centre) * torch.tensor(means)).sum() / spread)
    error = float(spread) ** -0.5
    say(
        console,
        f"limit time against log n: slope {slope:.4f} +- {error:.4f}; theory 1 / (8 (snr - 1)) = "
        f"{1 / (8 * (snr - 1)):.4f} (steps like n log n); steps like n would have slope 0, "
        f"{abs(slope) / error:.0f} standard errors away",
    )
    return slope, error


def warm_and_cold(options: Options, console: Console) -> list[tuple[str, tl.Trajectory]]:
    """Tensor PCA, k = 3, snr 1, c_delta = 0.2: cold, just below and just above the barrier."""
    time, shown = 4.0, []
    # a unit of time takes 5 n steps here, and everything is settled at n = 1000
    dims = sorted(n for n in options.dims if n <= 1000) or [min(options.dims)]
    barrier = tl.SpikedTensor(dim=100, order=3, snr=1.0).dynamics(step_size=0.2).m_dagger()
    table = Table(
        title=f"tensor PCA (k = 3, snr 1, c_delta 0.2), m_dagger = {barrier:.4f}: fraction of runs "
        f"that recover by t = {time:g}"
    )
    starts = {"random": None, "m = m_dagger / 3": barrier / 3, "m = 4 m_dagger": 4 * barrier}
    for column in ("n", *starts):
        table.add_column(column, justify="right")
    for n in dims:
        problem = tl.SpikedTensor(dim=n, order=3, snr=1.0)
        goal = problem.dynamics(step_size=0.2).m_star() / 2
        row = []
        for label, m in starts.items():
            with console.status(f"tensor PCA, n = {n}, {label}"):
                measured = tl.train(
                    problem, step_size=0.2, time=time, runs=options.runs, seed=options.seed,
                    start=None if m is None else problem.model(at=(m, 0.2), generator=seeded(3)),
                    every=max(1, n // 10), progress=False,
                )  # fmt: skip
            recovered = int((measured["m"][:, -1] > goal).sum())
            row.append(f"{tl.success.Proportion(recovered, options.runs).value:.2f}")
            if n == dims[-1]:
                shown.append((label, measured))
        table.add_row(str(n), *row)
    console.print(table)
    return shown


def seeded(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def say(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def draw(
    found: list[Escape], fit: tuple[float, float], tensor: list[tuple[str, tl.Trajectory]]
) -> Figure:
    """Growth of the overlap, time against n, warm and cold starts."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    growth, times, starts = figure.subplots(1, 3)
    for one, colour in zip(found, COLOURS * 2, strict=False):
        m = one.measured["m"].square().mean(0).sqrt()
        growth.semilogy(one.measured.times, m, color=colour, label=f"n = {one.problem.dim}")
        growth.semilogy(
            one.measured.times, one.growth() / one.problem.dim**0.5, color=colour, ls="--", lw=0.9
        )
    m_star = found[0].problem.dynamics(step_size=1.0).m_star()
    growth.axhline(m_star, color="black", ls=":")
    growth.set(xlabel="limit time $t$", ylabel="root mean square of $m$", ylim=(5e-3, 3))
    growth.set_title("SGD (lines) leaves the SDE (dashed) for the ODE's $m_*$", fontsize=10)
    growth.legend(fontsize=7, loc="lower right")
    _draw_times(times, found, fit)
    for label, measured in tensor:
        colour = {"r": "#777777", "m": "#c8452f"}[label[0]]
        colour = "#2f8f5b" if "4" in label else colour
        lines = starts.plot(measured.times, measured["m"][:15].T, color=colour, lw=0.7, alpha=0.6)
        lines[0].set_label(label.replace("m_dagger", r"$m_\dagger$"))
    starts.set(xlabel="limit time $t$", ylabel="$m$")
    starts.set_title("tensor PCA, $k$ = 3: cold and warm starts", fontsize=10)
    starts.legend(fontsize=7, loc="center right")
    return figure


def _draw_times(axes: Axes, found: list[Escape], fit: tuple[float, float]) -> None:
    dims = [one.problem.dim for one in found]
    half = [one.half[one.half.isfinite()] for one in found]
    mean = [float(h.mean()) for h in half]
    error = [2 * float(h.std()) / len(h) ** 0.5 for h in half]
    axes.errorbar(dims, mean, error, fmt="o", color="#084594", label="SGD, 2 standard errors")
    theory = 1 / (8 * (found[0].problem.snr - 1))
    offset = sum(m - theory * math.log(n) for m, n in zip(mean, dims, strict=True)) / len(dims)
    axes.plot(dims, [offset + theory * math.log(n) for n in dims], color="#c8452f",
              label=rf"slope $1/(8(\lambda - 1))$ = {theory:.3f}; fit {fit[0]:.3f}")  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="$n$", ylabel="steps / $n$ to half the final overlap")
    axes.set_title("matrix PCA: $n \\log n$ steps", fontsize=10)
    axes.legend(fontsize=7)


def main(options: Options, console: Console) -> None:
    """Run, print, draw."""
    if options.smoke:
        options.dims, options.runs = (50, 200), 10
    if options.snr <= 1:
        raise ValueError(f"expected snr above the threshold 1, got {options.snr:g}")
    if len(set(options.dims)) < 2 or options.runs < 2:
        raise ValueError("expected at least two different dims and two runs, to fit a slope")
    found = escapes(options, console)
    fit = report_escapes(found, options.snr, console)
    tensor = warm_and_cold(options, console)
    last = found[-1]
    predicted = last.problem.dynamics(step_size=1.0).solve(
        last.measured.initial, last.measured.times
    )
    tl.tensorboard.write(options.logdir, measured=last.measured, predicted=predicted)
    picture = options.logdir / "timescales.png"
    tl.figures.save(draw(found, fit, tensor), picture, dpi=90)
    say(console, f"Picture: {picture}")
    program = Path(sys.executable).with_name("tensorboard")
    say(console, f"{program} --logdir {options.logdir}")


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

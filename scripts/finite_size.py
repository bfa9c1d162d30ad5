"""Finite dimension: bias and spread of SGD around the effective dynamics, and escape from a saddle.

    python scripts/finite_size.py matrix
    python scripts/finite_size.py binary

1. From one start, SGD's exact law at n = 10^2 ... 10^9 (the reduced chain) against the ODE and its
   band: the mean is off by about 1/n, the spread is the band's, about n^(-1/2). Up to 10^4 the runs
   go to the end; beyond, they take as many steps as can be taken, for a short time.
2. matrix only: the time to leave the saddle m = 0 from random starts grows like log n. Exact chain
   up to 10^4, the diffusion at dimension n (LangevinDynamics) up to 10^9.

Prints tables and fitted exponents, and writes <logdir>/<problem>.png.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import torchlimits as tl
from torchlimits.dynamics.reduced_chain import ReducedChain
from torchlimits.estimation.conditions import power_law


@dataclass
class Options:
    """Which problem, and how many runs."""

    problem: Annotated[Literal["matrix", "binary"], tyro.conf.Positional] = "matrix"
    runs: int = 20_000
    """runs at n <= 1000; a quarter of them beyond"""
    largest_full: int = 10_000
    """n up to which runs go to the end"""
    decades: int = 9
    """the largest n is 10 to this power"""
    short_steps: int = 2000
    """steps beyond that"""
    escapes: int = 1000
    """runs that leave the saddle, at each n"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    logdir: Path = Path("runs/finite_size")


@dataclass(frozen=True)
class Row:
    """Differences at the last time in one dimension, one entry for each statistic."""

    dim: int
    time: float
    full: bool
    bias: Tensor
    error: Tensor
    spread: Tensor
    band: Tensor


@dataclass(frozen=True)
class Escape:
    """Mean time to leave the saddle, with its standard error."""

    dim: int
    exact: bool
    time: float
    error: float


#: snr, ridge, limit time; c_delta is 1
_SNR, _RIDGE, _TIME = {"matrix": 2.0, "binary": 2.0}, 0.05, {"matrix": 1.0, "binary": 2.0}


def setting(name: str, dim: int) -> tuple[tl.EffectiveDynamics, ReducedChain, Tensor]:
    """Effective dynamics and exact chain at dimension n, and a start off the saddle."""
    if name == "matrix":
        problem = tl.SpikedTensor(dim=100, order=2, snr=_SNR[name])
        start = [0.5, 1.0]
    else:
        problem = tl.GaussianMixture.binary(dim=100, snr=_SNR[name], ridge=_RIDGE)
        start = [1.0, -0.7, 0.5, -0.3, 1.0, 0.0, 1.0]
    dynamics = problem.dynamics(step_size=1.0, dim=dim)
    chain = problem.reduced_chain(step_size=1.0, dim=dim)
    return dynamics, chain, torch.tensor(start, dtype=torch.float64)


def fluctuations(options: Options, dim: int) -> Row:
    """Runs from one start, against the ODE and its band."""
    dynamics, chain, start = setting(options.problem, dim)
    full = dim <= options.largest_full
    steps = round(_TIME[options.problem] * dim) if full else options.short_steps
    runs = options.runs if dim <= 1000 else options.runs // 4
    generator = torch.Generator().manual_seed(options.seed + dim)
    path = chain.run(start, steps, runs=runs, every=steps, generator=generator)
    predicted = dynamics.solve(start, path.times, band=True, rtol=1e-10, atol=1e-13)
    assert predicted.std is not None
    difference = path.final - predicted.final
    spread = difference.std(0)
    return Row(
        dim, float(path.times[-1]), full, difference.mean(0), spread / runs**0.5, spread,
        predicted.std[-1],
    )  # fmt: skip


def escape(options: Options, dim: int, *, exact: bool) -> Escape:
    """Escape times from random starts: until m^2 is half of what it is in the end."""
    dynamics, chain, _ = setting("matrix", dim)
    generator = torch.Generator().manual_seed(options.seed + dim)
    m = torch.randn(options.escapes, generator=generator, dtype=torch.float64) / dim**0.5
    starts = torch.stack([m, torch.ones_like(m)], dim=-1)
    level = math.sqrt((_SNR["matrix"] - 1) / 2)
    # the overlap grows like e^(4 (snr - 1) t) from n^(-1/2), and from less now and then
    time = 2.5 + 0.5 * math.log(dim)
    if exact:
        steps = round(time * dim)
        path = chain.run(starts, steps, every=max(1, dim // 50), generator=generator)
    else:
        times = torch.linspace(0, time, round(50 * time) + 1)
        path = dynamics.langevin().solve(starts, times, generator=generator)
    passed = path["m"].abs() >= level
    times = path.times[passed.double().argmax(-1)]
    left = int((~passed.any(-1)).sum())
    if left:
        raise RuntimeError(f"{left} runs have not left the saddle at n = {dim} by t = {time:.1f}")
    return Escape(dim, exact, float(times.mean()), float(times.std() / len(times) ** 0.5))


def report(options: Options, names: list[str], rows: list[Row], console: Console) -> None:
    """A line for each dimension, and the exponents."""
    table = Table(title=f"{options.problem}: SGD's exact law against the ODE and its band")
    for column in ("n", "t", "largest |mean - ODE|", "in its errors", "spread / band"):
        table.add_column(column, justify="right")
    for row in rows:
        z = (row.bias / row.error.clamp_min(1e-300)).abs()
        worst, ratio = int(row.bias.abs().argmax()), row.spread / row.band
        table.add_row(
            f"{row.dim:,}", f"{row.time:.3g}", f"{names[worst]}: {row.bias[worst].abs():.2e}",
            f"{z[worst]:.1f}", f"{ratio.min():.3f} ... {ratio.max():.3f}",
        )  # fmt: skip
    console.print(table)
    full = [row for row in rows if row.full]
    for i, name in enumerate(names):
        law = power_law.fit(
            [r.dim for r in full], [float(r.spread[i]) for r in full],
            [float(r.error[i]) / 2**0.5 for r in full],
        )  # fmt: skip
        seen = [r for r in full if r.bias[i].abs() > 3 * r.error[i]]
        text = "bias too small to see"
        if len(seen) > 1:
            fitted = power_law.fit(
                [r.dim for r in seen], [float(r.bias[i].abs()) for r in seen],
                [float(r.error[i]) for r in seen],
            )  # fmt: skip
            text = f"bias ~ {fitted}, theory -1"
        console.print(
            f"  {name}: spread ~ n^({law.exponent:.3f} ± {law.standard_error:.3f}), theory -1/2; "
            + text,
            highlight=False,
        )


def report_escapes(found: list[Escape], console: Console) -> None:
    """A line for each dimension, and the slope in log n."""
    table = Table(title="matrix: limit time to leave the saddle m = 0, random starts")
    for column in ("n", "exact chain", "diffusion at dimension n"):
        table.add_column(column, justify="right")
    for dim in sorted({e.dim for e in found}):
        cells = {e.exact: f"{e.time:.3f} ± {e.error:.3f}" for e in found if e.dim == dim}
        table.add_row(f"{dim:,}", cells.get(True, "-"), cells.get(False, "-"))
    console.print(table)
    rate = 4 * (_SNR["matrix"] - 1)
    for exact, label in ((True, "exact chain"), (False, "diffusion")):
        chosen = [e for e in found if e.exact is exact]
        # a straight line in log n: e^time is a power of n
        values = [math.exp(e.time) for e in chosen]
        errors = [y * e.error for y, e in zip(values, chosen, strict=True)]
        law = power_law.fit([e.dim for e in chosen], values, errors)
        console.print(
            f"  {label}: time = {law.exponent:.4f} ± {law.standard_error:.4f} log n + const, "
            f"theory 1/(2 rate) = {1 / (2 * rate):.4f}: steps grow like n log n",
            highlight=False,
        )


def draw(options: Options, names: list[str], rows: list[Row], found: list[Escape]) -> Figure:
    """Bias and spread over n; the spread in bands; escape times."""
    figure = Figure(figsize=(12.6 if found else 8.6, 4.0), layout="constrained")
    left, middle, *right = figure.subplots(1, 3 if found else 2)
    dims = [row.dim for row in rows]
    full = [row for row in rows if row.full]
    for i, name in enumerate(names):
        colour = f"C{i}"
        at = [row.dim for row in full]
        left.plot(at, [row.band[i] for row in full], color=colour, lw=1)
        left.plot(at, [row.spread[i] for row in full], "o", color=colour, ms=4, label=name)
        left.errorbar(
            at, [row.bias[i].abs() for row in full], [row.error[i] for row in full],
            fmt="s", mfc="white", color=colour, ms=4,
        )  # fmt: skip
        middle.plot(dims, [row.spread[i] / row.band[i] for row in rows], "o-", color=colour, ms=3)
    ends, most = [full[0].dim, full[-1].dim], float(full[0].bias.abs().max())
    left.plot(ends, [most * ends[0] / n for n in ends], ":", color="grey", label="1/n")
    left.set(xscale="log", yscale="log", xlabel="$n$")
    left.set_title(f"t = {_TIME[options.problem]:g}: spread (dots; line: band), |bias| (squares)",
                   fontsize=9)  # fmt: skip
    left.legend(fontsize=7)
    middle.axhspan(0.95, 1.05, color="#dddddd")
    middle.set(xscale="log", xlabel="$n$", ylim=(0.8, 1.2))
    middle.set_title("spread over the predicted one", fontsize=9)
    for axes in right:
        for exact, marker, label in ((True, "o", "exact chain"), (False, "x", "diffusion")):
            chosen = [e for e in found if e.exact is exact]
            axes.errorbar(
                [e.dim for e in chosen], [e.time for e in chosen], [e.error for e in chosen],
                fmt=marker, ms=5, label=label, mfc="white",
            )  # fmt: skip
        last = [e for e in found if not e.exact][-1]
        slope = 1 / (8 * (_SNR["matrix"] - 1))
        axes.plot(
            ends := [100, last.dim], [last.time + slope * math.log(n / last.dim) for n in ends],
            color="grey", lw=1, label="slope of theory",
        )  # fmt: skip
        axes.set(xscale="log", xlabel="$n$")
        axes.set_title("limit time to leave the saddle", fontsize=9)
        axes.legend(fontsize=8)
    return figure


def main(options: Options, console: Console) -> None:
    """Run, print, draw."""
    if options.smoke:
        options.runs, options.largest_full, options.decades = 400, 400, 4
        options.short_steps, options.escapes = 100, 100
    dims = [round(10 ** (p / 2)) for p in range(4, 2 * options.decades + 1)]
    dims = [n for n in dims if n <= options.largest_full or math.log10(n) % 1 < 1e-9]
    names = setting(options.problem, 100)[0].names
    rows = [fluctuations(options, n) for n in track(dims, description="one start")]
    report(options, names, rows, console)
    found: list[Escape] = []
    if options.problem == "matrix":
        decades = [10**p for p in range(2, options.decades + 1)]
        cases = [(n, True) for n in dims if n <= options.largest_full]
        cases += [(n, False) for n in decades]
        found = [
            escape(options, n, exact=exact) for n, exact in track(cases, description="escapes")
        ]
        report_escapes(found, console)
    picture = options.logdir / f"{options.problem}.png"
    tl.figures.save(draw(options, names, rows, found), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

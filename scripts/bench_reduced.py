"""What a step of the exact reduced chain costs, beside real SGD in the full space.

    python scripts/bench_reduced.py

XOR mixture, K=4, 22 statistics, 1000 replicas, batch 1, on the CPU; neither records. SGD is the
runner's loop, one module with a leading replica dimension, at N=1000, in float32; the chain runs in
float64, at N=1000 and at N=10^9. The floor is the normals that the chain draws. Contenders are
interleaved and each ratio is taken within one round; the table shows medians and quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table

import torchlimits as tl


@dataclass
class Options:
    """How much to measure."""

    runs: int = 1000
    dim: int = 1000
    width: int = 4
    steps: int = 400
    """of the chain in one round"""
    full_steps: int = 20
    """of SGD in the full space"""
    rounds: int = 9
    threads: int | None = None
    """torch threads; by default torch's choice"""


def sgd(problem: tl.GaussianMixture, options: Options) -> Callable[[], None]:
    """Steps of real SGD on all replicas, as `tl.train` takes them."""
    model = problem.model(replicas=(options.runs,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / problem.dim, weight_decay=problem.ridge)

    def run() -> None:
        for _ in range(options.full_steps):
            x, y = problem.sample(1, replicas=(options.runs,))
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()

    return run


def chain(problem: tl.GaussianMixture, dim: int, options: Options) -> Callable[[], None]:
    """Steps of the reduced chain at another dimension than the problem's."""
    reduced = problem.reduced_chain(step_size=1.0, dim=dim)
    u0, _ = problem.random_start(torch.tensor([1.0, -1.0] * (options.width // 2)))
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        reduced.run(u0, options.steps, runs=options.runs, every=options.steps, generator=generator)

    return run


def normals(options: Options, directions: int) -> Callable[[], None]:
    """As many normals as the chain draws: d signal directions, the frame's, and the new one."""
    count = directions + options.width + 3
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for _ in range(options.steps // 4):
            torch.randn(4 * count, options.runs, dtype=torch.float64, generator=generator)

    return run


def main(options: Options) -> None:
    """Measure and print."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=4.0, ridge=0.05)
    contenders = {
        f"SGD, N = {options.dim}": (sgd(problem, options), options.full_steps),
        f"reduced chain, N = {options.dim}": (chain(problem, options.dim, options), options.steps),
        "reduced chain, N = 10^9": (chain(problem, 10**9, options), options.steps),
        "floor: its normals": (normals(options, len(problem.directions)), options.steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds + 1):
        for name, (run, steps) in contenders.items():
            begin = time.perf_counter()
            run()
            if round_:  # the first round warms up
                seconds[name].append((time.perf_counter() - begin) / steps)
    first = next(iter(seconds))
    table = Table(title=f"{options.runs} replicas, {len(problem.names)} statistics")
    for column in ("", "us a step", "replica-steps/s", "faster than SGD", "quartiles"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, times in seconds.items():
        faster = [a / b for a, b in zip(seconds[first], times, strict=True)]
        low, middle, high = statistics.quantiles(faster, n=4)
        step = statistics.median(times)
        table.add_row(
            name, f"{1e6 * step:.0f}", f"{options.runs / step:,.0f}", f"{middle:.1f}",
            f"{low:.1f} ... {high:.1f}",
        )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

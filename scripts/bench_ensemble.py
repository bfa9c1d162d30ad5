"""What a step of `tl.train` costs, beside the random numbers it needs and a plain loop.

    python scripts/bench_ensemble.py

XOR mixture, K=4, batch 1, float32, all 22 statistics every 10 steps. The floor draws as many
normals as the data have, N a replica and step, by torch.randn on one thread. The plain loop trains
one run at a time, recording nothing. Contenders are interleaved and each ratio is taken within one
round; the table shows medians and quartiles. On CUDA, an eager loop of all runs joins in.
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

    runs: int = 200
    dims: tuple[int, ...] = (250, 1000)
    width: int = 4
    every: int = 10
    steps: int = 2000
    """of tl.train in one round"""
    rounds: int = 7
    device: str = "cpu"


def seconds(work: Callable[[], None], device: str) -> float:
    """Of one call, with what it left running on the device."""
    begin = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def floor(dim: int, options: Options) -> float:
    """Seconds a step and replica for the normals alone."""
    steps = max(1, options.steps // 10)

    def draw() -> None:
        for _ in range(steps):
            torch.randn(options.runs, dim, device=options.device)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = seconds(draw, options.device)
    torch.set_num_threads(threads)
    return taken / steps / options.runs


def runner(dim: int, options: Options) -> float:
    """Seconds a step and replica for `tl.train`, start and end included."""
    problem = tl.GaussianMixture.xor(dim, options.width, snr=4.0, ridge=0.05)

    def train() -> None:
        tl.train(
            problem,
            step_size=1.0,
            time=options.steps / dim,
            runs=options.runs,
            every=options.every,
            device=options.device,
            progress=False,
        )

    return seconds(train, options.device) / options.steps / options.runs


def eager(dim: int, options: Options, runs: int) -> float:
    """Seconds a step and replica for a loop written out, of one run or of all at once."""
    problem = tl.GaussianMixture.xor(dim, options.width, snr=4.0, ridge=0.05)
    replicas = () if runs == 1 else (runs,)
    model = problem.model(replicas=replicas, device=options.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / dim, weight_decay=problem.ridge)
    steps = max(1, options.steps // 10)

    def loop() -> None:
        for _ in range(steps):
            x, y = problem.sample(1, replicas=replicas)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()

    return seconds(loop, options.device) / steps / runs


def measure(dim: int, options: Options) -> dict[str, list[float]]:
    """Seconds a step and replica of every contender, one number a round."""
    contenders: dict[str, Callable[[], float]] = {
        "normals alone": lambda: floor(dim, options),
        "tl.train": lambda: runner(dim, options),
        "plain loop, one run": lambda: eager(dim, options, 1),
    }
    if options.device != "cpu":
        contenders["eager loop, all runs"] = lambda: eager(dim, options, options.runs)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds + 1):
        for name in list(contenders)[:: 1 if round_ % 2 else -1]:
            one = contenders[name]()
            if round_:  # the first round warms up
                taken[name].append(one)
    return taken


def main(options: Options) -> None:
    """Measure and print."""
    for dim in options.dims:
        taken = measure(dim, options)
        title = f"N = {dim}, {options.runs} runs: replica-steps a second"
        table = Table(title=title)
        for column in ("", "steps/s", "x floor", "quartiles", "faster"):
            table.add_column(column, justify="right" if column else "left")
        alone, plain = taken["normals alone"], taken["plain loop, one run"]
        for name, times in taken.items():
            ratios = [one / least for one, least in zip(times, alone, strict=True)]
            speedup = statistics.median(p / one for p, one in zip(plain, times, strict=True))
            low, middle, high = statistics.quantiles(ratios, n=4)
            table.add_row(
                name,
                f"{1 / statistics.median(times):,.0f}",
                f"{middle:.2f}",
                f"{low:.2f} ... {high:.2f}",
                f"{speedup:.1f}",
            )
        Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

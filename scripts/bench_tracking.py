"""What recording costs: a training step with the tracker, and with .item() + add_scalar, over bare.

    python scripts/bench_tracking.py

XOR mixture, N=1000, K=4, batch 1, all 22 statistics at every step, on the CPU. Loops are
interleaved and each ratio is taken within one round; the table shows medians and quartiles.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl


@dataclass
class Options:
    """How much to measure."""

    steps: int = 2000
    """steps of a loop"""
    rounds: int = 15
    """rounds of interleaved loops"""
    dim: int = 1000
    width: int = 4
    threads: int = 1
    """torch threads; one is fastest at batch 1"""


def loop(
    problem: tl.GaussianMixture,
    steps: int,
    start: Callable[[torch.nn.Module, torch.optim.Optimizer], Callable[[int], None] | None],
    finish: Callable[[], None],
) -> float:
    """Seconds a step of a plain training loop; `start` may return what to call after a step."""
    generator = torch.Generator().manual_seed(0)
    model = problem.model(generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / problem.dim, weight_decay=problem.ridge)
    after_step = start(model, optimizer)
    begin = time.perf_counter()
    for step in range(steps):
        x, y = problem.sample(1, generator=generator)
        loss = problem.loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after_step:
            after_step(step)
    finish()
    return (time.perf_counter() - begin) / steps


def bare(problem: tl.GaussianMixture, steps: int) -> float:
    """Nothing recorded."""
    return loop(problem, steps, lambda model, optimizer: None, lambda: None)


def tracked(problem: tl.GaussianMixture, steps: int) -> float:
    """tl.track, the last flush included."""
    trackers: list[tl.Tracker] = []

    def start(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        trackers.append(tl.track(model, optimizer, problem.statistics))

    return loop(problem, steps, start, lambda: trackers[0].close())


def add_scalar(problem: tl.GaussianMixture, steps: int) -> float:
    """The usual way: .item() and add_scalar of every statistic at every step."""
    with tempfile.TemporaryDirectory() as logdir, SummaryWriter(logdir) as writer:

        def start(
            model: torch.nn.Module, optimizer: torch.optim.Optimizer
        ) -> Callable[[int], None]:
            def after_step(step: int) -> None:
                with torch.no_grad():
                    u = problem.statistics(dict(model.named_parameters()))
                for name, value in zip(problem.names, u, strict=True):
                    writer.add_scalar(name, value.item(), step)

            return after_step

        return loop(problem, steps, start, writer.flush)


def main(options: Options) -> None:
    """Measure and print."""
    torch.set_num_threads(options.threads)
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=100.0, ridge=0.1)
    contenders = {"bare": bare, "tl.track": tracked, ".item() + add_scalar": add_scalar}
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    micros: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds + 1):
        order = list(contenders)[:: 1 if round_ % 2 else -1]
        # the usual way is slow: fewer steps of it say as much
        seconds = {
            name: contenders[name](problem, options.steps // (10 if "add" in name else 1))
            for name in order
        }
        if round_:  # the first round warms up
            for name in contenders:
                ratios[name].append(seconds[name] / seconds["bare"])
                micros[name].append(seconds[name] * 1e6)
    table = Table(title=f"one training step, {len(problem.names)} statistics recorded")
    for column in ("", "µs a step", "times bare", "quartiles"):
        table.add_column(column, justify="right" if column else "left")
    for name in contenders:
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        median = statistics.median(micros[name])
        table.add_row(name, f"{median:.0f}", f"{middle:.3f}", f"{low:.3f} ... {high:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

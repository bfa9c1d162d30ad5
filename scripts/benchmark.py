"""How a benchmark is written, timed and shown.

A benchmark is a module `scripts/bench_NAME.py` with

* a docstring: what is measured, what the plain alternative and the floor are;
* `Options`, a dataclass over `benchmark.Options`: its fields are the command line;
* `SMOKE`, options so small that everything runs in a few seconds, for the tests;
* `measure(options) -> list[Row]`: contenders are timed by `interleaved`, and rows made of them;
* as the last line, under `if __name__ == "__main__"`, `main(measure, Options, __doc__)`.

List it in `bench.py`, which runs them all, and in `performance.py`, whose tables have its rows.
A contender is a function without arguments that does its work once and returns the seconds that it
took per unit (a step, a file ...), without what has to be made beforehand:

    def measure(options: Options) -> list[Row]:
        x = torch.randn(options.size, options.size)
        contenders = {
            "ours": lambda: timed(lambda: fast(x)),
            "plain": lambda: timed(lambda: [slow(row) for row in x[:10]], units=10 / len(x)),
            "floor": lambda: timed(x.clone),
        }
        seconds = interleaved(contenders, options.rounds)
        return [Row("fast", "call", **seconds, note="plain: slow, row by row; floor: a copy")]
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import performance
import torch
import tyro
from matplotlib.ticker import EngFormatter
from rich.console import Console
from rich.markdown import Markdown

import torchlimits as tl
from torchlimits import _checks
from torchlimits._threads import threads
from torchlimits.cli.timing import interleaved as interleaved
from torchlimits.cli.timing import timed as timed


@dataclass(kw_only=True)
class Options:
    """How often to measure, and how to show it."""

    rounds: int = 9
    """interleaved rounds; one more warms up"""
    markdown: bool = False
    """print a table to paste"""
    keep: bool = False
    """put the rows into performance.json, and so into the table of docs"""

    def __post_init__(self) -> None:
        _checks.positive_int("rounds", self.rounds)


@dataclass
class Row:
    """Seconds per unit in each round: ours, of the plain alternative, and of a lower bound."""

    what: str
    unit: str
    """what takes these seconds: "step", "estimate" ..."""
    ours: list[float]
    plain: list[float] | None = None
    floor: list[float] | None = None
    note: str = ""
    """what plain and floor are, errors, sizes"""
    by: str = field(default="", init=False)
    """the command that measures this row by itself; by default the one that was given"""

    @property
    def cells(self) -> list[str]:
        """Medians, and medians and quartiles of the ratios in each round, as the table has them."""
        ours, plain, floor = map(median, (self.ours, self.plain, self.floor))
        ratios = ratio(self.plain, self.ours), ratio(self.ours, self.floor)
        return [self.what, f"{ours}/{self.unit}", plain, floor, *ratios, self.note]

    def __str__(self) -> str:
        """A line of the table."""
        return f"| {' | '.join(self.cells)} |"


HEADER = """|  | ours | plain | floor | plain / ours | ours / floor |  |
| --- | ---: | ---: | ---: | ---: | ---: | --- |"""

Chosen = TypeVar("Chosen", bound=Options)


class Training:
    """SGD on a problem from a random start, as a plain loop; replicas in one module."""

    def __init__(
        self, problem: tl.GaussianMixture, replicas: tuple[int, ...] = (), device: str = "cpu"
    ) -> None:
        self.problem, self.replicas, self.device = problem, replicas, device
        self.model = problem.model(replicas=replicas, device=device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=1 / problem.dim, weight_decay=problem.ridge
        )

    def steps(self, count: int) -> Iterator[int]:
        """Take ``count`` steps."""
        for step in range(count):
            x, y = self.problem.sample(1, replicas=self.replicas, device=self.device)
            self.optimizer.zero_grad()
            self.problem.loss(self.model(x), y).backward()
            self.optimizer.step()
            yield step

    def timed(self, count: int) -> float:
        """Seconds per step and replica."""
        return timed(lambda: list(self.steps(count)), count * math.prod(self.replicas))


def alone(work: Callable[[], object], repeats: int) -> float:
    """Seconds per call, on one core."""

    def run() -> None:
        with threads(1):
            for _ in range(repeats):
                work()

    return timed(run, repeats)


def median(seconds: list[float] | None) -> str:
    """The time as "1.2 ms", or nothing."""
    return "" if seconds is None else EngFormatter("s", places=1)(float(np.median(seconds)))


def ratio(above: list[float] | None, below: list[float] | None) -> str:
    """Median and quartiles of the ratios of each round, to three digits, or nothing."""
    if above is None or below is None:
        return ""
    low, middle, high = np.quantile(np.divide(above, below), [0.25, 0.5, 0.75])
    # a difference of two times may come out as 0 or less, where rounds are short
    size = math.log10(abs(middle)) if middle and math.isfinite(middle) else 0
    digits = max(0, 2 - math.floor(size))
    if len(above) == 1:
        return f"{middle:,.{digits}f} (one round)"
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def where(device: str) -> str:
    """What the tables say of the machine: processor and threads, or card."""
    if device == "cpu":
        return f"{performance.CPU}: {cpu()}, {torch.get_num_threads()} threads"
    return f"{performance.CARD}: {torch.cuda.get_device_name(device)}"


def machine(device: str) -> str:
    """What the figures hold for: CPU, cores, threads, torch, device."""
    where = device if device == "cpu" else torch.cuda.get_device_name(device)
    threads = f"{os.cpu_count()} cores, OMP threads: {torch.get_num_threads()}"
    return f"{cpu()}, {threads}, torch {torch.__version__}, device: {where}"


def show(lines: Iterable[str], markdown: bool) -> None:
    """Print the lines of a table as they come, or the table when all are there."""
    if markdown:
        for line in lines:
            print(line, flush=True)
    else:
        Console().print(Markdown("\n".join(lines)))


def keep(rows: list[Row], where: str) -> None:
    """Put the rows into the tables, each under the command that measures it."""
    given = performance.command(sys.argv)
    for by in dict.fromkeys(row.by or given for row in rows):
        performance.keep(by, [row.cells for row in rows if (row.by or given) == by], where)


def main(
    measure: Callable[[Chosen], Iterable[Row]], options: type[Chosen], description: str | None
) -> None:
    """The command line of a benchmark: measure, and print the machine and the table."""
    try:
        chosen = tyro.cli(options, description=description)
        device = str(_checks.device(getattr(chosen, "device", "cpu")))
        rows: list[Row] = []

        def lines() -> Iterator[str]:
            yield from (machine(device), "", HEADER)
            for row in measure(chosen):
                rows.append(row)
                yield str(row)

        show(lines(), chosen.markdown)
        if chosen.keep:
            keep(rows, where(device))
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

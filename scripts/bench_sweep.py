"""What `tl.sweep` costs on two processes that share a folder, beside one: 64 points.

    python scripts/bench_sweep.py

A point follows random starts of the binary mixture by its effective dynamics, at a step size of its
own. Processes are started by RANK and WORLD_SIZE, as torchrun starts them; seconds are of a point.
Start-up, with a first call of the function, which loads what it needs, is measured in the same
round, as the same program where all points are there already, and is taken off; the note has it.
Plain is one process; the floor is some of the points alone, one after the other in this program
without files, over two. Where other programs keep the cores busy, compare the CPU time of the ranks
instead, which the note has as well.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import benchmark
import numpy as np
import torch
from benchmark import Row, interleaved, main, timed

import torchlimits as tl
from torchlimits._threads import threads

#: what processes of the context forkserver need not load
_LOADED = ["__main__", "torchlimits.experiments.sweep", "torchlimits.problems.mixture.problem"]


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    points: int = 64
    starts: int = 2
    """starts that a point follows"""
    rounds: int = 2
    context: Literal["spawn", "forkserver"] = "forkserver"
    """how processes begin: forkserver has the package loaded beforehand"""


SMOKE = Options(points=4, rounds=1)


def point(step_size: float, starts: int) -> float:
    """The best final overlap with a mean."""
    problem = tl.GaussianMixture.binary(dim=1000, width=2, snr=10.0, ridge=0.1)
    u0 = problem.starts(starts, generator=torch.Generator().manual_seed(0))
    return float(problem.dynamics(step_size=step_size, level=-3).solve(u0, [0.0, 2.0]).final.max())


def grid(options: Options) -> dict[str, list[float]]:
    """The step sizes."""
    return {"step_size": torch.linspace(0.1, 3.0, options.points, dtype=torch.float64).tolist()}


def work(folder: Path, rank: int, ranks: int, options: Options) -> None:
    """One process."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    point(1.0, options.starts)
    begun = time.process_time()
    tl.sweep(partial(point, starts=options.starts), grid(options), folder=folder / "sweep")
    (folder / f"{rank} of {ranks}").write_text(str(time.process_time() - begun))


def shared(folder: Path, ranks: int, options: Options) -> float:
    """Seconds per point from the start of the first process to the end of the last."""
    context: Any = multiprocessing.get_context(options.context)
    if options.context == "forkserver":
        context.set_forkserver_preload(_LOADED)
    processes = [
        context.Process(target=work, args=(folder, rank, ranks, options)) for rank in range(ranks)
    ]

    def run() -> None:
        for process in processes:
            process.start()
        for process in processes:
            process.join()

    seconds = timed(run, options.points)
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process ended with {[p.exitcode for p in processes]}")
    return seconds


class Ranks:
    """Sweeps on so many processes: a new one, and then the same with nothing left to compute."""

    def __init__(self, ranks: int, options: Options) -> None:
        self.ranks, self.options = ranks, options
        #: CPU seconds of each process, in each round
        self.cpu: list[list[float]] = []
        self._folder = tempfile.TemporaryDirectory()

    def whole(self) -> float:
        """Seconds per point of a new sweep."""
        self._folder.cleanup()
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        seconds = shared(path, self.ranks, self.options)
        own = [path / f"{rank} of {self.ranks}" for rank in range(self.ranks)]
        self.cpu.append([float(file.read_text()) for file in own])
        return seconds

    def start(self) -> float:
        """Seconds per point where all are there."""
        return shared(Path(self._folder.name), self.ranks, self.options)

    def note(self, start: list[float]) -> str:
        """What start-up takes in seconds per point, and CPU seconds of the processes."""
        cpu = " and ".join(f"{x:.1f}" for x in np.median(self.cpu[1:], axis=0))
        seconds = float(np.median(start)) * self.options.points
        return f"{self.ranks}: start-up {seconds:.1f} s, CPU {cpu} s"


def points_alone(options: Options) -> float:
    """Half of the seconds per point without processes and files, of every fourth point."""
    some = grid(options)["step_size"][::4]

    def run() -> None:
        for step_size in some:
            point(step_size, options.starts)

    with threads(1):
        return timed(run, 2 * len(some))


def measure(options: Options) -> list[Row]:
    """Two processes beside one."""
    one, two = Ranks(1, options), Ranks(2, options)
    contenders = {
        "one": one.whole, "one, start": one.start,
        "two": two.whole, "two, start": two.start,
        "floor": lambda: points_alone(options),
    }  # fmt: skip
    seconds = interleaved(contenders, options.rounds)

    def without_start(name: str) -> list[float]:
        whole, start = seconds[name], seconds[f"{name}, start"]
        # never 0: a ratio is taken
        return [max(w - s, 1e-9) for w, s in zip(whole, start, strict=True)]

    notes = [one.note(seconds["one, start"]), two.note(seconds["two, start"])]
    return [
        Row(f"`tl.sweep`, {options.points} points, 2 processes", "point",
            without_start("two"), without_start("one"), seconds["floor"],
            f"plain: one process; floor: the points alone, over two; {'; '.join(notes)}")
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure, Options, __doc__)

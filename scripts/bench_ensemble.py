"""What a step of `tl.train` costs, beside the random numbers it needs and plain loops.

    python scripts/bench_ensemble.py

XOR mixture, batch 1, float32, all statistics every few steps; seconds are of one step of one run.
Plain is a loop that trains one run at a time, and then one that trains all as replicas; neither
records. The floor draws as many normals as the data have, by torch.randn on one thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, Training, interleaved, main, timed

import torchlimits as tl
from torchlimits.streams import threads


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    runs: int = 200
    dims: tuple[int, ...] = (250, 1000)
    width: int = 4
    every: int = 10
    steps: int = 2000
    """of tl.train in one round; the others take a tenth"""
    device: str = "cpu"


SMOKE = Options(runs=3, dims=(20,), steps=20, rounds=2)


def runner(problem: tl.GaussianMixture, options: Options) -> float:
    """`tl.train`, start and end included."""
    settings = {"runs": options.runs, "every": options.every, "device": options.device}
    time = options.steps / problem.dim

    def train() -> None:
        tl.train(problem, step_size=1.0, time=time, progress=False, **settings)

    return timed(train, options.steps * options.runs)


def normals(dim: int, count: int, options: Options) -> float:
    """Those of the data alone."""

    def draw() -> None:
        for _ in range(count):
            torch.randn(options.runs, dim, device=options.device)

    with threads(1):
        return timed(draw, count * options.runs)


def compare(dim: int, options: Options) -> list[Row]:
    """Two rows: beside a loop over one run at a time, and beside one over all replicas."""
    problem = tl.GaussianMixture.xor(dim, options.width, snr=4.0, ridge=0.05)
    count = max(1, options.steps // 10)

    def loop(replicas: tuple[int, ...]) -> float:
        return Training(problem, replicas, options.device).timed(count)

    contenders = {
        "ours": lambda: runner(problem, options),
        "floor": lambda: normals(dim, count, options),
        "run by run": lambda: loop(()),
        "replicas in one loop": lambda: loop((options.runs,)),
    }
    seconds = interleaved(contenders, options.rounds)
    what = f"`tl.train`, N = {dim}, {options.runs} runs"
    return [
        Row(what, "replica-step", seconds["ours"], seconds[plain], seconds["floor"],
            f"plain: {plain}, nothing recorded; floor: its normals, one core")
        for plain in ("run by run", "replicas in one loop")
    ]  # fmt: skip


def measure(options: Options) -> list[Row]:
    """The rows of every dimension."""
    return [row for dim in options.dims for row in compare(dim, options)]


if __name__ == "__main__":
    main(measure, Options, __doc__)

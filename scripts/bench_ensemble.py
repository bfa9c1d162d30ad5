"""What a step of `tl.train` costs, beside the random numbers it needs and plain loops.

    python scripts/bench_ensemble.py

XOR mixture, batch 1, float32, all statistics every few steps; seconds are of one step of one run.
`tl.train` is timed with its start and end, as it is and with ``compiled=True`` (for the first time
in the round that warms up). Plain is a loop that trains one run at a time, and then one that trains
all as replicas; neither records. The floor draws as many normals as the data have, in place, on one
thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, Training, interleaved, main, timed

import torchlimits as tl
from torchlimits._threads import threads


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    runs: int = 200
    dims: tuple[int, ...] = (250, 1000)
    width: int = 4
    every: int = 10
    rounds: int = 5
    numbers: int = 5_000_000
    """drawn for a run of tl.train in one round: N per step; the others take a tenth of the steps"""
    device: str = "cpu"


SMOKE = Options(runs=3, dims=(20,), numbers=400, rounds=1)


def runner(problem: tl.GaussianMixture, steps: int, compiled: bool, options: Options) -> float:
    """`tl.train`, start and end included."""

    def train() -> None:
        tl.train(
            problem, step_size=1.0, time=steps / problem.dim, progress=False, compiled=compiled,
            runs=options.runs, every=options.every, device=options.device,
        )  # fmt: skip

    return timed(train, steps * options.runs)


def normals(dim: int, count: int, options: Options) -> float:
    """Time of drawing the normals of the data alone."""
    numbers = torch.empty(options.runs, dim, device=options.device)

    def draw() -> None:
        for _ in range(count):
            numbers.normal_()

    with threads(1):
        return timed(draw, count * options.runs)


def compare(dim: int, options: Options) -> list[Row]:
    """Rows beside a loop over one run at a time, and beside one over all replicas."""
    problem = tl.GaussianMixture.xor(dim, options.width, snr=4.0, ridge=0.05)
    steps = options.numbers // dim
    count = max(1, steps // 10)

    def loop(replicas: tuple[int, ...]) -> float:
        return Training(problem, replicas, options.device).timed(count)

    contenders = {
        "": lambda: runner(problem, steps, False, options),
        "floor": lambda: normals(dim, count, options),
        "run by run": lambda: loop(()),
        "replicas in one loop": lambda: loop((options.runs,)),
    }
    if options.device == "cpu":
        contenders[", compiled"] = lambda: runner(problem, steps, True, options)
    seconds = interleaved(contenders, options.rounds)
    return [
        Row(f"`tl.train`{how}, N = {dim}, {options.runs} runs", "replica-step",
            seconds[how], seconds[plain], seconds["floor"],
            f"plain: {plain}, nothing recorded; floor: its normals by torch's normal_, one core")
        for how, plain in (
            ("", "run by run"), ("", "replicas in one loop"), (", compiled", "run by run")
        )
        if how in seconds
    ]  # fmt: skip


def measure(options: Options) -> list[Row]:
    """The rows of every dimension."""
    return [row for dim in options.dims for row in compare(dim, options)]


if __name__ == "__main__":
    main(measure, Options, __doc__)

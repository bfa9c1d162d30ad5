"""What a step of the exact reduced chain costs, beside real SGD in the full space.

    python scripts/bench_reduced.py

XOR mixture, batch 1; neither records; seconds are of one step of one replica. Plain is SGD as a
loop over all replicas in one module, in float32; the chain runs in float64, also at N = 10^9. The
floor is as many normals as the chain draws, by torch's generator and Box and Muller on one core,
which is how it drew them when the first figures were taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, Training, interleaved, main, timed

import torchlimits as tl
from torchlimits._normals import box_muller
from torchlimits._threads import threads


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    runs: int = 1000
    dim: int = 1000
    width: int = 4
    steps: int = 400
    """steps of the chain in one round"""
    full_steps: int = 20
    """steps of SGD in the full space"""


SMOKE = Options(runs=10, dim=20, steps=8, full_steps=2, rounds=2)


def chain(problem: tl.GaussianMixture, dim: int, options: Options) -> float:
    """The reduced chain, at another dimension than the problem's."""
    reduced = problem.reduced_chain(step_size=1.0, dim=dim)
    u0, _ = problem.random_start(torch.tensor([1.0, -1.0] * (options.width // 2)))

    def run() -> None:
        reduced.run(u0, options.steps, runs=options.runs, every=options.steps)

    return timed(run, options.steps * options.runs)


def floor(problem: tl.GaussianMixture, options: Options) -> float:
    """Time of the chain's normals: d signal directions, those of the frame, and the new one."""
    count = len(problem.directions) + options.width + 3
    blocks = max(1, options.steps // 4)

    def draw() -> None:
        for _ in range(blocks):
            box_muller((4 * count, options.runs), generator=None, device=torch.device("cpu"))

    with threads(1):
        return timed(draw, 4 * blocks * options.runs)


def measure(options: Options) -> list[Row]:
    """The chain at the dimension of SGD, and far beyond."""
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=4.0, ridge=0.05)
    here, far = f"{options.dim}", "10⁹"
    contenders = {
        "SGD": lambda: Training(problem, (options.runs,)).timed(options.full_steps),
        here: lambda: chain(problem, options.dim, options),
        far: lambda: chain(problem, 10**9, options),
        "normals": lambda: floor(problem, options),
    }
    seconds = interleaved(contenders, options.rounds)
    return [
        Row(f"`reduced_chain`, N = {dim}, {options.runs} runs", "replica-step",
            seconds[dim], seconds["SGD"], seconds["normals"],
            f"plain: SGD, N = {here}, replicas in one loop; floor: its normals by torch's "
            "generator and Box-Muller, one core")
        for dim in (here, far)
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure, Options, __doc__)

"""What recording costs: a training step with the tracker, with .item() + add_scalar, and bare.

    python scripts/bench_tracking.py

XOR mixture, batch 1, all statistics at every step; the tracker's last flush is included. Plain is
the usual way, .item() and add_scalar of every statistic; the floor is the bare step.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, Training, interleaved, main, timed
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl
from torchlimits._threads import threads


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    steps: int = 2000
    """steps of a loop; the usual way, which is slow, takes a tenth of them"""
    dim: int = 1000
    width: int = 4
    threads: int = 1
    """threads of torch; one is fastest at batch 1"""
    device: str = "cpu"


SMOKE = Options(steps=20, dim=20, rounds=2)


def tracked(training: Training, count: int) -> float:
    """tl.track."""
    tracker = tl.track(training.model, training.optimizer, training.problem.statistics)

    def work() -> None:
        list(training.steps(count))
        tracker.close()

    return timed(work, count)


def add_scalar(training: Training, count: int) -> float:
    """.item() and add_scalar of every statistic at every step."""
    problem, parameters = training.problem, dict(training.model.named_parameters())
    with tempfile.TemporaryDirectory() as logdir, SummaryWriter(logdir) as writer:

        def work() -> None:
            for step in training.steps(count):
                with torch.no_grad():
                    u = problem.statistics(parameters)
                for name, value in zip(problem.names, u, strict=True):
                    writer.add_scalar(name, value.item(), step)
            writer.flush()

        return timed(work, count)


def measure(options: Options) -> list[Row]:
    """One row: the tracker between the usual way and nothing."""
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=100.0, ridge=0.1)

    def fresh() -> Training:
        return Training(problem, device=options.device)

    contenders = {
        "ours": lambda: tracked(fresh(), options.steps),
        "plain": lambda: add_scalar(fresh(), max(1, options.steps // 10)),
        "floor": lambda: fresh().timed(options.steps),
    }
    with threads(options.threads):
        seconds = interleaved(contenders, options.rounds)
    what = f"`tl.track`, N = {options.dim}, {len(problem.names)} statistics every step"
    return [Row(what, "step", **seconds, note="plain: .item() + add_scalar; floor: bare step")]


if __name__ == "__main__":
    main(measure, Options, __doc__)

"""What recording costs: a training step with the tracker, with .item() + add_scalar, and bare.

    python scripts/bench_tracking.py

XOR mixture, batch 1, all statistics at every step; and a convolutional network with a million
parameters, batch 8, the norms of all of them (`tl.statistics.norms`) at every step. The tracker's
last flush is included. Plain is the usual way, .item() and add_scalar of every statistic; the floor
is the bare step.

What recording adds to a step has a row of its own, where the floor is what a bare copy hook adds: a
hook after each step that copies the parameters into preallocated room, and does nothing else.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import benchmark
import numpy as np
import torch
from benchmark import Row, Training, interleaved, main, timed
from torch import nn
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


class Images:
    """SGD of a convolutional network with 987,000 parameters on random images, as a plain loop."""

    def __init__(self, device: str = "cpu") -> None:
        widths = [3, 64, 128, 256]
        layers = [
            layer
            for before, after in itertools.pairwise(widths)
            for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        ]
        torch.manual_seed(0)
        self.model = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(4096, 150), nn.ReLU(), nn.Linear(150, 10)
        ).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.statistics = tl.SummaryStatistics(tl.statistics.norms(self.model))
        self.x = torch.randn(8, 3, 32, 32, device=device)
        self.y = torch.arange(8, device=device)

    def steps(self, count: int) -> Iterator[int]:
        """Take ``count`` steps."""
        for step in range(count):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()
            yield step

    def timed(self, count: int) -> float:
        """Seconds per step."""
        return timed(lambda: list(self.steps(count)), count)


def tracked(training: Training | Images, statistics: tl.SummaryStatistics, count: int) -> float:
    """tl.track."""
    tracker = tl.track(training.model, training.optimizer, statistics)

    def work() -> None:
        list(training.steps(count))
        tracker.close()

    return timed(work, count)


def copied(training: Training | Images, count: int, slots: int = 256) -> float:
    """A hook that copies the parameters into a ring, by one kernel, and does nothing else."""
    parameters = [p.detach() for p in training.model.parameters()]
    ring = [[torch.zeros_like(p) for p in parameters] for _ in range(slots)]
    place = itertools.cycle(ring)

    def copy(*_: object) -> None:
        torch._foreach_copy_(next(place), parameters)  # type: ignore[reportPrivateImportUsage]

    training.optimizer.register_step_post_hook(copy)
    return training.timed(count)


def add_scalar(training: Training | Images, statistics: tl.SummaryStatistics, count: int) -> float:
    """.item() and add_scalar of every statistic at every step."""
    parameters = dict(training.model.named_parameters())
    names = statistics.names_of(parameters)
    with tempfile.TemporaryDirectory() as logdir, SummaryWriter(logdir) as writer:

        def work() -> None:
            for step in training.steps(count):
                with torch.no_grad():
                    u = statistics(parameters)
                for name, value in zip(names, u, strict=True):
                    writer.add_scalar(name, value.item(), step)
            writer.flush()

        return timed(work, count)


def row(
    what: str, fresh: Callable[[], Training | Images], statistics: tl.SummaryStatistics,
    options: Options, steps: int,
) -> Row:  # fmt: skip
    """The tracker between the usual way and nothing."""
    contenders = {
        "ours": lambda: tracked(fresh(), statistics, steps),
        "plain": lambda: add_scalar(fresh(), statistics, max(1, steps // 10)),
        "floor": lambda: fresh().timed(steps),
    }
    with threads(options.threads):
        seconds = interleaved(contenders, options.rounds)
    return Row(what, "step", **seconds, note="plain: .item() + add_scalar; floor: bare step")


def added(
    what: str, fresh: Callable[[], Training], statistics: tl.SummaryStatistics, options: Options
) -> Row:
    """What the tracker adds to a step, beside what a bare copy hook adds."""
    contenders = {
        "tracked": lambda: tracked(fresh(), statistics, options.steps),
        "copied": lambda: copied(fresh(), options.steps),
        "bare": lambda: fresh().timed(options.steps),
    }
    with threads(options.threads):
        found = interleaved(contenders, options.rounds)
    ours, floor = (list(np.subtract(found[one], found["bare"])) for one in ("tracked", "copied"))
    return Row(what, "step", ours, floor=floor, note="over the bare step; floor: a bare copy hook")


def measure(options: Options) -> list[Row]:
    """A row for each kind of network."""
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=100.0, ridge=0.1)
    images = Images(options.device)
    count = sum(p.numel() for p in images.model.parameters())
    return [
        row(
            f"`tl.track`, N = {options.dim}, {len(problem.names)} statistics every step",
            lambda: Training(problem, device=options.device), problem.statistics, options,
            options.steps,
        ),
        added(
            f"`tl.track` less the bare step, N = {options.dim}, {len(problem.names)} statistics",
            lambda: Training(problem, device=options.device), problem.statistics, options,
        ),
        row(
            f"`tl.track`, CNN with {count:,} parameters, all norms every step",
            lambda: images, images.statistics, options, max(2, options.steps // 40),
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure, Options, __doc__)

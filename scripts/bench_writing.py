"""What writing a trajectory to TensorBoard costs, in seconds and megabytes.

    python scripts/bench_writing.py --steps 100000 --statistics 22

Ours is `tl.tensorboard.write` of every point, its picture and texts included. Plain is add_scalar
of every value, and then one event per step by tensorboard's own writer; both write the first steps
only, and are scaled up. The floor writes the bytes of our files, and computes their checksum.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import benchmark
import google_crc32c
import torch
from benchmark import Row, interleaved, main, timed
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl
from torchlimits.tensorboard.events import Event, Summary  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Options(benchmark.Options):
    """What to write, and how often."""

    steps: int = 100_000
    statistics: int = 22
    rounds: int = 5
    add_scalar_steps: int = 2_000
    """how many of the steps the add_scalar loop writes"""
    event_steps: int = 20_000
    """how many are written by tensorboard's own writer, one event per step"""


SMOKE = Options(steps=100, statistics=3, rounds=2, add_scalar_steps=10, event_steps=50)


def ours(folder: str, measured: tl.Trajectory) -> None:
    tl.tensorboard.write(folder, measured=measured, max_points=None)


def add_scalar(folder: str, measured: tl.Trajectory) -> None:
    with SummaryWriter(folder) as writer:
        for step, row in enumerate(measured.values.tolist()):
            for tag, value in zip(measured.names, row, strict=True):
                writer.add_scalar(tag, value, step)


def one_event_a_step(folder: str, measured: tl.Trajectory) -> None:
    writer = EventFileWriter(folder)
    for step, row in enumerate(measured.values.tolist()):
        pairs = zip(measured.names, row, strict=True)
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in pairs])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()


def bytes_alone(content: bytes) -> float:
    """Seconds to write them, with a checksum."""
    with tempfile.TemporaryFile() as file:
        return timed(lambda: (google_crc32c.value(content), file.write(content), file.flush()))


class Way:
    """A way to write the first steps of a trajectory; figures are scaled up to all of it."""

    def __init__(
        self, write: Callable[[str, tl.Trajectory], None], measured: tl.Trajectory, steps: int
    ) -> None:
        self.write, self.measured = write, measured.slice(slice(steps))
        self.part = len(self.measured) / len(measured)
        self.content = b""
        """size of the files written last"""

    @property
    def megabytes(self) -> float:
        """The size of the whole file."""
        return len(self.content) / self.part / 1e6

    def __call__(self) -> float:
        """Seconds that the whole trajectory would take."""
        with tempfile.TemporaryDirectory() as folder:
            seconds = timed(lambda: self.write(folder, self.measured), self.part)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            self.content = b"".join(path.read_bytes() for path in files)
        return seconds


def measure(options: Options) -> list[Row]:
    """Two rows: beside add_scalar, and beside one event per step."""
    steps = torch.arange(options.steps)
    values = torch.randn(options.steps, options.statistics, dtype=torch.float64)
    names = [f"u[{i}]" for i in range(options.statistics)]
    measured = tl.Trajectory(steps * 1e-3, steps, values, names)
    whole = Way(ours, measured, options.steps)
    others = {
        "add_scalar": Way(add_scalar, measured, options.add_scalar_steps),
        "tensorboard's writer, an event a step": Way(
            one_event_a_step, measured, options.event_steps
        ),
    }
    alone = {"ours": whole, "floor": lambda: bytes_alone(whole.content)}
    seconds = interleaved(alone | others, options.rounds)
    size = f"{options.steps:,} steps x {options.statistics}, {whole.megabytes:.0f} MB"
    return [
        Row(f"`tensorboard.write`, {size}", "file",
            seconds["ours"], seconds[plain], seconds["floor"],
            f"plain: {plain}, {way.megabytes:.0f} MB; floor: our bytes, with a checksum")
        for plain, way in others.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure, Options, __doc__)

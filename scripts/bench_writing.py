"""Seconds and megabytes of writing a trajectory to TensorBoard, three ways.

python scripts/bench_writing.py --steps 100000 --statistics 22
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

from torchlimits.tensorboard import events
from torchlimits.tensorboard.events import Event, Summary  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Settings:
    """What to write, and how often."""

    steps: int = 100_000
    statistics: int = 22
    repeats: int = 3
    """interleaved; medians are shown"""
    add_scalar_steps: int = 2_000
    """the add_scalar loop writes only so many steps; its figures are scaled up"""
    event_steps: int = 20_000
    """likewise for one event a step through tensorboard's own writer"""


def add_scalar(folder: Path, tags: list[str], values: np.ndarray) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step, row in enumerate(values.tolist()):
            for tag, value in zip(tags, row, strict=True):
                writer.add_scalar(tag, value, step)


def one_event_a_step(folder: Path, tags: list[str], values: np.ndarray) -> None:
    writer = EventFileWriter(str(folder))
    for step, row in enumerate(values.tolist()):
        pairs = zip(tags, row, strict=True)
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in pairs])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()


def ours(folder: Path, tags: list[str], values: np.ndarray) -> None:
    file = events.EventFile(folder)
    steps = np.arange(len(values))
    file.add_scalars(tags, steps, time.time() + steps * 1e-3, values)
    file.flush()


def timed(
    write: Callable[[Path, list[str], np.ndarray], None], tags: list[str], values: np.ndarray
) -> tuple[float, float]:
    """Seconds and megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        write(Path(folder), tags, values)
        seconds = time.perf_counter() - begin
        return seconds, sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def main(settings: Settings) -> None:
    values = np.random.default_rng(0).standard_normal((settings.steps, settings.statistics))
    tags = [f"m/{i}" for i in range(settings.statistics)]
    ways = {
        "add_scalar for every value": (add_scalar, settings.add_scalar_steps),
        "one event a step, tensorboard's writer": (one_event_a_step, settings.event_steps),
        "torchlimits": (ours, settings.steps),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(settings.repeats):
        for name, (write, steps) in ways.items():
            steps = min(steps, settings.steps)
            seconds, megabytes = timed(write, tags, values[:steps])
            scale = settings.steps / steps
            found[name].append((seconds * scale, megabytes * scale))
    table = Table(title=f"{settings.steps:,} steps x {settings.statistics} statistics")
    table.add_column("written by")
    for column in ("seconds", "MB", "time, ratio", "steps timed"):
        table.add_column(column, justify="right")
    best = statistics.median(seconds for seconds, _ in found["torchlimits"])
    for name, (_, steps) in ways.items():
        seconds, megabytes = (
            statistics.median(column) for column in zip(*found[name], strict=True)
        )
        timing = f"{min(steps, settings.steps):,}" + (", scaled" if steps < settings.steps else "")
        table.add_row(name, f"{seconds:.2f}", f"{megabytes:.0f}", f"{seconds / best:.1f}", timing)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Settings))

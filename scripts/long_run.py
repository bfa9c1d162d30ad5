"""Record every one of a million steps and say how much memory that took.

    python scripts/long_run.py

A small network under torch.optim.SGD, 22 statistics at each step. Recorded rows are kept in a file,
which is memory-mapped when rows are asked for; see `torchlimits.files.row_file`.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console

import torchlimits as tl


@dataclass
class Options:
    """How long to record."""

    steps: int = 1_000_000
    path: Path = Path("runs/long/measured.rows")


def peak() -> float:
    """MiB of memory that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(options: Options, console: Console) -> None:
    """Train and print."""
    torch.set_num_threads(1)
    problem = tl.GaussianMixture.xor(dim=20, width=4, snr=4.0, ridge=0.05)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / problem.dim, weight_decay=problem.ridge)
    before, begin = peak(), time.perf_counter()
    with tl.track(model, optimizer, problem.statistics, path=options.path) as tracker:
        for _ in range(options.steps):
            x, y = problem.sample(1)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    measured = tl.Trajectory.load(options.path)
    console.print(
        f"{len(measured):,} rows of {len(tracker.names)} statistics in "
        f"{time.perf_counter() - begin:.0f} s, {options.path.stat().st_size / 2**20:.0f} MiB on "
        f"disk; most memory used: {peak():.0f} MiB, of which {before:.0f} before the first step"
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__), Console())

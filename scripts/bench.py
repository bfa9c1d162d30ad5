"""Run every benchmark: one table of what each costs beside a plain way and a lower bound.

    python scripts/bench.py --markdown
    python scripts/bench.py --keep  # and put the rows into the table of docs

Times are medians over interleaved rounds; ratios are taken within a round, and shown with their
quartiles. On a machine that is otherwise busy, set OMP_NUM_THREADS=1: where threads have to
wait for each other, small operations, of which the plain ways are made, take many times as long.
`benchmark.py` says how a benchmark is written. Each can be run by itself, with more options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import bench_ensemble
import bench_estimate
import bench_heads
import bench_optimizers
import bench_reduced
import bench_solver
import bench_sweep
import bench_tracking
import bench_writing
import benchmark
from benchmark import Row, main
from rich.console import Console
from rich.progress import track

BENCHMARKS = (
    bench_tracking, bench_writing, bench_ensemble, bench_reduced, bench_estimate, bench_solver,
    bench_heads, bench_optimizers, bench_sweep,
)  # fmt: skip


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    rounds: int = 9
    """the largest number of rounds; slow benchmarks have fewer"""
    device: str = "cpu"
    """on devices other than cpu, only the benchmarks that know devices are run"""
    smoke: bool = False
    """tiny sizes, to see that everything runs"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep and (self.smoke or self.rounds != Options.rounds or self.device != "cpu"):
            raise ValueError("--keep keeps what each script measures by itself: expected no others")


def measure(options: Options) -> Iterator[Row]:
    """The rows of all benchmarks, as they come."""
    for one in track(BENCHMARKS, console=Console(stderr=True), transient=True):
        own = one.SMOKE if options.smoke else one.Options()
        own = replace(own, rounds=min(own.rounds, options.rounds))
        if hasattr(own, "device"):
            own = replace(own, device=options.device)
        elif options.device != "cpu":
            continue
        for row in one.measure(own):
            row.by = f"scripts/{one.__name__}.py"
            yield row


if __name__ == "__main__":
    main(measure, Options, __doc__)

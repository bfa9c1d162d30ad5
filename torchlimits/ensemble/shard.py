"""`Shard`: the runs that one process of several trains, and how those of all come together."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from torchlimits.record.non_finite import NonFiniteStatistic
from torchlimits.record.recording import UNFINISHED
from torchlimits.trajectory import Trajectory

#: trains a shard, calls the function after every step, and leaves the rows in the shard's part
Trained = Callable[["Shard", Callable[[], None]], Trajectory]


@dataclass(frozen=True)
class Outcome:
    """What one process has to show for its runs: rows, and the error that ended them early."""

    trajectory: Trajectory
    failure: NonFiniteStatistic | None = None


def joined(outcomes: Sequence[Outcome]) -> Trajectory:
    """Return the runs of all outcomes side by side, as far as all of them go."""
    rows = min(len(outcome.trajectory) for outcome in outcomes)
    cut = [outcome.trajectory.slice(slice(0, rows)) for outcome in outcomes]
    return replace(cut[0], values=torch.cat([part.values for part in cut]))


def unless_diverged(outcomes: Sequence[Outcome], whole: Trajectory) -> Trajectory:
    """Return the whole, or raise the first failure with the whole as its trajectory."""
    failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
    if not failures:
        return whole
    first = min(failures, key=lambda failure: failure.step)
    first.trajectory = whole
    raise first


@dataclass(frozen=True)
class Shard:
    """The groups of replicas that one process trains.

    Attributes:
        rank, ranks: the number of this process, and of how many.
        groups: the numbers of its groups of replicas.
        runs: the numbers of its runs, the last group cut to those asked for.
        group: the torch.distributed process group, or None.
    """

    rank: int
    ranks: int
    groups: range
    runs: range
    group: Any = None

    @classmethod
    def of(cls, group: Any, runs: int, lanes: int) -> Shard:
        """Return this process's share of the runs, in whole groups of ``lanes``.

        Raises:
            ValueError: if there are more ranks than groups.

        Example:
            >>> Shard.of(None, runs=40, lanes=32).groups
            range(0, 2)
        """
        if group is None:
            return cls.shares(1, runs, lanes)[0]
        shares = cls.shares(distributed.get_world_size(group), runs, lanes)
        return replace(shares[distributed.get_rank(group)], group=group)

    @classmethod
    def shares(cls, ranks: int, runs: int, lanes: int) -> list[Shard]:
        """Return the shares of all processes.

        Raises:
            ValueError: if there are more ranks than groups.

        Example:
            >>> [share.runs for share in Shard.shares(2, runs=70, lanes=32)]
            [range(0, 32), range(32, 70)]
        """
        groups = -(-runs // lanes)
        if ranks > groups:
            raise ValueError(
                f"expected at most one process for every {lanes} runs, which are computed "
                f"together, got {ranks} processes for {runs} runs: start fewer, or ask for more"
            )
        ends = [rank * groups // ranks for rank in range(ranks + 1)]
        return [
            cls(rank, ranks, range(a, b), range(a * lanes, min(b * lanes, runs)))
            for rank, (a, b) in enumerate(itertools.pairwise(ends))
        ]

    @property
    def first(self) -> bool:
        """Whether this process shows progress and gets all the runs."""
        return self.rank == 0

    def part(self, path: str | Path | None) -> Path | None:
        """Return where this process keeps its runs: ``name.rank1.npz`` for ``name.npz``."""
        if path is None:
            return None
        path = Path(path)
        if self.ranks == 1:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")

    def kept(self, path: str | Path | None) -> str:
        """Say which file the runs of this process are in, finished or not."""
        runs = f"runs {self.runs.start} ... {self.runs.stop - 1}"
        part = self.part(path)
        if part is None:
            return f"its {runs} are lost: no path was given"
        unfinished = part.with_name(part.name + UNFINISHED)
        return f"its {runs}: {unfinished if unfinished.exists() else part}"

    @contextmanager
    def ends_on_signal(self, path: str | Path | None) -> Generator[None]:
        """Turn SIGTERM, sent when another process has died, into SystemExit, which closes files."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread is told of signals
            return

        def end(number: int, frame: FrameType | None) -> None:
            raise SystemExit(
                f"rank {self.rank}: stopped, as when another process dies; {self.kept(path)}"
            )

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def attempted(
        self, trained: Trained, path: str | Path | None, check: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Train; runs that diverge are an outcome, any other error is raised."""
        with self.ends_on_signal(path):
            try:
                return Outcome(trained(self, check))
            except NonFiniteStatistic as error:
                if error.trajectory is None:
                    raise
                return Outcome(error.trajectory, error)

    def gathered(self, trained: Trained, path: str | Path | None) -> Trajectory:
        """Return all runs on rank 0, which saves them to ``path``, and on others their own.

        Args:
            trained: see `Trained`.
            path: where all runs go, or None.

        Raises:
            NonFiniteStatistic: if a run of any rank diverged, with the rows that all have.
            RuntimeError: if another process is gone.
        """
        if self.ranks == 1:
            return trained(self, lambda: None)  # it has saved all there is
        with self.ends_on_signal(path):
            mine = self.attempted(trained, path)
            try:
                outcomes = self._exchange(mine)
            except RuntimeError as error:
                raise RuntimeError(
                    f"rank {self.rank}: another of the {self.ranks} processes is gone ({error}); "
                    f"{self.kept(path)}"
                ) from error
        whole, own = joined(outcomes), self.part(path)
        if path is not None and own is not None:
            if self.first:
                whole.save(path)
            # a barrier: no process removes its part before the whole is there
            distributed.barrier(self.group)
            own.unlink(missing_ok=True)
        return unless_diverged(outcomes, whole)

    def _exchange(self, mine: Outcome) -> list[Outcome]:
        parts: list[Any] | None = [None] * self.ranks if self.first else None
        # dst counts the ranks of all processes
        first = distributed.get_global_rank(self.group, 0)
        distributed.gather_object(mine, parts, dst=first, group=self.group)
        return [mine] if parts is None else parts

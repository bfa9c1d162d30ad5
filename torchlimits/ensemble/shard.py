"""`Shard`: the runs that one process of several trains, and how those of all come together."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import distributed

from torchlimits.ensemble.kept import Kept, ProcessGone
from torchlimits.record.non_finite import NonFiniteStatistic
from torchlimits.trajectory import Trajectory

#: trains a shard, calls the function after every step, and leaves the rows in the shard's part
Trained = Callable[["Shard", Callable[[], None]], Trajectory]


class _Stopped(SystemExit):
    """A request to end has come."""


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
        shared: the numbers of the runs of each process, the last group cut to those asked for.
        group: the torch.distributed process group, or None.
    """

    rank: int
    ranks: int
    groups: range
    shared: tuple[range, ...]
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
        own = [range(a, b) for a, b in itertools.pairwise(ends)]
        shared = tuple(range(g.start * lanes, min(g.stop * lanes, runs)) for g in own)
        return [cls(rank, ranks, groups, shared) for rank, groups in enumerate(own)]

    @property
    def runs(self) -> range:
        """The numbers of the runs of this process."""
        return self.shared[self.rank]

    @property
    def first(self) -> bool:
        """Whether this process shows progress and gets all the runs."""
        return self.rank == 0

    def own(self, kept: Kept) -> Kept:
        """Return the files of this process."""
        return kept.of(self.rank, self.ranks)

    def told(self, kept: Kept) -> str:
        """Say what is in the files of all processes, and how to go on from them."""
        return kept.told(self.shared, self.rank)

    @contextmanager
    def ends_on_signal(self, kept: Kept) -> Generator[None]:
        """Turn SIGTERM, sent when another process has died, into SystemExit, which closes files."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread is told of signals
            return

        def end(number: int, frame: FrameType | None) -> None:
            raise _Stopped

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        except _Stopped:
            # the files are closed by now, and have their names
            raise SystemExit(
                f"rank {self.rank}: stopped, as when another process dies; {self.told(kept)}"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    def attempted(
        self, trained: Trained, kept: Kept, check: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Train; runs that diverge are an outcome, any other error is raised."""
        with self.ends_on_signal(kept):
            try:
                return Outcome(trained(self, check))
            except NonFiniteStatistic as error:
                if error.trajectory is None:
                    raise
                return Outcome(error.trajectory, error)

    def gathered(self, trained: Trained, kept: Kept) -> Trajectory:
        """Return all runs on rank 0, which saves them, and on others their own.

        Args:
            trained: see `Trained`.
            kept: where all runs go. Each process has files of its own until all have come.

        Raises:
            NonFiniteStatistic: if a run of any rank diverged, with the rows that all have.
            ProcessGone: if another process is gone.
        """
        if self.ranks == 1:
            alone = trained(self, lambda: None)  # it has saved all there is
            kept.remove(rows=False)
            return alone
        with self.ends_on_signal(kept):
            mine = self.attempted(trained, kept)
            with self._all_there(kept):
                outcomes = self._exchange(mine)
            whole = joined(outcomes)
            if self.first and kept.path is not None:
                whole.save(kept.path)
            # a barrier: no process removes its part before the whole is there
            with self._all_there(kept):
                distributed.barrier(self.group)
        self.own(kept).remove(rows=True)
        return unless_diverged(outcomes, whole)

    @contextmanager
    def _all_there(self, kept: Kept) -> Generator[None]:
        """Raise ProcessGone for the RuntimeError of a collective that another does not come to."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessGone(
                f"rank {self.rank}: another of the {self.ranks} processes is gone; "
                f"{self.told(kept)}"
            ) from error

    def _exchange(self, mine: Outcome) -> list[Outcome]:
        parts: list[Any] | None = [None] * self.ranks if self.first else None
        # dst counts the ranks of all processes
        first = distributed.get_global_rank(self.group, 0)
        distributed.gather_object(mine, parts, dst=first, group=self.group)
        return [mine] if parts is None else parts

"""`Shard`: the runs that one process of several trains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import distributed

from torchlimits import _checks
from torchlimits._threads import threads
from torchlimits.record.tracker import NonFiniteStatistic
from torchlimits.trajectory import Trajectory

#: the first process to end waits for the last; one that is gone is noticed at once
_TIMEOUT = timedelta(days=30)


@contextmanager
def process_group(device: torch.device | str = "cpu") -> Generator[Any]:
    """The process group that ``torchrun`` asks for, closed at the end; None without torchrun.

    Of gloo on every device: what the processes tell each other is on the CPU. On CUDA every process
    takes the GPU of its local rank; if there are more processes than GPUs, they share them.

    Example:
        >>> with process_group() as group:  # not started by torchrun
        ...     print(group)
        None
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield None
        return
    if _checks.device(device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("gloo")
    try:
        yield _patient_group()
    finally:
        _leave()


def _patient_group() -> Any:
    """All processes, once they have met: who does not come to the meeting is not waited for."""
    return distributed.new_group(backend="gloo", timeout=_TIMEOUT)


def _leave() -> None:
    """Close the process group, and leave its threads the time to let go of their last tensors.

    A thread of gloo's does that a moment after a collective has returned, needs the interpreter
    for it, and aborts the process where that has ended meanwhile
    (https://github.com/pytorch/pytorch/pull/179291). It outlives the group, and cannot be joined.
    """
    distributed.destroy_process_group()
    time.sleep(0.2)


class Work(Protocol):
    """What `spawned` has done by each process; it is pickled."""

    def __call__(self, *, group: Any) -> Trajectory:
        """As `torchlimits.train` with ``group=``."""
        ...


def spawned(count: int, work: Work) -> Trajectory:
    """What ``work(group=...)`` returns on rank 0, this process; the other ranks are new ones.

    They are spawned and not forked: a fork of a process with threads may wait for ever for what a
    thread held. Torch's threads are divided among them. They meet through gloo.

    Raises:
        ValueError: if this process is in a process group already.
        RuntimeError: if one of the processes dies.
    """
    if distributed.is_initialized():
        raise ValueError(
            f"expected processes=1 within a torch.distributed process group, got {count}: give "
            "that group as group="
        )
    context = multiprocessing.get_context("spawn")
    share = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory() as folder, threads(share):
        meeting = f"file://{folder}/meeting"
        others: list[BaseProcess] = []
        try:
            for rank in range(1, count):
                here, there = context.Pipe(duplex=False)
                arguments = (work, meeting, count, rank, share, there)
                others.append(context.Process(target=_follow, args=arguments, daemon=True))
                others[-1].start()
                there.close()
                _await_start(here)
            return _in_group(work, meeting, count, rank=0)
        finally:
            for other in others:
                # it ends with the group, unless this process has an error of its own
                other.join(timeout=5)
                other.kill()
                other.join()


def _await_start(process: Connection) -> None:
    try:
        process.recv()
    except EOFError as error:
        raise RuntimeError(
            "expected a new process to start, but it ended (its own message is above): in a script "
            "training with processes= must be under if __name__ == '__main__', as the script is "
            "imported by every process"
        ) from error


def _in_group(work: Work, meeting: str, count: int, rank: int) -> Trajectory:
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    try:
        return work(group=_patient_group())
    finally:
        _leave()


def _follow(
    work: Work, meeting: str, count: int, rank: int, own_threads: int, started: Connection
) -> None:
    torch.set_num_threads(own_threads)
    started.send(True)
    # rank 0 is told of this rank's runs, and meets the same errors in the arguments
    with suppress(NonFiniteStatistic, ValueError):
        _in_group(work, meeting, count, rank)


def rank_in(group: Any) -> int:
    """This process's number in a group; 0 without one."""
    return 0 if group is None else distributed.get_rank(group)


@dataclass(frozen=True)
class Shard:
    """The groups of replicas that this process trains.

    Attributes:
        rank, ranks: which process of how many.
        groups: numbers of its groups of replicas.
        runs: numbers of its runs, the last group cut to those asked for.
        group: the torch.distributed process group, or None.
    """

    rank: int
    ranks: int
    groups: range
    runs: range
    group: Any = None

    @classmethod
    def of(cls, group: Any, runs: int, lanes: int) -> Shard:
        """This process's share of the runs, in whole groups of ``lanes``.

        Raises:
            ValueError: if there are more ranks than groups.

        Example:
            >>> Shard.of(None, runs=40, lanes=32).groups
            range(0, 2)
        """
        rank = rank_in(group)
        ranks = 1 if group is None else distributed.get_world_size(group)
        groups = -(-runs // lanes)
        if ranks > groups:
            raise ValueError(
                f"expected at most one process for every {lanes} runs, which are computed "
                f"together, got {ranks} processes for {runs} runs: start fewer, or ask for more"
            )
        mine = range(rank * groups // ranks, (rank + 1) * groups // ranks)
        kept = range(mine.start * lanes, min(mine.stop * lanes, runs))
        return cls(rank, ranks, mine, kept, group)

    @property
    def first(self) -> bool:
        """Whether this process shows progress and gets all the runs."""
        return self.rank == 0

    def part(self, path: str | Path | None) -> Path | None:
        """Where this process keeps its runs: ``name.rank1.npz`` for ``name.npz``."""
        if path is None:
            return None
        path = Path(path)
        if self.group is None:
            return path
        return path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")

    def gathered(self, trained: Callable[[], Trajectory], path: str | Path | None) -> Trajectory:
        """All runs on rank 0, which saves them to ``path``; this process's own on the others.

        Args:
            trained: trains the runs of this process, and leaves them in ``part(path)`` whatever
                happens.
            path: of the whole, or None.

        Raises:
            NonFiniteStatistic: if a run of any rank diverged, with the rows that all have.
            RuntimeError: if another process is gone.
        """
        if self.group is None:
            return trained()  # which has saved all there is
        with _signal_ends(
            f"rank {self.rank}: stopped, as when another process dies; {self._kept(path)}"
        ):
            mine = _attempted(trained)
            try:
                parts = self._exchange(mine)
            except RuntimeError as error:
                raise RuntimeError(
                    f"rank {self.rank}: another of the {self.ranks} processes is gone ({error}); "
                    f"{self._kept(path)}"
                ) from error
        return self._finished(parts, path)

    def _kept(self, path: str | Path | None) -> str:
        runs = f"runs {self.runs.start} ... {self.runs.stop - 1}"
        part = self.part(path)
        return f"its {runs} are lost: no path was given" if part is None else f"its {runs}: {part}"

    def _exchange(self, mine: _Outcome) -> list[_Outcome]:
        parts: list[Any] | None = [None] * self.ranks if self.first else None
        # dst counts the ranks of all processes
        first = distributed.get_global_rank(self.group, 0)
        distributed.gather_object(mine, parts, dst=first, group=self.group)
        return [mine] if parts is None else parts

    def _finished(self, parts: list[_Outcome], path: str | Path | None) -> Trajectory:
        """The runs side by side, as far as all of them go."""
        rows = min(len(part.trajectory) for part in parts)
        cut = [part.trajectory.slice(slice(0, rows)) for part in parts]
        joined = replace(cut[0], values=torch.cat([part.values for part in cut]))
        own = self.part(path)
        if path is not None and own is not None:
            if self.first:
                joined.save(path)
            # the barrier: nobody's part goes before the whole is there
            distributed.barrier(self.group)
            own.unlink(missing_ok=True)
        failures = [part.failure for part in parts if part.failure is not None]
        if failures:
            first = min(failures, key=lambda failure: failure.step)
            first.trajectory = joined
            raise first
        return joined


@dataclass(frozen=True)
class _Outcome:
    """What one process sends to rank 0."""

    trajectory: Trajectory
    failure: NonFiniteStatistic | None = None


def _attempted(trained: Callable[[], Trajectory]) -> _Outcome:
    try:
        return _Outcome(trained())
    except NonFiniteStatistic as error:
        if error.trajectory is None:
            raise
        return _Outcome(error.trajectory, error)


@contextmanager
def _signal_ends(message: str) -> Generator[None]:
    """SIGTERM, which torchrun sends when a process has died, as SystemExit: what runs is closed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(message)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

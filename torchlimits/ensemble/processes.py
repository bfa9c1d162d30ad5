"""Processes that share runs: those that torchrun has started, and those started here."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from torchlimits import _checks
from torchlimits._threads import threads
from torchlimits.ensemble.kept import Kept, ProcessGone
from torchlimits.ensemble.shard import Outcome, Shard, Trained, joined, unless_diverged
from torchlimits.trajectory import Trajectory

#: the first process to end waits for the last; one that is gone is noticed at once
_TIMEOUT = timedelta(days=30)
#: seconds from one look at the process that started this one to the next
_LOOK = 0.5
#: seconds that a process has to close its files when another has died
_GRACE = 5


@contextmanager
def process_group(device: torch.device | str = "cpu") -> Generator[Any]:
    """The process group that ``torchrun`` asks for, closed at the end; None without torchrun.

    It is a gloo group on every device, as the processes exchange data on the CPU. On CUDA every
    process takes the GPU of its local rank; if there are more processes than GPUs, they share them.
    When the agent of ``torchrun`` that started the process is gone, killed for instance, the
    process gets SIGTERM, as it would from that agent when another process dies.

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
        # once all have met: a process that does not come to the meeting is not waited for
        with _ends_with_its_parent():
            yield distributed.new_group(backend="gloo", timeout=_TIMEOUT)
    finally:
        _leave()


@contextmanager
def _ends_with_its_parent() -> Generator[None]:
    """Send this process SIGTERM when the one that started it is gone.

    Nobody else would end it, and one that takes its place would find its files in use.
    """
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _leave() -> None:
    """Close the process group, and leave its threads the time to let go of their last tensors.

    A thread of gloo's does that a moment after a collective has returned, needs the interpreter
    for it, and aborts the process where that has ended meanwhile
    (https://github.com/pytorch/pytorch/pull/179291). It outlives the group, and cannot be joined.
    """
    distributed.destroy_process_group()
    time.sleep(0.2)


def rank_in(group: Any) -> int:
    """Return the number of this process in a group; 0 without one."""
    return 0 if group is None else distributed.get_rank(group)


def spawned(trained: Trained, shards: Sequence[Shard], kept: Kept) -> Trajectory:
    """Train every shard in a process of its own, the first in this one, and return all runs.

    The processes are spawned, as a fork of a process with threads may wait forever for a lock that
    a thread held. Torch's threads are divided among them. Each belongs to an executor of its own,
    which tells that, and which, process has died; this one looks after every step.

    Args:
        trained: see `Trained`; it is pickled.
        shards: the shares of the runs, one for each process.
        kept: where all runs go.

    Raises:
        ValueError: if this process is in a process group already, or the problem or the statistics
            cannot be pickled.
        ProcessGone: if one of the processes dies.
        NonFiniteStatistic: if a run diverged, with the rows that all runs have.
    """
    if distributed.is_available() and distributed.is_initialized():
        raise ValueError(
            f"expected processes=1 within a torch.distributed process group, got {len(shards)}: "
            "give that group as group="
        )
    _check_pickled(trained)
    share = max(1, torch.get_num_threads() // len(shards))
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context, begin_process, (share,)) for _ in shards[1:]]
    try:
        with threads(share), shards[0].ends_on_signal(kept):
            outcomes = _outcomes(trained, shards, pools, kept)
    finally:
        for pool in pools:
            pool.shutdown()
    whole = joined(outcomes)
    if kept.path is not None:
        whole.save(kept.path)
    for shard in shards:
        shard.own(kept).remove(rows=True)
    return unless_diverged(outcomes, whole)


def _check_pickled(trained: Trained) -> None:
    """Raise ValueError if the other processes cannot be told what to do."""
    try:
        pickle.dumps(trained)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "expected a problem and statistics that can be pickled with processes=, got some that "
            f"cannot ({error}): define their functions at the top level of a module, not as "
            "lambdas or inside functions"
        ) from error


def _outcomes(
    trained: Trained, shards: Sequence[Shard], pools: Sequence[Executor], kept: Kept
) -> list[Outcome]:
    """Train all shards; the first error, or a process that is gone, ends the others."""
    processes: list[int] = []
    ended = threading.Event()
    try:
        processes += _started(pools)
        futures = {
            pool.submit(_pickled, shard, trained, kept): shard
            for pool, shard in zip(pools, shards[1:], strict=True)
        }
        for future in futures:
            future.add_done_callback(lambda _: ended.set())

        def check() -> None:
            if ended.is_set():
                ended.clear()
                _raise_first(futures, kept)

        mine = shards[0].attempted(trained, kept, check)
        wait(futures, return_when=FIRST_EXCEPTION)
        _raise_first(futures, kept)
        return [mine, *(pickle.loads(future.result()) for future in futures)]
    except BaseException:
        end_processes(pools, processes)
        raise


def _pickled(shard: Shard, trained: Trained, kept: Kept) -> bytes:
    """Train; tensors left to torch would come back through shared memory, which may be small."""
    return pickle.dumps(shard.attempted(trained, kept))


def _started(pools: Sequence[Executor]) -> list[int]:
    """Start the process of each pool, all at once, and return their numbers."""
    starting = [pool.submit(os.getpid) for pool in pools]
    try:
        return [future.result() for future in starting]
    except BrokenExecutor as error:
        raise RuntimeError(
            "expected a new process to start, but it ended (its own message is above): in a script "
            "training with processes= must be under if __name__ == '__main__', as the script is "
            "imported by every process"
        ) from error


def begin_process(own_threads: int) -> None:
    """Prepare a new process: it has its own threads, and ends if the one that started it does."""
    torch.set_num_threads(own_threads)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # the executor would wait for work of a process that was killed, forever
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _raise_first(futures: Mapping[Future[bytes], Shard], kept: Kept) -> None:
    """Raise the error of a process that has failed, if one has."""
    for future, shard in futures.items():
        error = future.exception() if future.done() else None
        if isinstance(error, BrokenExecutor):
            raise ProcessGone(
                f"rank {shard.rank} of {shard.ranks} processes is gone, killed or out of memory; "
                f"{shard.told(kept)}"
            ) from error
        if error is not None:
            raise error


def end_processes(pools: Sequence[Executor], processes: Sequence[int]) -> None:
    """Have processes close their files and end, by force where that takes long; wait for all."""
    for child in multiprocessing.active_children():
        if child.pid in processes:
            child.terminate()
            child.join(_GRACE)
            child.kill()
    for pool in pools:
        # its thread may be the one that has seen a process end, and not have noted it yet: until
        # then the process counts as a child that lives
        pool.shutdown()

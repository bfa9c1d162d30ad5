"""`results`: parts of figures, worked at in processes of their own; one that fails is named."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from typing import Any

from torchlimits.cli.paper.board import Board
from torchlimits.cli.paper.parts import Part, Tell
from torchlimits.cli.sentences import sentence
from torchlimits.ensemble.processes import begin_process, end_processes

#: seconds from one look at how far the parts have come to the next
_LOOK = 0.5

#: in a worker: the steps made and the number of all, for each part
_counts: Any = None


def results(parts: Sequence[Part], jobs: int, board: Board) -> Generator[tuple[Part, Any]]:
    """Yield each part with its result, in the order in which they are done.

    Args:
        parts: those that take long are begun first.
        jobs: how many processes work at once; 1 is this one alone. Results do not depend on it.
        board: is told how far each part has come.

    Raises:
        RuntimeError: if a part fails or its process is gone; the message names it. The others are
            ended, as they are when the generator is closed or interrupted.
    """
    parts = sorted(parts, key=lambda part: -part.cost)
    jobs = min(jobs, len(parts))
    yield from _here(parts, board) if jobs == 1 else _elsewhere(parts, jobs, board)


def _here(parts: Sequence[Part], board: Board) -> Generator[tuple[Part, Any]]:
    for part in parts:
        board.tell(part, 0, 0)
        try:
            seconds, result = _timed(
                part, lambda made, steps, part=part: board.tell(part, made, steps)
            )
        except Exception as error:
            raise _failed(part, error) from error
        board.end(part, seconds)
        yield part, result


def _elsewhere(parts: Sequence[Part], jobs: int, board: Board) -> Generator[tuple[Part, Any]]:
    context = multiprocessing.get_context("spawn")
    # shared memory and not a queue: a process that is killed leaves nothing half written or locked
    counts = context.RawArray("q", [-1] * (2 * len(parts)))
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, context, _begin, (counts,))
    done = False
    try:
        with _without_interrupts():
            waiting = {pool.submit(_work, place, part): part for place, part in enumerate(parts)}
            # a pool starts a process after it has woken up the thread that watches them: the last
            # one, if it is killed, would not be missed
            pool.submit(_nothing)
        while waiting:
            finished = wait(waiting, _LOOK, FIRST_COMPLETED).done
            for place, part in enumerate(parts):
                if part in waiting.values() and counts[2 * place] >= 0:
                    board.tell(part, counts[2 * place], counts[2 * place + 1])
            for future in finished:
                seconds, result = _result(future, waiting, board)
                board.end(waiting[future], seconds)
                yield waiting.pop(future), result
        done = True
    finally:
        own = [p.pid for p in multiprocessing.active_children() if p not in others]
        if done:
            pool.shutdown()
        else:
            end_processes([pool], [pid for pid in own if pid is not None])


def _timed(part: Part, tell: Tell) -> tuple[float, Any]:
    begun = time.monotonic()
    result = part(tell)
    return time.monotonic() - begun, result


def _result(
    future: Future[bytes], waiting: dict[Future[bytes], Part], board: Board
) -> tuple[float, Any]:
    try:
        return pickle.loads(future.result())
    except BrokenExecutor as error:
        begun = [f"{str(part)!r}" for part in waiting.values() if part in board.begun]
        raise RuntimeError(
            f"a process that worked at {' or '.join(begun) or 'a part'} is gone, killed or out of "
            "memory: with fewer --jobs there is more for each"
        ) from error
    except Exception as error:
        raise _failed(waiting[future], error) from error


def _failed(part: Part, error: Exception) -> RuntimeError:
    return RuntimeError(f"{part}: {sentence(error)}")


def _nothing() -> None:
    """Do nothing, in another process."""


def _begin(counts: Any) -> None:
    """Prepare a new process."""
    global _counts
    _counts = counts
    begin_process(1)


def _work(place: int, part: Part) -> bytes:
    """A part's seconds and result; torch would send its tensors through shared memory."""

    def tell(made: int, steps: int) -> None:
        _counts[2 * place + 1], _counts[2 * place] = steps, made

    tell(0, 0)
    return pickle.dumps(_timed(part, tell))


@contextlib.contextmanager
def _without_interrupts() -> Generator[None]:
    """Processes started in the block leave Ctrl-C to this one, which is told after the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

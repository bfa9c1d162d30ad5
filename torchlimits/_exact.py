"""`exactly`: arithmetic in the precision of the tensors, whatever the training asks for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

#: what torch.autocast may be on for
_TYPES = ("cpu", "cuda")


@contextmanager
def exactly() -> Generator[None]:
    """Turn off autocast, TensorFloat-32 and autograd until the end of the block.

    A flush comes wherever the user's loop happens to be. Inside ``torch.autocast`` matrix products
    would be rounded to bfloat16, and with ``torch.set_float32_matmul_precision("high")`` to ten
    bits: rows would depend on the clock, and a Gram matrix on what it was projected from.

    The precision of matrix products is a setting of the whole program, which is touched only where
    it is not the highest already.

    Example:
        >>> import torch
        >>> x = torch.full((1, 1), 1.001)
        >>> with torch.autocast("cpu", torch.bfloat16), exactly():
        ...     (x @ x).dtype
        torch.float32
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in _TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(_highest_precision.enter(stack))
        yield


class _HighestPrecision:
    """Full precision of matrix products in the whole program, while any thread is inside.

    Threads come and go in any order: the first one to enter finds what the last one to leave has to
    put back. An interrupt may come before a thread can leave or give back a lock: who is inside is
    known by an object that does not outlive its block.
    """

    def __init__(self) -> None:
        self._lock, self._inside = _BriefLock(), dict[int, weakref.ref[object]]()
        self._put_back: Callable[[], None] = _nothing

    def enter(self, block: object) -> Callable[[], object]:
        """Raise the precision; return a function that undoes it, as the end of ``block`` does."""
        leave = weakref.finalize(block, self._leave, id(block))
        leave.atexit = False
        with self._lock:
            if self._put_back is _nothing:
                self._put_back = _raise_precision()
            self._inside[id(block)] = weakref.ref(block)
        return leave

    def _leave(self, block: int) -> None:
        try:
            self._without(block)
        finally:  # an interrupt may have ended the first try
            self._without(block)

    def _without(self, block: int) -> None:
        with self._lock:
            self._inside.pop(block, None)
            # also those whose own end was interrupted
            if all(inside() is None for inside in list(self._inside.values())):
                self._put_back()
                self._put_back, self._inside = _nothing, {}


class _BriefLock:
    """A lock of blocks that take microseconds, which no thread waits for in vain.

    An exception between the end of a block and the lock's release leaves it taken: a signal may
    come there before Python 3.11, a tracing function at any time. So a lock that is not given back
    for so many ``seconds`` is taken for lost, and another one takes its place.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self._lock, self.seconds = threading.RLock(), seconds

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=self.seconds):
            self._lock = threading.RLock()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # of a thread whose lock was replaced
            self._lock.release()


def _raise_precision() -> Callable[[], None]:
    """Set the highest precision; return a function that sets the one before."""
    matmul: Any = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # before torch 2.9
        before = torch.get_float32_matmul_precision()
        if before == "highest":
            return _nothing
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(before)
    # from 2.9 on, the older interface warns if both are used
    onednn: Any = torch.backends.mkldnn
    backends = [(one, one.fp32_precision) for one in (matmul, onednn.matmul)]
    lower = [(one, value) for one, value in backends if value not in ("ieee", "none")]
    for one, _ in lower:
        one.fp32_precision = "ieee"

    def put_back() -> None:
        for one, value in lower:
            one.fp32_precision = value

    return put_back


def _nothing() -> None:
    pass


_highest_precision = _HighestPrecision()

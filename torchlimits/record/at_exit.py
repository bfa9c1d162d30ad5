"""`close_at_exit`: what a program leaves open is closed at its end, and its records are kept."""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol, runtime_checkable

from torchlimits._checks import warn


@runtime_checkable
class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """End it, and keep what it has."""

    def left_open(self) -> bool:
        """Whether there is something to keep."""
        ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()
_process = os.getpid()
#: set when the program has ended: what is collected then was closed, or has said why not
_done: list[bool] = []


def close_at_exit(one: Closable) -> None:
    """Have something closed when the program ends, unless it is gone by then.

    Args:
        one: nothing happens if it is closed already.
    """
    if os.getpid() == _process:
        _open.add(one)


def close_quietly(one: Closable) -> None:
    """Close what its owner did not; a warning tells of an exception, which nobody could catch.

    A forked process, for instance a data loader's worker, leaves this to its parent.
    """
    if os.getpid() != _process or _done:
        return
    try:
        if one.left_open():
            one.close()
    except Exception as error:
        warn(f"what was recorded and not closed could not be kept whole: {error!r}")


@atexit.register
def _close_all() -> None:
    for one in list(_open):
        close_quietly(one)
    _done.append(True)

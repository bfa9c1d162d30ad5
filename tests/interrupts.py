"""Exceptions at every line that runs: what a Ctrl-C, an exit or an error can come between.

`lines` lists the line events of a function, `interrupted` runs it again with an exception at one of
them::

    for at in lines(work, FILES):
        state = fresh()
        interrupted(lambda: work(state), at)
        work(state)  # once more: nothing lost, nothing twice
        check(state)

A line that runs five times makes five events; those in `except` and `finally` blocks count as well.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple


class Event(NamedTuple):
    """The ``hit``-th time, from 1, that a line of a file is about to run."""

    file: str
    line: int
    hit: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line} ({self.hit})"


def lines(function: Callable[[], Any], files: Sequence[str | Path]) -> list[Event]:
    """The events of one call of ``function``, in order.

    Args:
        function: must do the same every time, as far as the files are concerned.
        files: whose lines count, by the ends of their paths: ``"record/recording.py"``.
    """
    found: list[Event] = []
    _traced(function, files, found.append)
    return found


def interrupted(
    function: Callable[[], Any], at: Event,
    error: type[BaseException] | BaseException = KeyboardInterrupt,
) -> bool:  # fmt: skip
    """Call ``function`` with an exception raised in the place of an event.

    Args:
        function: as for `lines`.
        at: one of the events that `lines` found.
        error: what is raised.

    Returns:
        Whether the exception came out of the function; it may have handled it.

    Raises:
        AssertionError: if the event never came.
    """
    hits = 0

    def in_frame(frame: FrameType, kind: str, argument: Any) -> Any:
        nonlocal hits
        if kind == "line" and frame.f_lineno == at.line:
            hits += 1
            if hits == at.hit:
                raise error
        return in_frame

    kind = error if isinstance(error, type) else type(error)
    try:
        # no other file is looked at, which is most of the time
        _tracing(function, at.file, in_frame)
    except kind:
        if hits < at.hit:
            raise
        return True
    # how often lines about the whole program's precision run depends on other threads too
    assert hits >= at.hit or at.file.endswith("_exact.py"), f"{at} never came"
    return False


def _traced(
    function: Callable[[], Any], files: Sequence[str | Path], told: Callable[[Event], None]
) -> None:
    """Call the function; ``told`` hears of each event before it happens, and may raise."""
    hits: Counter[tuple[str, int]] = Counter()

    def in_frame(frame: FrameType, kind: str, argument: Any) -> Any:
        if kind == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            hits[place] += 1
            told(Event(*place, hits[place]))
        return in_frame

    _tracing(function, tuple(str(file) for file in files), in_frame)


def _tracing(
    function: Callable[[], Any], ends: str | tuple[str, ...], in_frame: Callable[..., Any]
) -> None:
    """Call the function, and ``in_frame`` for what happens in files whose paths end so."""

    def on_call(frame: FrameType, kind: str, argument: Any) -> Any:
        return in_frame if frame.f_code.co_filename.endswith(ends) else None

    before, collects = sys.gettrace(), gc.isenabled()
    # what others left behind is finalized by lines of these files too, at any moment
    gc.disable()
    sys.settrace(on_call)
    try:
        function()
    finally:
        # an exception of ours has ended the tracing already
        sys.settrace(before)
        if collects:
            gc.enable()

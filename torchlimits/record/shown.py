"""`Shown`: one sink and how far it has come; showing may fail, training goes on."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torchlimits._checks import warn
from torchlimits.contracts.observer import Observer
from torchlimits.contracts.sink import Sink
from torchlimits.record.recording import Recording
from torchlimits.trajectory import Trajectory

#: who gives rows to a sink, by the id of the sink, which is valid while that object lives
_users: weakref.WeakValueDictionary[int, Shown] = weakref.WeakValueDictionary()


class Shown:
    """A sink, given the rows of one recording; belongs to a `Display`.

    Every method may be interrupted anywhere and called again: a sink itself tells what it has
    (`Sink.newest`), and ``shown`` is a hint for sinks that do not.

    Args:
        sink: what takes the rows.
        owned: whether it is for the tracker to close it.
    """

    def __init__(self, sink: Sink, owned: bool) -> None:
        self.sink, self._owned = sink, owned
        #: the last step that the sink was given; -1 if none
        self.shown = -1
        self._begun = self._failed = self._warned = self._closed = False
        self._last_state: Any = None

    def check(self, chunk: Trajectory) -> None:
        """Raise an exception if the sink does not take these rows, or takes another tracker's."""
        if self.sink.newest is not None and self._is_anothers():
            gc.collect()  # a user that nobody can reach any more may not be collected yet
            if self._is_anothers():
                raise ValueError(
                    f"expected a writer of its own for each tracker, got {self.sink}, which "
                    "another one writes to: close that tracker, or make another writer"
                )
        self.sink.check(chunk)
        _users[id(self.sink)] = self

    def _is_anothers(self) -> bool:
        user = _users.get(id(self.sink))
        return user is not None and user is not self and not user._closed

    def show(self, recording: Recording, observer: Observer | None, last: float = math.inf) -> None:
        """Give the sink the rows up to a step that it does not have, and the observer's findings.

        Args:
            recording: has the rows.
            observer: of the run, or None.
            last: the last step to show.
        """
        try:
            if self._failed:
                # what it still holds must go before it gets more
                self.sink.flush()
            self._give(recording, last)
            if observer is not None and self.sink.explains:
                explanation = observer.explanation()
                if explanation is not None:
                    self.sink.explain(explanation)
            self.sink.flush()
            if self._fell_back():
                # somebody deleted what it had written, which it noticed by now
                self._give(recording, last)
                self.sink.flush()
        except Exception as error:
            self._forgive(error)
        else:
            self._failed = False

    def _give(self, recording: Recording, last: float) -> None:
        newest = self.sink.newest
        if not self._begun and newest is not None and newest >= 0:
            warn(
                f"{self.sink} has the rows of an earlier recording, up to step {newest}: only "
                "later ones are shown; make another writer for each tracker"
            )
        self._begun = True
        for chunk in recording.after(self.shown if newest is None else newest):
            if chunk.steps[-1] > last:
                chunk = chunk.slice(chunk.steps <= last)
            if len(chunk):
                self.sink.add(chunk)
                self.shown = int(chunk.steps[-1])

    def _fell_back(self) -> bool:
        return self.sink.newest is not None and self.sink.newest < self.shown

    def _forgive(self, error: Exception) -> None:
        """Say that the sink failed, which is no reason to lose a training run."""
        if not self._warned:
            warn(
                f"{self.sink} cannot show recorded steps: {error!r}; training goes on, the "
                "steps are recorded, and showing them is tried again"
            )
        self._failed = self._warned = True

    def close(self) -> None:
        """End the sink, and say so if it does not show everything; may be called again."""
        if self._closed:
            return
        if self._last_state is None:
            self._last_state = self.sink.state_dict()
        try:
            self.sink.close() if self._owned else self.sink.finish()
        except Exception as error:
            self._forgive(error)
        if self._failed or self._fell_back():
            # it may have taken a part of what it was given when it failed
            taken = self.shown if self.sink.newest is None else self.sink.newest
            warn(
                f"{self.sink} failed and may not show all steps (the last one it took is "
                f"{taken}): the trajectory has them, and tl.tensorboard.write shows it"
            )
        self._closed = True

    def state_dict(self) -> Any:
        """The state of the sink; after `close`, the one before the last row was written."""
        return self._last_state if self._closed else self.sink.state_dict()

    def load_state_dict(self, state: Any, step: int) -> None:
        """Go on with the sink's state, or None, of a run whose last recorded step is ``step``."""
        if state is not None:
            self.sink.load_state_dict(state)
        # a sink that has nothing of the run, on another machine for instance, is given all of it
        newest = self.sink.newest
        self.shown, self._begun = step if newest is None else newest, True

    def restoring(self) -> Callable[[], None]:
        """A function that undoes a `load_state_dict` that comes after this call."""
        return partial(self.load_state_dict, self.sink.state_dict(), self.shown)

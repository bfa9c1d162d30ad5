"""`Display`: shows recorded rows during training, in one place or in several."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torchlimits.contracts.observer import Observer
from torchlimits.record.recording import Recording
from torchlimits.record.shown import Shown
from torchlimits.record.sinks.choose import chosen
from torchlimits.trajectory import Trajectory


class Display:
    """The sinks of a run, none or more; belongs to a `Tracker`.

    Each has its own progress and its own failures: one that fails does not stop the others.

    Args:
        writer: as in `tl.track`.

    Raises:
        TypeError: if it is no writer.
        OSError: if it is a log directory that cannot be written to.
    """

    def __init__(self, writer: Any) -> None:
        self._many = isinstance(writer, (list, tuple))
        writers: list[Any] = list(writer) if self._many else [writer]
        found = [chosen(one) for one in writers]
        self._shown = [Shown(sink, owned) for sink, owned in found if sink is not None]

    @property
    def logdir(self) -> Any:
        """The folder of the first sink that has one, or None."""
        folders = [one.sink.logdir for one in self._shown]
        return next((folder for folder in folders if folder is not None), None)

    def check(self, chunk: Trajectory) -> None:
        """Ask the sinks, before hours of training, whether they take these rows."""
        for one in self._shown:
            one.check(chunk)

    @property
    def shows(self) -> bool:
        """Whether there is a sink."""
        return bool(self._shown)

    def show(self, recording: Recording, observer: Observer | None, last: float = math.inf) -> None:
        """Give the sinks the rows that they do not have, and what the observer found.

        Args:
            recording: has the rows.
            observer: of the run, or None.
            last: the last step to show.
        """
        for one in self._shown:
            one.show(recording, observer, last)

    def close(self) -> None:
        """End the sinks, and say so if one does not show everything; may be called again."""
        for one in self._shown:
            one.close()

    def state_dict(self) -> Any:
        """The sink's state, or a list for several; after `close`, the state before the last row."""
        states = [one.state_dict() for one in self._shown]
        return states if self._many else next(iter(states), None)

    def load_state_dict(self, state: Any, step: int) -> None:
        """Go on with the sink's state, or None, of a run whose last recorded step is ``step``.

        Raises:
            ValueError: if the state is another sink's or damaged; then nothing has changed.
        """
        undo: list[Callable[[], None]] = []
        try:
            for one, part in zip(self._shown, self._parts(state), strict=True):
                undo.append(one.restoring())
                one.load_state_dict(part, step)
        except ValueError:
            for restore in reversed(undo):
                restore()
            raise

    def _parts(self, state: Any) -> list[Any]:
        count = len(self._shown)
        if not self._many or state is None:
            return [state] * count
        if not isinstance(state, list):
            # the state of a run that was shown in one place only
            return [state, *[None] * (count - 1)][:count]
        if len(state) != count:
            raise ValueError(
                f"expected a writer's state of {count} sinks, got one of {len(state)}: give as "
                "many writers as the run had"
            )
        return state

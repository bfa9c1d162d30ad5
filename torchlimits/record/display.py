"""`Display`: shows recorded rows during training; showing may fail, training goes on."""

from __future__ import annotations

from typing import Any

from torchlimits._checks import warn
from torchlimits.contracts.observer import Observer
from torchlimits.contracts.sink import Sink
from torchlimits.record.recording import Recording
from torchlimits.record.sinks.choose import chosen
from torchlimits.trajectory import Trajectory


class Display:
    """A sink, or none, and how far it has come; belongs to a `Tracker`.

    Args:
        writer: as in `tl.track`.

    Raises:
        TypeError: if it is no writer.
        OSError: if it is a log directory that cannot be written to.
    """

    def __init__(self, writer: Any) -> None:
        self.sink, self._owned = chosen(writer)
        #: the last step that the sink has taken; -1: none
        self.shown = -1
        self._failed = self._warned = False
        self._last_state: Any = None

    def check(self, chunk: Trajectory) -> None:
        """Ask the sink, before hours of training, whether it takes these rows."""
        if self.sink is not None:
            self.sink.check(chunk)

    def show(self, recording: Recording, observer: Observer | None) -> None:
        """Give the sink the rows that it does not have, and what the observer found."""
        if self.sink is None:
            return
        try:
            if self._failed:
                # what it still holds must go before it gets more
                self.sink.flush()
            for chunk in recording.after(self.shown):
                self.sink.add(chunk)
                self.shown = int(chunk.steps[-1])
            if observer is not None and self.sink.explains:
                explanation = observer.explanation()
                if explanation is not None:
                    self.sink.explain(explanation)
            self.sink.flush()
        except Exception as error:
            self._forgive(self.sink, error)
        else:
            self._failed = False

    def _forgive(self, sink: Sink, error: Exception) -> None:
        """Say that the sink failed, which is no reason to lose a training run."""
        if not self._warned:
            warn(
                f"{sink} cannot show recorded steps: {error!r}; training goes on, the "
                "steps are recorded, and showing them is tried again"
            )
        self._failed = self._warned = True

    def close(self) -> None:
        """Close the sink if it is ours, and say so if it does not show everything."""
        sink = self.sink
        if sink is None:
            return
        self._last_state = self.state_dict()
        try:
            if self._owned:
                sink.close()
        except Exception as error:
            self._forgive(sink, error)
        if self._failed:
            # it may have taken a part of what it failed at
            taken = self.shown if sink.newest is None else sink.newest
            warn(
                f"{sink} failed and may not show all steps (the last one it took is "
                f"{taken}): the trajectory has them, and tl.tensorboard.write shows it"
            )
        if self._owned:
            self.sink = None

    def state_dict(self) -> Any:
        """The state of the sink; after `close`, the one before the last row was written."""
        return self._last_state if self.sink is None else self.sink.state_dict()

    def load_state_dict(self, state: Any, step: int) -> None:
        """Go on with the sink's state, or None, of a run whose last recorded step is ``step``."""
        self.shown = step
        if self.sink is None:
            return
        if state is not None:
            self.sink.load_state_dict(state)
        if self.sink.newest is not None:
            # one that has nothing of the run, on another machine for instance, is given all of it
            self.shown = self.sink.newest

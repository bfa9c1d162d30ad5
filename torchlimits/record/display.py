"""Where recorded rows are shown during training; showing may fail, training goes on."""

from __future__ import annotations

from typing import Any, Protocol

from torchlimits.estimation.probe import Prober
from torchlimits.record.recording import Recording, warn
from torchlimits.record.sinks.log_function import Logged
from torchlimits.trajectory import Trajectory


class Sink(Protocol):
    """Where recorded pieces of a trajectory go during training: `tl.CSV`, `tl.tensorboard.Writer`.

    A sink that raises does not end the training: a warning says so, once, and rows whose `add` did
    not return are given again later, after a `flush` that did.

    A sink may also have ``check(chunk)``, which raises ahead of the training if `add` would refuse
    the chunk; ``explain(explanation)``, for what a probe has found; and ``state_dict()``,
    ``load_state_dict(state)``, part of the tracker's. Without the latter, a sink of a resumed run
    is given only rows later than the state.
    """

    def add(self, chunk: Trajectory) -> None:
        """Take the next rows of the trajectory."""

    def flush(self) -> None:
        """Make what was added visible to readers."""


class Display:
    """A sink, or none, and how far it has come; belongs to a `Tracker`.

    Args:
        writer: as in `tl.track`.

    Raises:
        TypeError: if it is no writer.
        OSError: if it is a log directory that cannot be written to.
    """

    def __init__(self, writer: Any) -> None:
        self.sink: Any
        self.sink, self._owned = _sink_of(writer)
        #: the last step that the sink has taken; -1: none
        self.shown = -1
        self._failed = self._warned = False
        self._last_state: Any = None

    def check(self, chunk: Trajectory) -> None:
        """Ask the sink before hours of training, if it can tell, whether it takes these rows."""
        if hasattr(self.sink, "check"):
            self.sink.check(chunk)

    def show(self, recording: Recording, prober: Prober | None) -> None:
        """Give the sink the rows that it does not have."""
        if self.sink is None:
            return
        try:
            if self._failed:
                # what it still holds must go before it gets more
                self.sink.flush()
            for chunk in recording.after(self.shown):
                self.sink.add(chunk)
                self.shown = int(chunk.steps[-1])
            if prober is not None and hasattr(self.sink, "explain"):
                self.sink.explain(prober.explanation())
            self.sink.flush()
        except Exception as error:
            self._forgive(error)
        else:
            self._failed = False

    @property
    def _name(self) -> str:
        return getattr(self.sink, "__name__", type(self.sink).__name__)

    @property
    def _taken(self) -> int:
        # a sink may have taken a part of what it failed at
        return getattr(self.sink, "newest", self.shown)

    def _forgive(self, error: Exception) -> None:
        """Say that the sink failed, which is no reason to lose a training run."""
        if not self._warned:
            warn(
                f"{self._name} cannot show recorded steps: {error!r}; training goes on, the "
                "steps are recorded, and showing them is tried again"
            )
        self._failed = self._warned = True

    def close(self) -> None:
        """Close the sink if it is ours, and say so if it does not show everything."""
        if self.sink is None:
            return
        self._last_state = self.state_dict()
        try:
            if self._owned:
                self.sink.close()
        except Exception as error:
            self._forgive(error)
        if self._failed:
            warn(
                f"{self._name} failed and may not show all steps (the last one it took is "
                f"{self._taken}): the trajectory has them, and tl.tensorboard.write shows it"
            )
        if self._owned:
            self.sink = None

    def state_dict(self) -> Any:
        """The sink's, if it has one; after `close`, that of before the last row was written."""
        return self.sink.state_dict() if hasattr(self.sink, "state_dict") else self._last_state

    def load_state_dict(self, state: Any, step: int) -> None:
        """Go on after a step."""
        if state is not None and hasattr(self.sink, "load_state_dict"):
            self.sink.load_state_dict(state)
        # a writer that has nothing of the run, on another machine for instance, is given all of it
        self.shown = getattr(self.sink, "newest", step)


def _sink_of(writer: Any) -> tuple[Any, bool]:
    """The sink behind ``writer``, and whether closing it is ours to do."""
    if writer is None:
        return None, False
    if isinstance(writer, type):
        raise TypeError(
            f"expected writer as an object, got the class {writer.__name__}: make one, "
            f"{writer.__name__}(...)"
        )
    if hasattr(writer, "add") and hasattr(writer, "flush"):
        return writer, False
    if callable(writer):
        return Logged(writer), False
    # imported here: a loop that does not use TensorBoard does not load it
    from torchlimits import tensorboard

    return tensorboard.live(writer), True

"""`borrowed`: writes a growing trajectory into the user's own SummaryWriter."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.tags import tags_of
from torchlimits.tensorboard.events import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from torchlimits.tensorboard.explained import write_explanation
from torchlimits.tensorboard.live import Live
from torchlimits.trajectory import Trajectory

#: where torch has its own SummaryWriter
_TORCH = "torch.utils.tensorboard"


def borrowed(writer: Any) -> Borrowed:
    """The sink for a SummaryWriter, torch's or somebody else's.

    Raises:
        TypeError: if the writer cannot be written to.
    """
    made_by_torch = _is_torchs(writer) and _is_torchs(writer._get_file_writer())
    return Borrowed(writer) if made_by_torch else Foreign(writer)


def _is_torchs(thing: Any) -> bool:
    # by name, not isinstance: torch.utils.tensorboard takes more than a second to import
    return any(kind.__module__.startswith(_TORCH) for kind in type(thing).__mro__)


class Borrowed(Live):
    """Writes into torch's SummaryWriter, which stays open; run r has tags ``.../run r``.

    Nothing can be taken back from it, so rows are not thinned out later: every step is shown at
    first, then about 40 for each doubling of the step (for 1000 points), which lasts for 10^9
    steps. It never purges anything: the user's points and ours stay. To resume, the user makes the
    first writer with ``purge_step=0`` (TensorBoard ignores the first START of a folder) and the
    next one with ``purge_step=`` the checkpoint's step + 1.
    """

    def __init__(self, writer: Any, max_points: int | None = 1000, max_runs: int = 3) -> None:
        super().__init__(max_points, None)
        self._writer, self._max_runs = writer, max_runs
        #: the step that the writer was given last, and how many of its values
        self._given: tuple[int, int] = (-1, 0)

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        tags = tags_of(rows.names, style=self._progress.style)
        if rows.values.ndim > 2:
            runs = range(min(rows.runs, self._max_runs))
            tags = [f"{one}/run {run}" for run in runs for one in tags]
        # (T, runs * k): everything of one step goes into one event
        columns = np.moveaxis(rows.values.reshape(rows.runs, len(rows), -1).numpy(), 0, 1)
        with np.errstate(over="ignore"):
            values = columns[:, : self._max_runs].astype(np.float32).reshape(len(rows), -1).tolist()
        for step, wall_time, row in zip(rows.steps.tolist(), wall_times, values, strict=True):
            # NaN is no value, and differs from itself
            pairs = [pair for pair in zip(tags, row, strict=True) if pair[1] == pair[1]]
            if pairs and step >= self._given[0]:
                self._give(pairs, step, float(wall_time))

    def _give(self, pairs: Sequence[tuple[str, float]], step: int, wall_time: float) -> None:
        """Hand the values of a step on, except those that the writer has."""
        if self._given == (step, len(pairs)):
            return
        file = self._writer._get_file_writer()
        summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in pairs])
        event, given = Event(summary=summary), (step, len(pairs))
        # in one line: a call that returned is not made again
        _, self._given = file.add_event(event, step, wall_time), given

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, as `Sink.load_state_dict`."""
        super().load_state_dict(state)
        self._given = (self._progress.written + 1, 0)

    def explain(self, explanation: Explanation) -> None:
        """Write an explanation into ``<log_dir>/explained``."""
        write_explanation(self._writer.log_dir, explanation)

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        self._writer.flush()

    def __str__(self) -> str:
        return type(self._writer).__name__


class Foreign(Borrowed):
    """Writes into a SummaryWriter that is not torch's, tensorboardX's for one.

    It uses only the public ``add_scalar(tag, value, step, walltime)``: what is inside is not known.
    """

    def __init__(self, writer: Any, max_points: int | None = 1000, max_runs: int = 3) -> None:
        super().__init__(writer, max_points, max_runs)
        try:
            inspect.signature(writer.add_scalar).bind("tag", 0.0, 0, 0.0)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"expected a SummaryWriter with add_scalar(tag, value, step, walltime), got {self} "
                f"of {type(writer).__module__}: {error}; give torch.utils.tensorboard's, or a log "
                "directory"
            ) from error

    def _give(self, pairs: Sequence[tuple[str, float]], step: int, wall_time: float) -> None:
        """Hand the values of a step on, except those that the writer has."""
        begin = self._given[1] if self._given[0] == step else 0
        for count, (tag, value) in enumerate(pairs[begin:], begin + 1):
            # in one line: a call that returned is not made again
            _, self._given = self._writer.add_scalar(tag, value, step, wall_time), (step, count)

    @property
    def explains(self) -> bool:
        """Whether there is a folder to show an explanation in."""
        return isinstance(_folder_of(self._writer), str)

    def explain(self, explanation: Explanation) -> None:
        """Write an explanation into the subfolder ``explained`` of the writer's folder."""
        write_explanation(str(_folder_of(self._writer)), explanation)

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard, if the writer can."""
        getattr(self._writer, "flush", lambda: None)()


def _folder_of(writer: Any) -> Any:
    return getattr(writer, "logdir", getattr(writer, "log_dir", None))

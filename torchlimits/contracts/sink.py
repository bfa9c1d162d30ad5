"""`Sink`: where recorded rows are shown while the training goes on."""

# methods that a sink may leave out do nothing
# ruff: noqa: B027

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from torchlimits.contracts.explanation import Explanation
from torchlimits.trajectory import Trajectory


class Sink(ABC):
    """Takes the recorded rows of a run while they are made; hand one to `tl.track` as ``writer``.

    `tl.CSV` and `tl.tensorboard.Writer` are sinks. One of your own needs `add` and `flush`; all
    else has a default.

    A sink that knows its newest step belongs to one tracker at a time. One that raises an exception
    does not end the training: a warning says so, once, and rows whose `add` did not return are
    given again later, after a `flush` that did return. Its `str` is what warnings call it.

    Attributes:
        newest: the last step that the sink has taken, -1 if none. Keep it if `add` can fail
            half-way, or if the sink may have less of a run than it was given: when it falls back,
            for instance to -1 if somebody deleted a file, the rows after it are given again. None,
            the default, leaves it to the tracker to remember what it gave.
        logdir: the folder that the sink writes into, or None. There the tracker leaves the
            trajectory if it was given no ``path``.

    Example:
        >>> import torch, torchlimits as tl
        >>> class Printed(Sink):
        ...     def add(self, chunk):
        ...         print(chunk.steps.tolist(), chunk.values.tolist())
        ...     def flush(self):
        ...         pass
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> with tl.track(model, optimizer, {"one": lambda p: p["bias"] ** 0}, writer=Printed()):
        ...     optimizer.step()
        [0, 1] [[1.0], [1.0]]

    Methods that it leaves out have no effect:

        >>> sink = Printed()
        >>> sink.add(tl.Trajectory([0.0], [0], [[1.0]], ["n"]))
        [0] [[1.0]]
        >>> sink.flush()
        >>> sink.check(tl.Trajectory([0.0], [0], [[1.0]], ["n"]))
        >>> sink.load_state_dict(sink.state_dict())
        >>> sink.explains or sink.explain(None)
        >>> sink.finish()
        >>> sink.close()
    """

    # int or None, and a path or None: a sink of one's own may have the first without the second
    newest: Any = None
    logdir: Any = None

    @abstractmethod
    def add(self, chunk: Trajectory) -> None:
        """Take the next rows of the trajectory.

        Args:
            chunk: values ``(..., T, k)``. After a failure, an interrupt or a resume, it may hold
                rows that were given before. Its names may be more than those of the chunks before,
                with the new ones at the end. NaN says that a statistic has no value at a step.
        """

    @abstractmethod
    def flush(self) -> None:
        """Make what was added visible to readers."""

    def check(self, chunk: Trajectory) -> None:
        """Raise an exception, ahead of hours of training, if `add` would refuse the chunk."""

    def explain(self, explanation: Explanation) -> None:
        """Show an explanation: what the run's observer has found so far, before each `flush`."""

    @property
    def explains(self) -> bool:
        """Whether the sink has an `explain` of its own, for which an explanation is computed."""
        return type(self).explain is not Sink.explain

    def state_dict(self) -> Any:
        """How far the rows came, as a part of `Tracker.state_dict`.

        None, the default, stands for a sink without a state: in a resumed run it is given the rows
        that are later than the tracker's state.
        """
        return None

    def load_state_dict(self, state: Any) -> None:
        """Go on with the state that `state_dict` gave.

        Raises:
            ValueError: if it is another sink's or damaged; then nothing has changed.
        """

    def finish(self) -> None:
        """Write what is held back: the tracker is closed, and has no more rows.

        It may be called again, for instance after an interrupt, and rows may still follow.
        """

    def close(self) -> None:
        """End what was begun; called for sinks that the tracker made of a log directory."""

    def __str__(self) -> str:
        return type(self).__name__


def check_continues(first: Trajectory, chunk: Trajectory, sink: str) -> Trajectory:
    """Raise ValueError unless a chunk has the statistics and the runs of the first one.

    One of the two may have more statistics, at the end of its names.

    Args:
        first, chunk: any rows of a trajectory.
        sink: what a message calls the kind of sink.

    Returns:
        The one that has more statistics, without its rows (see `nothing_of`).
    """
    shapes = [tuple(rows.values.shape[:-2]) for rows in (first, chunk)]
    shorter, longer = sorted((first, chunk), key=lambda rows: len(rows.names))
    if list(longer.names)[: len(shorter.names)] != list(shorter.names) or shapes[0] != shapes[1]:
        raise ValueError(
            f"expected pieces of one trajectory, of {list(first.names)} and runs {shapes[0]}, got "
            f"{chunk!r} of {list(chunk.names)}: give each trajectory a {sink} of its own"
        )
    return first if longer is first else nothing_of(chunk)


def nothing_of(chunk: Trajectory) -> Trajectory:
    """A trajectory of the same statistics and runs with no rows, in memory of its own."""
    values = torch.empty(*chunk.values.shape[:-2], 0, len(chunk.names), device="cpu")
    nothing = torch.empty(0, device="cpu")
    return Trajectory(nothing, nothing.long(), values, list(chunk.names))

"""`Logged`: recorded rows as calls of somebody else's ``log(dict, step)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torchlimits.contracts.sink import Sink
from torchlimits.contracts.tags import LEVELS, style_of, tags_of
from torchlimits.trajectory import Trajectory

#: at most so many independent runs are shown, as in TensorBoard
_MOST_RUNS = 16


class Logged(Sink):
    """A sink that gives each recorded row to a function; `tl.track` makes it from a ``writer``.

    Rows come up to some seconds after their steps. A logger that takes steps only in order (Weights
    & Biases, for one) drops those that are earlier than what the loop itself has logged meanwhile.
    In a run that both log to, make the step a metric::

        run.define_metric("m/*", step_metric="optimizer_step")
        writer = lambda row, step: run.log({**row, "optimizer_step": step})

    Args:
        log: called as ``log({tag: value}, step)``, tags as in TensorBoard (``m/0/1`` for
            ``m[0,1]``; with independent runs ``m/0/1/run 3``), values floats, steps increasing. A
            statistic that has no value at a step is left out.

    Raises:
        TypeError: if ``log`` cannot be called with two arguments.

    Example:
        >>> import torch
        >>> piece = Trajectory(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 1), ["m[1]"])
        >>> Logged(print).add(piece)
        {'m/1': 1.0} 0
    """

    newest: int = -1

    def __init__(self, log: Callable[[dict[str, float], int], Any]) -> None:
        self._log, self._style = log, LEVELS
        self._name = getattr(log, "__qualname__", type(log).__name__)
        try:
            inspect.signature(log).bind({}, 0)
        except TypeError as error:
            raise TypeError(
                "expected writer as a function that can be called as log(dict, step), got "
                f"{self}: {error}"
            ) from error
        except ValueError:
            pass  # functions written in C need not tell their arguments

    def check(self, chunk: Trajectory) -> None:
        """Raise ValueError if two statistics have the same tag."""
        _tags(chunk, self._style)

    def add(self, chunk: Trajectory) -> None:
        """Call the function for each row that it has not taken."""
        later = chunk.slice(chunk.steps > self.newest)
        tags = _tags(later, self._style)
        # (T, runs * k): everything of one step goes into one call
        values = later.values.reshape(later.runs, len(later), -1)[:_MOST_RUNS].movedim(0, 1)
        rows = values.reshape(len(later), -1).tolist()
        for step, row in zip(later.steps.tolist(), rows, strict=True):
            # NaN is no value, and differs from itself
            told = {tag: value for tag, value in zip(tags, row, strict=True) if value == value}
            # in one line: a row whose call returned is not given again, one that failed is
            _, self.newest = told and self._log(told, step), step

    def flush(self) -> None:
        """Do nothing: no row is held back."""

    def state_dict(self) -> dict[str, Any]:
        """Tell how far the rows came, for `Tracker.state_dict`."""
        return {"newest": self.newest, "tags": self._style}

    def load_state_dict(self, state: Any) -> None:
        """Go on after the step of a state; calls that were made cannot be taken back."""
        self.newest, self._style = newest_of(state), style_of(state)

    def __str__(self) -> str:
        return self._name


def newest_of(state: Any) -> int:
    """The last step of a sink's state, or ValueError if it is damaged."""
    newest = state.get("newest") if isinstance(state, Mapping) else None
    if isinstance(newest, bool) or not isinstance(newest, int) or newest < -1:
        raise ValueError(f"expected a writer's state with newest >= -1, got {state!r}")
    return newest


def _tags(chunk: Trajectory, style: str) -> list[str]:
    tags = tags_of(chunk.names, style=style)
    if chunk.values.ndim == 2:
        return tags
    return [f"{tag}/run {run}" for run in range(min(chunk.runs, _MOST_RUNS)) for tag in tags]

"""`Live`: what the TensorBoard sinks share, which show few enough rows of a growing trajectory."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from torchlimits import _checks
from torchlimits.contracts.sink import Sink, check_continues, nothing_of
from torchlimits.contracts.tags import LEVELS, style_of, tags_of
from torchlimits.tensorboard.tags import check_cap
from torchlimits.trajectory import Trajectory

#: a live run of unknown length stays under the cap up to this many steps
_LONGEST = 10**9


@dataclass(frozen=True)
class Progress:
    """How far a trajectory has come; changed by one assignment, once what it tells of is done.

    Attributes:
        newest: the last step that was taken; -1 if none.
        written: the last step that was written; -1 if none.
        tail: the newest row, if it is not written, and when it was made.
        clock: when the last of the rows taken was made, in seconds since 1970.
        style: how tags are written.
        level: the rows that are written are thinned out to every 2^level-th.
        shown: the steps that are written, where rows can be thinned out.
    """

    newest: int = -1
    written: int = -1
    tail: tuple[Trajectory, np.ndarray] | None = None
    clock: float = field(default_factory=time.time)
    style: str = LEVELS
    level: int = 0
    shown: tuple[int, ...] = ()


class Live(Sink):
    """Takes the pieces of a growing trajectory and passes on few enough of their rows."""

    def __init__(self, max_points: int | None, total_steps: int | None) -> None:
        check_cap(max_points)
        if total_steps is not None:
            _checks.positive_int("total_steps", total_steps)
        self._max_points, self._total_steps = max_points, total_steps
        self._progress = Progress()
        #: all statistics and the runs, without rows
        self._like: Trajectory | None = None
        self._closed = False

    @property
    def newest(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The last step that was taken; -1 if there is none, or all of them are gone."""
        return self._progress.newest

    def add(self, chunk: Trajectory) -> None:
        """Take the next rows: values ``(..., T, k)``; steps that were there before are skipped.

        Raises:
            ValueError: if the statistics or runs are not those of the first chunk, or after
                `close`.
        """
        self.check(chunk)
        before, steps = self._progress, chunk.steps.numpy()
        if not len(steps) or steps[-1] <= before.newest:
            return
        level, keep = self._chosen(steps)
        # nobody noted when each row was made: they are spread evenly since the last piece
        wall_times = np.linspace(before.clock, time.time(), len(steps) + 1)[1:]
        shown = before.shown if level == before.level else self._thin(level)
        if keep.any():
            self._write(chunk.slice(torch.from_numpy(keep)), wall_times[keep])
        # a copy, not a piece of a file that is mapped
        last = chunk.slice(torch.tensor([len(steps) - 1], device="cpu"))
        self._progress = replace(
            before,
            newest=int(steps[-1]),
            written=int(steps[keep][-1]) if keep.any() else before.written,
            tail=None if keep[-1] else (last, wall_times[-1:]),
            clock=float(wall_times[-1]),
            level=level,
            shown=(*shown, *steps[keep].tolist()) if self._thins else (),
        )

    def _chosen(self, steps: Int[np.ndarray, " T"]) -> tuple[int, Bool[np.ndarray, " T"]]:
        """Which rows to write, and how far all rows have to be thinned out for it."""
        before, level = self._progress, self._progress.level
        while True:
            buckets = self._buckets(np.concatenate([[before.newest], steps])) >> level
            keep = (buckets[1:] > np.maximum.accumulate(buckets)[:-1]) & (steps > before.newest)
            # one point is kept back for the last row
            if not self._thins or self._count(level) + int(keep.sum()) < (self._max_points or 0):
                return level, keep
            level += 1

    def _count(self, level: int) -> int:
        return len(
            np.unique(self._buckets(np.array(self._progress.shown, dtype=np.int64)) >> level)
        )

    def _thin(self, level: int) -> tuple[int, ...]:
        """Write again the rows that stay, and return their steps."""
        raise NotImplementedError

    @property
    def _thins(self) -> bool:
        """Whether rows that were written can be thinned out."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Tell how far the rows came, for `Tracker.state_dict`."""
        progress, tail = self._progress, None
        if progress.tail is not None:
            row, wall_times = progress.tail
            tail = {
                "times": row.times.clone(),
                "steps": row.steps.clone(),
                "values": row.values.contiguous().clone(),
                "names": list(row.names),
                "wall_times": wall_times.tolist(),
            }
        return {
            "newest": progress.newest,
            "written": progress.written,
            "tail": tail,
            "tags": progress.style,
            "level": progress.level,
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, as `Sink.load_state_dict`."""
        self._progress = _checked_state(state)

    def finish(self) -> None:
        """Write the last row, whatever the spacing, and flush."""
        progress = self._progress
        if progress.tail is not None:
            self._write(*progress.tail)
            shown = (*progress.shown, progress.newest) if self._thins else ()
            self._progress = replace(progress, tail=None, written=progress.newest, shown=shown)
        self.flush()

    def close(self) -> None:
        """Write the last row, whatever the spacing, and flush; then no more rows are taken."""
        if not self._closed:
            self.finish()
            self._closed = True

    @abstractmethod
    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        """Write rows, except those that were written before."""

    def _buckets(self, steps: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """Number buckets, increasing with the step; the first row of each bucket is shown."""
        if self._max_points is None or (self._thins and self._total_steps is None):
            return steps
        if self._total_steps is not None:
            # one point is kept back for the last row
            return steps * (self._max_points - 2) // self._total_steps
        density = _points_per_doubling(self._max_points - 2)
        knee = density / math.log(2)
        late = knee + density * np.log2(np.maximum(steps, knee) / knee)
        return np.where(steps < knee, steps, late).astype(np.int64)

    def check(self, chunk: Trajectory) -> None:
        """Raise ValueError if `add` would refuse the chunk."""
        if self._closed:
            raise ValueError("expected an open writer, got one that was closed: make another")
        like = nothing_of(chunk) if self._like is None else self._like
        like = check_continues(like, chunk, "writer")
        if like is not self._like:
            tags_of(like.names, style=self._progress.style)  # they may clash
            self._like = like


def _checked_state(state: Mapping[str, Any]) -> Progress:
    try:
        newest, written, tail = state["newest"], state["written"], state["tail"]
        if tail is not None:
            fields = {key: tail[key] for key in ("times", "steps", "values", "names")}
            tail = (Trajectory(**fields), np.array(tail["wall_times"], dtype=np.float64))
        good = -1 <= int(written) <= int(newest) and (tail is None or len(tail[1]) == len(tail[0]))
        style, level = style_of(state), int(state.get("level", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected a writer's state, got one that is damaged: {error!r}"
        ) from error
    if not good:
        raise ValueError(
            f"expected a writer's state with -1 <= written <= newest, got {written} and {newest}"
        )
    return Progress(int(newest), int(written), tail, style=style, level=level)


def _points_per_doubling(points: int) -> float:
    """d such that every step up to s = d / log 2, then d points a doubling, make ``points``."""
    density = points / 30
    for _ in range(50):
        density = points / (1 / math.log(2) + math.log2(_LONGEST * math.log(2) / density))
    return density

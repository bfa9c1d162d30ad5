"""`Writer`: a trajectory in TensorBoard while it grows."""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from torchlimits import _checks
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.sink import Sink, check_continues
from torchlimits.tensorboard import events
from torchlimits.tensorboard.events import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    Summary,  # pyright: ignore[reportAttributeAccessIssue]
)
from torchlimits.tensorboard.explained import write_explanation
from torchlimits.tensorboard.tags import (
    check_cap,
    columns_of,
    layout_of,
    log_folder,
    run_folders,
    tags_of,
)
from torchlimits.trajectory import Trajectory

#: a live run of unknown length stays under the cap up to this many steps
_LONGEST = 10**9


class _Live(Sink):
    """Takes the pieces of a growing trajectory and passes on few enough of their rows."""

    newest: int = -1

    def __init__(self, max_points: int | None, total_steps: int | None) -> None:
        check_cap(max_points)
        if total_steps is not None:
            _checks.positive_int("total_steps", total_steps)
        self._max_points, self._total_steps = max_points, total_steps
        #: the last step that was written; -1: none
        self._written = -1
        self._tail: tuple[Trajectory, np.ndarray] | None = None
        self._clock = time.time()
        self._like: Trajectory | None = None
        self._closed = False

    def add(self, chunk: Trajectory) -> None:
        """Take the next rows: values ``(..., T, k)``; steps that were there before are skipped.

        Raises:
            ValueError: if the statistics or runs are not those of the first chunk, or after
                `close`.
        """
        self.check(chunk)
        if not len(chunk):
            return
        steps = chunk.steps.numpy()
        buckets = self._buckets(np.concatenate([[self.newest], steps]))
        before = np.maximum.accumulate(buckets)[:-1]
        keep = (buckets[1:] > before) & (steps > self.newest)
        # nobody noted when each row was made: evenly, since the last piece
        wall_times = np.linspace(self._clock, time.time(), len(steps) + 1)[1:]
        if keep.any():
            self._write(chunk.slice(torch.from_numpy(keep)), wall_times[keep])
            self._written = int(steps[keep][-1])
        if steps[-1] > self.newest:
            last = (chunk.slice(slice(len(steps) - 1, None)), wall_times[-1:])
            self._tail = None if keep[-1] else last
        self.newest = max(self.newest, int(steps[-1]))
        self._clock = float(wall_times[-1])

    def state_dict(self) -> dict[str, Any]:
        """Tell how far the rows came, for `Tracker.state_dict`."""
        tail = None
        if self._tail is not None:
            row, wall_times = self._tail
            tail = {
                "times": row.times.clone(),
                "steps": row.steps.clone(),
                "values": row.values.contiguous().clone(),
                "names": list(row.names),
                "wall_times": wall_times.tolist(),
            }
        return {"newest": self.newest, "written": self._written, "tail": tail}

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, as `Sink.load_state_dict`."""
        newest, written, tail = _checked_state(state)
        self.newest, self._written, self._tail = newest, written, tail
        self._clock = time.time()

    def close(self) -> None:
        """Write the last row, whatever the spacing, and flush."""
        if self._closed:
            return
        if self._tail is not None:
            self._write(*self._tail)
            self._tail = None
        self.flush()
        self._closed = True

    @abstractmethod
    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None: ...

    def _buckets(self, steps: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """Number buckets, increasing with the step; the first row of each bucket is shown."""
        if self._max_points is None:
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
        if self._like is None:
            tags_of(chunk.names, band=False)  # they may clash
            self._like = chunk.slice(slice(0, 0))
        check_continues(self._like, chunk, "writer")


def _checked_state(
    state: Mapping[str, Any],
) -> tuple[int, int, tuple[Trajectory, np.ndarray] | None]:
    try:
        newest, written, tail = state["newest"], state["written"], state["tail"]
        if tail is not None:
            fields = {key: tail[key] for key in ("times", "steps", "values", "names")}
            tail = (Trajectory(**fields), np.array(tail["wall_times"], dtype=np.float64))
        good = -1 <= int(written) <= int(newest) and (tail is None or len(tail[1]) == len(tail[0]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected a writer's state, got one that is damaged: {error!r}"
        ) from error
    if not good:
        raise ValueError(
            f"expected a writer's state with -1 <= written <= newest, got {written} and {newest}"
        )
    return int(newest), int(written), tail


def _points_per_doubling(points: int) -> float:
    """d such that every step up to s = d / log 2, then d points a doubling, make ``points``."""
    density = points / 30
    for _ in range(50):
        density = points / (1 / math.log(2) + math.log2(_LONGEST * math.log(2) / density))
    return density


class Writer(_Live):
    """Writes statistics while they are being recorded; give it to `tl.track` as ``writer``.

    At most ``max_points`` rows, step 0 and (at `close`) the last one included: evenly spread when
    the number of steps is known; otherwise every step at first, then about 40 a doubling of the
    step (for 1000 points), which lasts for 10^9 steps. Steps past ``total_steps`` keep the spacing
    and go over the cap.

    Event files that this package wrote into the folder before are replaced at the first `add`,
    unless a tracker's state is loaded first: then they are continued, and what they hold beyond
    that state is purged. One folder takes one writer at a time. After the run, `write` replaces the
    live file by an evenly spread one. Wall times are real ones.

    Args:
        logdir: the run directory itself, ``<logdir>/measured`` for a later
            ``write(logdir, ...)``; several runs go to its subdirectories 0, 1, 2 ...
        max_points: how many rows at most; None: all.
        total_steps: how many optimizer steps there will be, if that is known.
        max_runs: how many runs at most.

    Raises:
        ValueError: if a number is out of range.
        OSError: if ``logdir`` is a file or cannot be written to.

    Example:
        >>> import tempfile
        >>> piece = Trajectory(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 1), ["m"])
        >>> with tempfile.TemporaryDirectory() as logdir:
        ...     writer = Writer(logdir)
        ...     writer.check(piece)
        ...     writer.add(piece)
        ...     writer.flush()
        ...     state = writer.state_dict()
        ...     writer.close()
        ...     again = Writer(logdir)  # in a program that resumes
        ...     again.load_state_dict(state)
        ...     len(list(Path(logdir).iterdir())), again.newest
        (1, 0)
    """

    def __init__(
        self, logdir: str | Path, *, max_points: int | None = 1000, total_steps: int | None = None,
        max_runs: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(max_points, total_steps)
        self._max_runs = _checks.positive_int("max_runs", max_runs)
        # the folder behind a symbolic link, which is made if the link leads nowhere yet
        self.logdir: Path = log_folder(os.path.realpath(logdir))
        self._files: list[events.EventFile] = []

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        tags = tags_of(rows.names, band=False)
        if not self._files:
            self._start(rows)
        for file, values in zip(self._files, columns_of(rows, band=False), strict=False):
            file.add_scalars(tags, rows.steps.numpy(), wall_times, values)

    def _start(self, rows: Trajectory) -> None:
        """Files with a layout; they are there before those that they replace go.

        After `load_state_dict` they continue those that are there.
        """
        purge_step = self._written + 1
        old = [] if purge_step else events.own_files(self.logdir, numbered=True)
        places = run_folders(self.logdir, rows, self._max_runs)
        files = [events.EventFile(place, purge_step=purge_step) for place in places]
        if not purge_step:
            files[0].add(layout_of(rows.names, band=False))
        for file in files:
            file.flush()
        self._files = files
        events.retire(old)

    def load_state_dict(self, state: Any) -> None:
        """Go on from the state that `state_dict` gave; in a folder without event files, anew."""
        super().load_state_dict(state)
        self._files = []
        if not events.own_files(self.logdir, numbered=True):
            self.newest, self._written, self._tail = -1, -1, None

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        for file in self._files:
            file.flush()

    def explain(self, explanation: Explanation) -> None:
        """Show the measured change of each statistic, and what explains it, in one chart.

        There is a run ``<logdir>/explained/<part>`` for each part of the explanation
        (`Tracker.explanation`), with a band of 1.96 standard errors under *Custom Scalars*.
        Writing again replaces them.

        Example:
            >>> import tempfile, torch
            >>> t, u = torch.tensor([0.0]), torch.zeros(1, 1)
            >>> flat = Trajectory(t, torch.tensor([0]), u, ["m"], std=u)
            >>> with tempfile.TemporaryDirectory() as logdir, Writer(logdir) as writer:
            ...     writer.explain(Explanation(flat, flat, flat, flat))
            ...     sorted(run.name for run in Path(logdir, "explained").iterdir())
            ['corrector', 'gradient flow', 'measured change', 'residual']
        """
        write_explanation(self.logdir, explanation)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Borrowed(_Live):
    """Writes into a SummaryWriter of the user's, which stays open; run r has tags ``.../run r``.

    To resume, the user makes it with ``purge_step=`` the checkpoint's step + 1.
    """

    def __init__(self, writer: Any, max_points: int | None = 1000, max_runs: int = 16) -> None:
        super().__init__(max_points, None)
        self._writer, self._max_runs = writer, max_runs

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        tags = tags_of(rows.names, band=False)
        if rows.values.ndim > 2:
            runs = range(min(rows.runs, self._max_runs))
            tags = [f"{one}/run {run}" for run in runs for one in tags]
        # (T, runs * k): everything of one step goes into one event
        columns = np.moveaxis(columns_of(rows, band=False)[: self._max_runs], 0, 1)
        with np.errstate(over="ignore"):
            values = columns.reshape(len(rows), -1).astype(np.float32).tolist()
        file = self._writer._get_file_writer()
        for step, wall_time, row in zip(rows.steps.tolist(), wall_times, values, strict=True):
            pairs = zip(tags, row, strict=True)
            summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in pairs])
            file.add_event(Event(summary=summary), step, float(wall_time))

    def explain(self, explanation: Explanation) -> None:
        """Write an explanation into ``<log_dir>/explained``."""
        write_explanation(self._writer.log_dir, explanation)

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        self._writer.flush()

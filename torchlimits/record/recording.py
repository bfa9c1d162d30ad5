"""`Recording`: the rows of a run, on disk as it goes on, in memory no more than a bound."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from torchlimits._checks import warn
from torchlimits.files import row_file
from torchlimits.files.row_file import Header, RowFile
from torchlimits.trajectory import Trajectory, trajectory_of_rows

#: the suffix of a `Trajectory` that is kept as it was recorded, row by row
SUFFIX = ".rows"
#: what a recording is called until its run ends
UNFINISHED = ".unfinished"
#: the trajectory's file in a log directory
_RECORDED = "recorded.rows"


class Recording:
    """Rows that were evaluated; belongs to a `Tracker`.

    With a path, rows go to ``<path>.unfinished`` (a `RowFile`) whenever `write` is called; `finish`
    turns that file into ``path``. Without, they stay in memory up to ``max_bytes`` and go to a
    temporary file beyond.

    What cannot be written stays in memory and is tried again with the rows that follow. If that
    comes to more than ``max_bytes``, only the newest row and those at every 2nd, 4th, 8th ... step
    are kept of it, so that they fit and are spread evenly over the run; a warning says so at once,
    and `finish` says how many were given up.

    Args:
        header: what all rows share.
        path: where the trajectory is in the end, or None.
        max_bytes: bound on the rows in memory; a `Tracker` allows 64 MiB.
    """

    def __init__(self, header: Header, path: Path | None, max_bytes: int) -> None:
        self.header, self.path, self.max_bytes = header, path, max_bytes
        #: rows given up, because they could neither be written nor kept
        self.lost = 0
        self._file: RowFile | None = None
        self._held: list[np.ndarray] = []  # in memory, later than those in the file
        self._held_bytes = 0
        self._resumed = False
        self._warned = False

    @property
    def unfinished(self) -> Path | None:
        """The file that is there during the run."""
        return None if self.path is None else self.path.with_name(self.path.name + UNFINISHED)

    @property
    def unwritten(self) -> int:
        """How many rows are in memory only."""
        return sum(map(len, self._held))

    def __len__(self) -> int:
        return self.unwritten + (0 if self._file is None else self._file.count)

    def append(
        self,
        steps: Sequence[int] | np.ndarray | Tensor,
        times: Sequence[float] | np.ndarray | Tensor,
        values: Tensor,
    ) -> None:
        """Take rows, values ``(..., T, k)``."""
        rows = np.empty(values.shape[-2], self.header.row)
        rows["step"], rows["time"] = steps, times
        rows["values"] = values.movedim(-2, 0).numpy()
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes > self.max_bytes:
            self._write_held()

    @property
    def newest(self) -> int:
        """The last step, -1 if there is none."""
        if self._held:
            return int(self._held[-1]["step"][-1])
        return (
            -1 if self._file is None or not self._file.count else int(self._file.rows()["step"][-1])
        )

    def widen(self, names: Sequence[str]) -> None:
        """TEMPORARY."""
        old = self.trajectory()
        self.header = Header(list(names), self.header.runs, self.header.metadata)
        more = len(names) - len(old.names)
        pad = old.values.new_full((*old.values.shape[:-1], more), float("nan"))
        self._file, self._held, self._held_bytes, self._resumed = None, [], 0, True
        import torch

        self.append(old.steps.numpy(), old.times.numpy(), torch.cat([old.values, pad], -1))

    def amend(self, values: Tensor) -> None:
        """TEMPORARY."""
        rows = self._joined().copy()
        new = values.numpy()
        last = rows["values"][-1]
        last[..., -new.shape[-1] :] = np.where(np.isnan(new), last[..., -new.shape[-1] :], new)
        self._held = [rows]

    def restore(self, rows: Trajectory) -> None:
        """Hold these rows and no others, in memory and on disk."""
        self._file, self._held, self._held_bytes, self._resumed = None, [], 0, True
        self.append(rows.steps.numpy(), rows.times.numpy(), rows.values)
        self.write()

    def write(self) -> None:
        """Hand all rows to the operating system, if they have a path."""
        if self._held and (self.path is not None or self._file is not None):
            self._write_held()

    def _write_held(self) -> None:
        rows = self._joined()
        try:
            if self._file is None:
                self._file = RowFile(self.header, self.unfinished, rows, replace=self._resumed)
            else:
                self._file.append(rows)
        except OSError as error:
            self._warn_once(error)
            self._thin(rows)
        else:
            self._held, self._held_bytes = [], 0

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            where = self.unfinished or "a temporary file"
            warn(
                f"recorded rows cannot be written to {where}: {error}; training goes on, up to "
                f"{self.max_bytes / 2**20:.3g} MiB of them stay in memory, and writing is tried "
                "again: make room, or save tracker.trajectory() elsewhere"
            )
        self._warned = True

    def _thin(self, rows: np.ndarray) -> None:
        steps, kept, apart = rows["step"], rows, 1
        if rows.nbytes > self.max_bytes:
            # not every other row: old ones, thinned before, are further apart than new ones
            while kept.nbytes > self.max_bytes / 2 and apart < steps[-1]:
                apart *= 2
                kept = rows[(steps % apart == 0) | (steps == steps[-1])]
            if not self.lost and len(kept) < len(rows):
                warn(
                    "more rows than may stay in memory cannot be written: of those since step "
                    f"{steps[0]} only every so many are kept"
                )
            self.lost += len(rows) - len(kept)
        self._held, self._held_bytes = [kept], kept.nbytes

    def _joined(self) -> np.ndarray:
        """The rows in memory as one piece from here on: asking often does not copy often."""
        if len(self._held) != 1:
            self._held = [np.concatenate([np.empty(0, self.header.row), *self._held])]
        return self._held[0]

    # --- reading ---------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """All rows; those in a file are memory-mapped."""
        self.write()
        parts = [] if self._file is None else [self._file.rows()]
        if self._held or not parts:
            parts.append(self._joined())
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return trajectory_of_rows(self.header, rows)

    def after(self, step: int) -> Iterator[Trajectory]:
        """The rows later than a step, in pieces of some MB."""
        parts = [] if self._file is None else [self._file.rows()]
        for rows in [*parts, *self._held]:
            # not numpy's: it would copy the whole column
            later = rows[bisect.bisect_right(rows["step"], step) :]
            for piece in row_file.pieces(later):
                yield trajectory_of_rows(self.header, piece)

    # --- the end ---------------------------------------------------------------------------

    def finish(self, trajectory: Trajectory) -> None:
        """Leave the trajectory at the path, in the form that its suffix asks for.

        Raises:
            OSError: if nothing of it could be written anywhere.
        """
        self.write()
        if self.lost:
            warn(
                f"{self.lost} recorded rows are lost: they could not be written and were too many "
                f"for {self.max_bytes / 2**20:.3g} MiB of memory"
            )
        if self.path is not None:
            try:
                self._publish(trajectory)
            except OSError as error:
                self._say_what_is_where(error)

    def _publish(self, trajectory: Trajectory) -> None:
        assert self.path is not None
        if self.path.suffix != SUFFIX:
            trajectory.save(self.path)
            if self._file is not None:
                self._file.remove()
        elif self._file is not None and not self._held:
            self._file.publish(self.path)
        else:
            raise OSError(f"{self.unwritten} rows could not be written")

    def _say_what_is_where(self, error: OSError) -> None:
        written = 0 if self._file is None else self._file.count
        kept = f"{written} of its {len(self)} rows are in {self.unfinished}, all"
        message = (
            f"expected to save the trajectory as {self.path}, got: {error}; "
            f"{kept if written else 'its rows'} are in tracker.trajectory(): "
            "call its .save(path) with a path that can be written"
        )
        if not written:
            raise type(error)(message) from error
        warn(message)


def place_of(path: str | Path | None, logdir: str | Path | None) -> Path | None:
    """Where a trajectory goes, after making sure, before hours of training, that it can.

    Args:
        path: as in `tl.track`.
        logdir: where it goes without a path: ``recorded.rows`` in this folder, if there is one.

    Raises:
        ValueError: if the path is a directory.
        OSError: if its folder cannot be made or written to.
    """
    if path is None:
        return None if logdir is None else Path(logdir) / _RECORDED
    # the file behind a symbolic link, not a file in the place of the link
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(
            f"expected path as a file to save to, got the directory {path}: name a file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"expected path in a folder that can be made, got {path}: {error}; give another"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"expected path in a folder that can be written to, got {path}: give another"
        )
    return path

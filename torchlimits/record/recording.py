"""`Recording`: the rows of a run, on disk as it goes on, and in memory up to a bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from torchlimits._checks import warn
from torchlimits.files.place import UNFINISHED, another, keep_aside, taken, unfinished
from torchlimits.files.row_file import RowFile
from torchlimits.files.rows import Header, later, pieces, widened
from torchlimits.record.destination import holds, identity, place_of, say_in_use
from torchlimits.record.held_rows import HeldRows
from torchlimits.trajectory import Trajectory, trajectory_of_rows

__all__ = ["SUFFIX", "UNFINISHED", "Recording", "place_of"]

#: the suffix of a `Trajectory` that is kept as it was recorded, row by row
SUFFIX = ".rows"


class Recording:
    """Rows that were evaluated; belongs to a `Tracker`.

    With a path, rows go to ``<path>.unfinished`` (a `RowFile`) whenever `write` is called; `finish`
    turns that file into ``path``. Without, they stay in memory up to ``max_bytes`` and go to a
    temporary file beyond.

    What cannot be written stays in memory, beyond ``max_bytes`` too, and is tried again at the next
    `write`: nothing is lost as long as there is memory. Warnings say that writing fails, and how
    much memory is taken, at ``max_bytes`` and whenever it has doubled.

    A file that was deleted, with its folder or without, or replaced by another program is written
    anew, with all rows. If another tracker, of this process or another, has the path, this one
    takes a name like it (`another`) and says so in a warning; so it does if somebody wrote to the
    path meanwhile.

    Rows that are given twice are known by their steps: after an exception in whatever line, the
    call can be repeated, and nothing is lost or kept twice.

    Args:
        header: what all rows share.
        path: where the trajectory is in the end, or None.
        max_bytes: bound on the rows in memory, if they can be written; a `Tracker` allows 64 MiB.

    Example:
        >>> import torch
        >>> recording = Recording(Header(["m"], ()), None, 2**20)
        >>> recording.append([0, 1], [0.0, 0.1], torch.tensor([[1.0], [2.0]]))
        >>> recording.widen(["m", "loss"])
        >>> recording.append([1, 2], [0.1, 0.2], torch.tensor([[2.0, 0.5], [3.0, 0.25]]))
        >>> recording.newest, recording.trajectory().values.tolist()
        (2, [[1.0, nan], [2.0, nan], [3.0, 0.25]])
    """

    def __init__(self, header: Header, path: Path | None, max_bytes: int) -> None:
        #: where the trajectory is in the end: not the path asked for, if somebody else had that
        self.path = path
        self.max_bytes = max_bytes
        self._state = HeldRows.none(header)
        self._before = identity(path)
        self._fails = False
        self._said_bytes = 0

    @property
    def header(self) -> Header:
        """What all rows share; `widen` changes it."""
        return self._state.header

    @property
    def unfinished(self) -> Path | None:
        """The file that is there during the run."""
        return None if self.path is None else unfinished(self.path)

    @property
    def newest(self) -> int:
        """The step of the last row; -1 if there is none."""
        return self._state.newest

    def __len__(self) -> int:
        return len(self._state)

    # --- taking rows -------------------------------------------------------------------------

    def append(
        self,
        steps: Sequence[int] | np.ndarray | Tensor,
        times: Sequence[float] | np.ndarray | Tensor,
        values: Tensor,
    ) -> None:
        """Take rows, values ``(..., T, k)``; those not later than `newest` are known already.

        Raises:
            ValueError: if there are not k names; `widen` comes first.
        """
        if values.shape[-1] != len(self.header.names):
            raise ValueError(
                f"expected a value for each of {list(self.header.names)}, got {values.shape[-1]}"
            )
        rows = np.empty(values.shape[-2], self.header.row)
        rows["step"], rows["time"] = steps, times
        rows["values"] = values.movedim(-2, 0).numpy()
        self._state = self._state.with_rows(later(rows, self.newest))
        if self._state.nbytes > self._bound:
            self._write()

    def widen(self, names: Sequence[str]) -> None:
        """Go on with more statistics; rows so far have NaN there.

        The file is written anew, under the new header, at the next `write`. Until there is room for
        that, rows stay in memory.

        Args:
            names: all of them, beginning with those that there are.

        Raises:
            ValueError: if they do not begin so, names repeat, or they are too long to be written.
        """
        known = list(self.header.names)
        if list(names[: len(known)]) != known:
            raise ValueError(f"expected names that begin with {known}, got {list(names)}")
        if len(names) > len(known):
            self._state = self._state.with_names(names).opened()

    def amend(self, values: Tensor) -> None:
        """Give the newest row values of its last columns, ``(..., columns)``; NaN is no value.

        After `widen`, that row is only in memory until there is a later one.
        """
        state, new = self._state.opened(), values.numpy()
        if state.open is None:
            return
        row = state.open.copy()
        columns = row["values"][0, ..., -new.shape[-1] :]
        columns[...] = np.where(np.isnan(new), columns, new)
        self._state = dataclasses.replace(state, open=row)

    def restore(self, rows: Trajectory, *, opens: bool = False) -> None:
        """Hold these rows and no others, in memory and on disk.

        Args:
            rows: all of them.
            opens: whether the newest may be amended.
        """
        state = self._state
        header = dataclasses.replace(state.header, names=list(rows.names))
        array = np.empty(len(rows), header.row)
        array["step"], array["time"] = rows.steps.numpy(), rows.times.numpy()
        array["values"] = rows.values.movedim(-2, 0).numpy()
        # what is in the place of the file is replaced once these are on disk, and not before
        held = HeldRows(header, array, len(array), previous=state.files, resumed=True)
        self._state = held.opened() if opens else held
        self.write()

    # --- writing -----------------------------------------------------------------------------

    def write(self) -> None:
        """Hand all rows to the operating system, if they have a path."""
        file = self._state.file
        if file is not None and file.closed and not len(self._state.unwritten):
            return  # they are where `finish` left them
        if self.path is not None or file is not None or self._state.nbytes > self._bound:
            self._write()

    @property
    def _bound(self) -> int:
        """How much may be in memory: where nothing can be written, twice what there was then."""
        return max(self.max_bytes, 2 * self._said_bytes)

    def _write(self) -> None:
        try:
            self._to_file()
            self._to_its_place()
        except OSError as error:
            self._say_that_it_fails(error)
            self._fails = True
        else:
            self._fails, self._said_bytes = False, 0

    def _say_that_it_fails(self, error: OSError) -> None:
        where, held = self.unfinished or "a temporary file", self._state.nbytes
        if not self._fails:
            warn(
                f"recorded rows cannot be written to {where}: {error}; training goes on, they stay "
                "in memory, and writing is tried again: make room, or save tracker.trajectory() "
                "elsewhere"
            )
        if held > self._bound:
            warn(
                f"{held / 2**20:.3g} MiB of recorded rows are in memory, because they cannot be "
                f"written to {where}: make room there, record fewer steps (every=), or save "
                "tracker.trajectory() elsewhere and stop"
            )
            self._said_bytes = held

    def _to_file(self) -> None:
        state = self._state
        if state.file is None or not self._goes_on(state.file):
            parts = state.parts() if state.open is None else state.parts()[:-1]
            all_rows = (
                widened(piece, state.header.row) for part in parts for piece in pieces(part)
            )
            file = RowFile(state.header, self.unfinished, all_rows)
            state = dataclasses.replace(state, file=file, previous=state.files, until=None)
        else:
            state.file.append(state.unwritten)
        self._state = state.without_memory()

    def _goes_on(self, file: RowFile) -> bool:
        """Whether rows can be added to a file; not if it was deleted or has fewer names."""
        as_wide = file.header is self.header and self._state.until is None
        return as_wide and file.is_intact(self.unfinished)

    def _to_its_place(self) -> None:
        state = self._state
        while self.path is not None and state.file is not None:
            place = unfinished(self.path)
            if state.file.is_at(place):
                break
            if not any(one.is_at(place) for one in state.previous):
                if taken(place):
                    self._go_elsewhere(self.path)
                    continue
                if not state.resumed:
                    keep_aside(place)
            state.file.move(place)
        if state.previous or state.resumed:
            self._state = dataclasses.replace(state, previous=(), resumed=False)

    def _go_elsewhere(self, path: Path) -> None:
        place = another(path)
        say_in_use(path, place)
        self._before, self.path = None, place

    # --- reading -----------------------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """All rows, which no longer change; those in a file are memory-mapped."""
        self.write()
        parts = [widened(part, self.header.row) for part in self._state.parts()]
        whole = [part for part in parts if len(part)]
        if len(whole) == 1 and whole[0] is parts[0] and self._state.file is not None:
            rows = whole[0]
        else:
            rows = np.concatenate([np.empty(0, self.header.row), *whole])
        return trajectory_of_rows(self.header, rows)

    def after(self, step: int) -> Iterator[Trajectory]:
        """The rows later than a step, in pieces of some MB, which are copies."""
        for part in self._state.parts():
            for piece in pieces(later(part, step)):
                rows = widened(piece, self.header.row)
                yield trajectory_of_rows(self.header, rows.copy() if rows is piece else rows)

    # --- the end -----------------------------------------------------------------------------

    def finish(self, trajectory: Trajectory) -> None:
        """Leave the trajectory at the path, in the form that its suffix asks for.

        No descriptor is held from then on.

        Args:
            trajectory: what `trajectory` gave, with the metadata to save.

        Raises:
            OSError: if nothing of it could be written anywhere.
        """
        self._state = self._state.settled()
        self.write()
        if self.path is not None:
            try:
                self._publish(self.path, trajectory)
            except OSError as error:
                self._say_what_is_where(error)
                return
        if self._state.file is not None:
            self._state.file.close()

    def _publish(self, path: Path, trajectory: Trajectory) -> None:
        file, place = self._state.file, unfinished(path)
        if file is not None and file.closed:
            return
        final = self._free(path, trajectory)
        if path.suffix != SUFFIX:
            trajectory.save(final)
            if file is not None and file.is_at(place):
                place.unlink()
        elif file is not None and not len(self._state.unwritten):
            file.publish(place, final)
        else:
            raise OSError(f"{len(self._state.unwritten)} rows could not be written")
        self.path = final

    def _free(self, path: Path, trajectory: Trajectory) -> Path:
        """The path, or one like it if somebody has written there what the trajectory has not."""
        found = identity(path)
        if found is None or found == self._before or holds(trajectory, path):
            return path
        final = another(path)
        warn(
            f"somebody has written to {path} since this tracker was made: that is not overwritten, "
            f"the trajectory is in {final}"
        )
        return final

    def _say_what_is_where(self, error: OSError) -> None:
        file = self._state.file
        written = file.count if file is not None and file.is_at(self.unfinished) else 0
        kept = f"{written} of its {len(self)} rows are in {self.unfinished}, all"
        message = (
            f"expected to save the trajectory as {self.path}, got: {error}; "
            f"{kept if written else 'its rows'} are in tracker.trajectory(): "
            "call its .save(path) with a path that can be written"
        )
        if not written:
            raise type(error)(message) from error
        warn(message)

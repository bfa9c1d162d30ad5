"""`RowFile`: the rows of a trajectory on disk, appended to while a run goes on.

One line of JSON, padded with blanks to a multiple of 64 bytes, a second one of 64 bytes, then rows
of one size, little-endian throughout. numpy alone reads it::

    with open(path, "rb") as file:
        line, state = file.readline(), file.readline()
    header = json.loads(line)  # format, names (k), runs (the leading dimensions), metadata
    row = np.dtype([
        ("step", "<i8"), ("time", "<f8"),
        ("values", "<f8", (*header["runs"], len(header["names"]))), ("crc32c", "<u8"),
    ])
    offset = len(line) + len(state)
    count = json.loads(state)["rows"]
    if count is None:  # of a run that goes on, or was killed: as many as there are
        count = (os.path.getsize(path) - offset) // row.itemsize
    rows = np.memmap(path, row, "r", offset=offset, shape=count)

``crc32c`` is the checksum of the first line followed by the row's other bytes, so that neither a
torn row nor another header is ever taken for what was recorded. The second line tells how many rows
there are once the run has ended, and has the checksum of the first line followed by that number.
Files of format ``torchlimits.Rows/1``, which have no such line, are read as those of a run that
goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from torchlimits._checks import warn
from torchlimits.files.place import lock
from torchlimits.files.rows import (
    STATE_BYTES,
    Header,
    checksums,
    in_memory,
    later,
    mapped,
    pieces,
    state_line,
)
from torchlimits.files.whole import append_whole, beside, replacing

__all__ = ["Header", "RowFile", "append_whole", "replacing"]

#: the rows of a file that is smaller are kept in memory when it is closed
SMALL = 2**24
_open: weakref.WeakSet[RowFile] = weakref.WeakSet()


class _Committed(NamedTuple):
    """How many rows of a file are recorded, and the step of the last one; what follows is not."""

    rows: int
    newest: int


class RowFile:
    """A file that grows by whole rows; belongs to a `Recording`.

    It begins its life under a name that nobody knows, and comes to its place by `move`. As long as
    it is open, its lock keeps other trackers away; `close` releases its descriptor.

    Args:
        header: of the file.
        path: in whose folder it is to be; None: a temporary file that vanishes with this object or
            the program.
        first: pieces of rows that are there from the beginning.

    Raises:
        OSError: if the file cannot be written; then nothing of it is left.

    Example:
        >>> header = Header(["m"], ())
        >>> rows = np.zeros(3, header.row)
        >>> rows["step"] = [0, 1, 2]
        >>> file = RowFile(header, None, [rows[:2]])
        >>> file.append(rows)
        >>> file.rows()["step"].tolist()
        [0, 1, 2]
    """

    def __init__(self, header: Header, path: Path | None, first: Iterable[np.ndarray] = ()) -> None:
        self.header = header
        self._seed = google_crc32c.value(header.line)
        self._offset = len(header.line) + STATE_BYTES
        self._committed = _Committed(0, -1)
        self._ended = False  # whether the second line says, or may say, so
        self._kept: np.ndarray | None = None  # the rows, once it is closed
        self._published: tuple[Path | None, os.stat_result | None] = None, None
        self._partial: Path | None = None
        # unbuffered: a forked process (a data loader's worker) has nothing of ours to write twice
        if path is None:
            self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = beside(path)
            # if it never comes to its place
            weakref.finalize(self, _remove, self._partial)
            self._file = self._partial.open("x+b", buffering=0)
            lock(self._file)
        weakref.finalize(self, self._file.close)
        _open.add(self)
        append_whole(self._file, header.line + state_line(self._seed, None))
        for rows in first:
            self.append(rows)

    @property
    def count(self) -> int:
        """How many rows it has."""
        return self._committed.rows

    @property
    def newest(self) -> int:
        """The step of the last row; -1 if there is none."""
        return self._committed.newest

    @property
    def closed(self) -> bool:
        """Whether no more can be written."""
        return self._kept is not None

    @property
    def _end(self) -> int:
        return self._offset + self.count * self.header.row.itemsize

    def reopen(self) -> None:
        """Take another descriptor of the same file, without the lock."""
        with contextlib.suppress(OSError, ValueError):
            name = f"/dev/fd/{self._file.fileno()}"
            fresh = os.open(name, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
            os.dup2(fresh, self._file.fileno(), inheritable=False)
            os.close(fresh)

    # --- writing -------------------------------------------------------------------------------

    def append(self, rows: np.ndarray) -> None:
        """Add the rows that are later than the newest one; their checksums are filled in.

        After an OSError, as many were added as there was room for, in pieces of some MB: `newest`
        tells which.
        """
        if self._ended:
            self._write_state(None)
            self._ended = False
        for piece in pieces(later(rows, self.newest)):
            # what an interrupted call may have left there
            self._file.truncate(self._end)
            piece["crc32c"] = checksums(self._seed, piece)
            append_whole(self._file, piece.tobytes())
            self._committed = _Committed(self.count + len(piece), int(piece["step"][-1]))

    def _write_state(self, count: int | None) -> None:
        begin, line = self._offset - STATE_BYTES, state_line(self._seed, count)
        self._file.seek(begin)
        before = self._file.read(STATE_BYTES)
        self._file.seek(begin)
        # within one sector of any disk; only a part is written where files may not be so long
        written = self._file.write(line)
        if written < len(line):
            self._file.seek(begin)
            self._file.write(before[:written])
            raise OSError(errno.EFBIG, "there is no room to say how many rows there are")

    # --- its place -----------------------------------------------------------------------------

    def is_at(self, path: Path | None) -> bool:
        """Whether what is at the path is this file, not that of a run that began later."""
        if path is None or self.closed:
            return False
        try:
            return os.path.samestat(path.lstat(), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def is_intact(self, path: Path | None) -> bool:
        """Whether rows can be added to it, there or on its way there, and will be found."""
        there = self._partial is None or self.is_at(path) or self.is_at(self._partial)
        return there and not self.closed and self._size() >= self._end

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def move(self, path: Path) -> None:
        """Move the file to a place; what is there is replaced."""
        assert self._partial is not None
        self._partial.replace(path)

    def publish(self, place: Path, path: Path) -> None:
        """Say in the file that it is whole, and rename it from its place to the final one."""
        self._ended = True
        self._file.truncate(self._end)
        self._write_state(self.count)
        os.fsync(self._file.fileno())
        self._published = path, os.fstat(self._file.fileno())
        place.replace(path)

    # --- reading -------------------------------------------------------------------------------

    def rows(self) -> np.ndarray:
        """All rows so far; changes to the array change nothing here."""
        if self._kept is not None:
            again = None if self._end < SMALL else self._mapped_again()
            return self._kept.copy() if again is None else again
        self._take_note_of_cuts()
        return mapped(self._file, self.header.row, self._offset, self.count)

    def _mapped_again(self) -> np.ndarray | None:
        """The rows from the published file, if it is still there."""
        place, before = self._published
        if place is None or before is None:
            return None
        try:
            with place.open("rb", buffering=0) as file:
                # the mapped rows keep its inode number from being given to another file
                if os.path.samestat(os.fstat(file.fileno()), before):
                    return mapped(file, self.header.row, self._offset, self.count)
        except OSError:
            pass
        return None

    def _take_note_of_cuts(self) -> None:
        """Warn of rows that are lost because another program has cut the file."""
        width, count = self.header.row.itemsize, self.count
        left = max(self._size() - self._offset, 0) // width
        if left < count:
            rest = mapped(self._file, self.header.row, self._offset, left)
            self._committed = _Committed(left, int(rest["step"][-1]) if left else -1)
            warn(
                f"another program has cut a file of recorded rows: {count - left} of {count} rows "
                "are lost, recording goes on; let no other program write to it"
            )

    def close(self) -> None:
        """Release the descriptor; the rows stay readable, in memory or mapped."""
        if not self.closed:
            self._take_note_of_cuts()
            read = in_memory if self._end < SMALL else mapped
            self._kept = read(self._file, self.header.row, self._offset, self.count)
        self._file.close()


def _remove(partial: Path) -> None:
    # its folder may be gone, or something else by now
    with contextlib.suppress(OSError):
        partial.unlink()


def _unlock_in_child() -> None:
    """Give a forked process descriptors of its own: it may outlive the tracker's process."""
    for one in _open:
        one.reopen()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_in_child)

"""`RowFile`: the rows of a trajectory on disk, appended to while a run goes on.

One line of JSON, padded with blanks to a multiple of 64 bytes, then rows of one size, little-endian
throughout. numpy alone reads it::

    with open(path, "rb") as file:
        line = file.readline()
    header = json.loads(line)  # format, names (k), runs (the leading dimensions), metadata
    row = np.dtype([
        ("step", "<i8"), ("time", "<f8"),
        ("values", "<f8", (*header["runs"], len(header["names"]))), ("crc32c", "<u8"),
    ])
    count = (os.path.getsize(path) - len(line)) // row.itemsize
    rows = np.memmap(path, row, "r", offset=len(line), shape=count)

``crc32c`` is that of the line followed by the row's other bytes, so that neither a torn row nor
another header is ever taken for what was recorded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import tempfile
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

_log = logging.getLogger(__name__)

FORMAT = "torchlimits.Rows/1"
#: how such a file begins
MAGIC = b'{"format": "torchlimits.Rows/'

#: the longest header read: room for a million names
_LONGEST_LINE = 2**26
#: rows are checked and written in pieces of about so many bytes
PIECE_BYTES = 2**24


@dataclass(frozen=True)
class Header:
    """What all rows share.

    Args:
        names: the k statistics' names.
        runs: the leading dimensions of the values, () for one run.
        metadata: JSON-able, as in `Trajectory`.
    """

    names: Sequence[str]
    runs: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def row(self) -> np.dtype:
        """The type of a row, whose values are ``(*runs, k)``."""
        values = (*self.runs, len(self.names))
        return np.dtype(
            [("step", "<i8"), ("time", "<f8"), ("values", "<f8", values), ("crc32c", "<u8")]
        )

    def line(self) -> bytes:
        """The first line of the file."""
        text = json.dumps(
            {
                "format": FORMAT,
                "names": list(self.names),
                "runs": list(self.runs),
                "metadata": dict(self.metadata),
            }
        ).encode()
        return text.ljust(math.ceil((len(text) + 1) / 64) * 64 - 1) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """What `line` wrote, or ValueError."""
        if not line.startswith(MAGIC) or not line.endswith(b"\n"):
            raise ValueError("its first line is not a whole header")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header is not JSON: {error}") from error
        if content.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT!r}, got {content.get('format')!r}")
        names, runs, metadata = (content.get(key) for key in ("names", "runs", "metadata"))
        if not _is_list_of(names, str):
            raise ValueError("its names are not a list of strings")
        if not _is_list_of(runs, int) or min(runs, default=0) < 0 or len(runs) > 16:
            raise ValueError("its runs are not a list of sizes")
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are not a dict")
        if 8 * len(names) * math.prod(runs) > 2**31 - 64:
            raise ValueError("its rows are larger than 2 GiB")
        return cls(names, tuple(runs), metadata)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


# --- writing ---------------------------------------------------------------------------------


class RowFile:
    """A file that grows by whole rows; each `append` reaches the operating system, or nothing.

    Args:
        header: of the file.
        path: where; None: a temporary file that vanishes with this object or the program.
        first: rows that are there from the beginning. The file comes into being with them at once.
        replace: whether a file at ``path`` is replaced; otherwise it is kept, under a new name.

    Raises:
        OSError: if the file cannot be written; then what was at ``path`` is still there.

    Example:
        >>> header = Header(["m"], ())
        >>> file = RowFile(header, None, np.zeros(2, header.row))
        >>> file.append(np.ones(1, header.row))
        >>> file.rows()["step"].tolist()
        [0, 0, 1]
    """

    def __init__(
        self, header: Header, path: Path | None, first: np.ndarray, *, replace: bool = False
    ) -> None:
        self.header, self.path, self.count = header, path, 0
        line = header.line()
        self._offset, self._seed = len(line), google_crc32c.value(line)
        # unbuffered: a forked process (a data loader's worker) has nothing of ours to write twice
        if path is None:
            self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._begin(line, first)
            return
        with replacing(path) as partial:
            with partial.open("w+b", buffering=0) as self._file:
                self._begin(line, first)
            if not replace:
                _keep_aside(path)
        self._file = path.open("r+b", buffering=0)
        # rows are asked for after the end of a run: the file is open as long as this object is
        weakref.finalize(self, self._file.close)

    def _begin(self, line: bytes, first: np.ndarray) -> None:
        append_whole(self._file, line)
        self.append(first)

    def append(self, rows: np.ndarray) -> None:
        """Add rows (their checksums are filled in), all of them or, with an OSError, none."""
        count = self.count
        try:
            for piece in pieces(rows):
                piece["crc32c"] = checksums(self._seed, piece)
                append_whole(self._file, piece.tobytes())
                self.count += len(piece)
        except BaseException:
            self.count = count
            self._file.truncate(self._offset + count * rows.itemsize)
            raise

    def rows(self) -> np.ndarray:
        """All rows so far, memory-mapped; changes to the array do not reach the file."""
        return _mapped(self._file, self.header.row, self._offset, self.count)

    def publish(self, path: Path) -> None:
        """Rename the file, now that it is whole."""
        os.fsync(self._file.fileno())
        if not self._in_place():
            raise FileNotFoundError(f"{self.path} was removed or replaced by another program")
        assert self.path is not None
        self.path = self.path.replace(path)

    def remove(self) -> None:
        """Take the file out of its folder; `rows` goes on as before."""
        if self._in_place():
            assert self.path is not None
            self.path.unlink()

    def _in_place(self) -> bool:
        """Whether what is at the path is this file, not that of a run that began later."""
        if self.path is None or not self.path.exists():
            return False
        return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))


def _keep_aside(path: Path) -> None:
    """Rename what a program that was killed left behind: nothing recorded is overwritten."""
    if not path.exists():
        return
    places = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    place = next(place for place in places if not place.exists())
    path.rename(place)
    _log.warning("%s of a run that was not finished is kept as %s", path.name, place)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A file to write beside ``path``, in whose place it is put at the end of the block.

    So a crash never leaves half a file under the real name; after an error what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def append_whole(file: FileIO, data: bytes) -> None:
    """Write to the end of an unbuffered file: all, or an OSError and the file as it was."""
    end = file.seek(0, os.SEEK_END)
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except BaseException:
        file.truncate(end)
        raise


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in slices of some MB, at least one row each."""
    step = max(1, PIECE_BYTES // rows.itemsize)
    return (rows[begin : begin + step] for begin in range(0, len(rows), step))


def checksums(seed: int, rows: np.ndarray) -> list[int]:
    """crc32c of the header's line, whose own is ``seed``, and of each row up to its checksum."""
    data, width, extend = rows.tobytes(), rows.itemsize, google_crc32c.extend
    return [extend(seed, data[begin : begin + width - 8]) for begin in range(0, len(data), width)]


# --- reading ---------------------------------------------------------------------------------


def read(path: Path) -> tuple[Header, np.ndarray]:
    """The header and the rows of a file, checked, memory-mapped; a torn end is left out.

    Raises:
        ValueError: if the header or a row before the end is damaged, or it is another file.
        OSError: if it cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        line = _first_line(file)
        header = Header.parse(line)
        size = file.seek(0, os.SEEK_END) - len(line)
        count = size // header.row.itemsize
        rows = _mapped(file, header.row, len(line), count)
    whole = _whole(rows, google_crc32c.value(line))
    if whole < count or size % header.row.itemsize:
        _log.warning("%s ends in a torn row: the %d rows before are read", path, whole)
    rows = rows[:whole]
    if len(rows) and not (rows["step"][0] >= 0 and (np.diff(rows["step"]) > 0).all()):
        raise ValueError("its steps do not increase")
    return header, rows


def _first_line(file: FileIO) -> bytes:
    line = bytearray()
    while len(line) < _LONGEST_LINE and (block := file.read(2**16)):
        line += block
        if b"\n" in block:
            return bytes(line[: line.index(b"\n") + 1])
    raise ValueError(f"its header is not a line of less than {_LONGEST_LINE} bytes")


def _mapped(file: FileIO, row: np.dtype, offset: int, count: int) -> np.ndarray:
    if not count:
        return np.empty(0, row)
    # copy-on-write: whoever writes into the array changes his copy of a page
    return np.asarray(np.memmap(file, row, "c", offset=offset, shape=(count,)))


def _whole(rows: np.ndarray, seed: int) -> int:
    """How many rows have the right checksum; ValueError if a good row comes after a bad one."""
    first_bad = len(rows)
    begin = 0
    for piece in pieces(rows):
        good = piece["crc32c"] == np.array(checksums(seed, piece), dtype=np.uint64)
        if first_bad == len(rows) and not good.all():
            first_bad = begin + int(good.argmin())
        if first_bad < len(rows) and good[max(first_bad - begin, 0) :].any():
            raise ValueError(f"row {first_bad} is damaged, rows after it are not")
        begin += len(piece)
    if len(rows) and not first_bad:
        raise ValueError("its header or all of its rows are damaged")
    return first_bad

"""`CSV`: recorded statistics as a table of text that grows during training."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from torchlimits.contracts.sink import Sink, check_continues, nothing_of
from torchlimits.files.folder import prepared
from torchlimits.files.lock import Lock, Taken
from torchlimits.files.row_file import append_whole, replacing
from torchlimits.record.sinks.log_function import newest_of
from torchlimits.trajectory import Trajectory

#: how every such file begins
_BEGINNING = b"step,time,"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Written:
    """What is in the file; bytes beyond it are those of an append that was interrupted.

    Attributes:
        newest: the last step, -1 if nothing is written.
        columns: how many statistics there are.
        header: the first line.
        size: how many bytes there are.
        inode: the inode number of the file.
    """

    newest: int = -1
    columns: int = 0
    header: bytes = b""
    size: int = 0
    inode: int = -1


class CSV(Sink):
    """Recorded statistics as a CSV file; give it to `tl.track` as ``writer``.

    There is one row for each record, with columns ``step``, ``time`` (limit time), ``run`` where
    there are independent runs (then one row for each record and run), and the statistics by name,
    as in `Trajectory.to_pandas`. Numbers have as many digits as float64 needs: ``pandas.read_csv``
    gives the recorded ones bit for bit (before pandas 3 with ``float_precision="round_trip"``). A
    cell is empty where a statistic has no value at a step. Only whole rows reach the file, at every
    flush. Statistics that are added during the run come at the end of the header, in a file
    that replaces the shorter one.

    A file that a `CSV` wrote before is replaced at the first row, unless a tracker's state is
    loaded first: then it is cut after the state's last step and continued. A file that is deleted
    or emptied during the run is written again, with all rows, at the next flush.

    One file takes one tracker at a time, also among several programs: until that tracker is closed,
    a hidden lock file ``.<name>.lock`` lies beside the file.

    Args:
        path: the file; its folder is made if it is not there.

    Raises:
        ValueError: if there is a directory or some other file at ``path``.
        OSError: if the folder cannot be made; and at `tl.track`, if another tracker that is not
            closed writes into the file.

    Example:
        >>> import tempfile, torch
        >>> u = torch.tensor([[0.0, 1.0], [0.1, 1.5]], dtype=torch.float64)
        >>> piece = Trajectory(torch.tensor([0.0, 0.5]), torch.tensor([0, 1]), u, ["m[0,1]", "r2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = CSV(Path(folder) / "u.csv")
        ...     table.add(piece)
        ...     print(table.path.read_text())
        ...     table.finish()
        ...     again = CSV(table.path)  # in a program that resumes
        ...     again.check(piece)
        ...     again.load_state_dict(table.state_dict())
        ...     again.add(piece)  # known already
        ...     again.flush()
        ...     len(again.path.read_text().splitlines())
        step,time,"m[0,1]",r2
        0,0.0,0.0,1.0
        1,0.5,0.1,1.5
        <BLANKLINE>
        3
    """

    def __init__(self, path: str | Path) -> None:
        # the file behind a symbolic link, not a file in the place of the link
        self.path = prepared(Path(os.path.realpath(path)))
        self._like: Trajectory | None = None
        self._written = _Written()
        if self.path.exists():
            self._check_ours()
        self._lock = Lock(self.path.with_name(f".{self.path.name}.lock"))

    @property
    def newest(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The last step in the file; -1 if the file, or what was in it, is gone."""
        return self._written.newest

    def _check_ours(self) -> None:
        """Raise ValueError for what must not be replaced."""
        if not self.path.is_file():
            raise ValueError(f"expected path as a file to write to, got {self.path}: name a file")
        with self.path.open("rb") as file:
            first = file.read(len(_BEGINNING))
        if first not in (b"", _BEGINNING):
            raise ValueError(
                f"expected a new file, or one that a CSV wrote, got {self.path}, which begins with "
                f"{first!r}: give another name"
            )

    def check(self, chunk: Trajectory) -> None:
        """Raise ValueError if `add` would refuse the chunk."""
        clashes = sorted({"step", "time", "run"} & set(chunk.names))
        if clashes:
            raise ValueError(
                f"expected statistics not named as the columns step, time and run, got {clashes}: "
                "rename them"
            )
        like = nothing_of(chunk) if self._like is None else self._like
        self._like = check_continues(like, chunk, "CSV")
        try:
            self._lock.take()
        except Taken as error:
            raise Taken(
                error.errno,
                f"expected a file that no other running tracker writes to, got {self.path}: "
                f"{error.strerror}; close that tracker, or give another name",
            ) from error

    def add(self, chunk: Trajectory) -> None:
        """Append the chunk's rows that are not in the file yet: all, or none after an OSError.

        If somebody deleted or emptied the file, nothing is written and `newest` falls back to -1:
        the rows are needed from the first one on.
        """
        self.check(chunk)
        newest = self.newest
        self.flush()
        later = chunk.slice(chunk.steps > newest)
        if not len(later) or self.newest < newest:
            return
        lines = _lines(later, self._columns - len(chunk.names))
        if self._written.columns == self._columns:
            self._append(lines, int(later.steps[-1]))
        else:
            self._replace(lines, int(later.steps[-1]))

    @property
    def _header(self) -> bytes:
        assert self._like is not None, "`check` comes first"
        return _header(self._like)

    @property
    def _columns(self) -> int:
        assert self._like is not None, "`check` comes first"
        return len(self._like.names)

    def _append(self, lines: bytes, newest: int) -> None:
        written = self._written
        size = written.size + len(lines)
        with self.path.open("r+b", buffering=0) as file:
            # what an append that was interrupted left
            file.truncate(written.size)
            append_whole(file, lines)
            self._written = replace(written, newest=newest, size=size)

    def _replace(self, lines: bytes, newest: int) -> None:
        """Write a new file: a header, what was under a shorter one, and these lines."""
        if self._written.newest < 0 and self.path.exists():
            self._check_ours()
        header, columns = self._header, self._columns
        with replacing(self.path) as partial:
            with partial.open("wb") as file:
                file.write(header)
                file.writelines(self._widened(columns - self._written.columns))
                file.write(lines)
            found = partial.stat()
        self._written = _Written(newest, columns, header, found.st_size, found.st_ino)

    def _widened(self, more: int) -> Iterator[bytes]:
        """The lines after the header, with so many empty cells at the end."""
        written = self._written
        if written.newest < 0:
            return
        left = written.size - len(written.header)
        with self.path.open("rb") as file:
            file.seek(len(written.header))
            while left > 0:
                line = file.readline()
                left -= len(line)
                yield line[:-1] + b"," * more + b"\n"

    def flush(self) -> None:
        """Look whether the file is still there; no row is held back."""
        if self._written.newest >= 0 and not self._in_place():
            _log.warning(
                "%s was removed or replaced while a tracker wrote to it: it is written again, with "
                "all rows",
                self.path,
            )
            self._written = _Written()

    def _in_place(self) -> bool:
        written = self._written
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), self.path.open("rb") as f:
            found = os.fstat(f.fileno())
            if found.st_ino == written.inode and found.st_size >= written.size:
                return f.read(len(written.header)) == written.header
        return False

    def finish(self) -> None:
        """Let others write to the file."""
        self._lock.release()

    def state_dict(self) -> dict[str, int]:
        """Tell how far the rows came, for `Tracker.state_dict`."""
        return {"newest": self.newest}

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, with the rows up to there that the file has.

        Raises:
            ValueError: if the state is not one that `state_dict` gave.
        """
        newest = newest_of(state)
        self._written = self._cut(newest) if self.path.exists() else _Written()

    def _cut(self, newest: int) -> _Written:
        """Drop what comes after a step, and a torn record; say what is left."""
        like, header = self._like, self._header
        assert like is not None
        with self.path.open("r+b") as file:
            if file.read(len(header)) != header:
                return _Written()
            end, last = len(header), -1
            for step, record in itertools.groupby(file, _step_of):
                lines = list(record)
                whole = len(lines) == like.runs and lines[-1].endswith(b"\n")
                if step is None or step > newest or not whole:
                    break
                end, last = end + sum(map(len, lines)), step
            file.truncate(end)
            inode = os.fstat(file.fileno()).st_ino
        return _Written(last, len(like.names), header, end, inode) if last >= 0 else _Written()


def _header(chunk: Trajectory) -> bytes:
    run = ["run"] if chunk.values.ndim > 2 else []
    return _text([["step", "time", *run, *chunk.names]])


def _lines(chunk: Trajectory, more: int) -> bytes:
    """The text of all runs' rows, record by record, with so many empty cells at the end."""
    runs, records = chunk.runs, len(chunk)
    values = chunk.values.reshape(runs, records, -1).movedim(0, 1).reshape(runs * records, -1)
    steps = np.repeat(chunk.steps.numpy(), runs).tolist()
    times = np.repeat(chunk.times.numpy(), runs).tolist()
    numbers = np.tile(np.arange(runs), records).tolist()
    places = zip(steps, times, *([numbers] if chunk.values.ndim > 2 else []), strict=True)
    cells: list[list[Any]] = values.tolist()
    if bool(values.isnan().any()):
        cells = [["" if value != value else value for value in row] for row in cells]
    end = [""] * more
    return _text((*place, *row, *end) for place, row in zip(places, cells, strict=True))


def _text(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _step_of(line: bytes) -> int | None:
    step = line.partition(b",")[0]
    return int(step) if step.isdigit() else None

"""`CSV`: recorded statistics as a table of text that grows during training."""

from __future__ import annotations

import csv
import io
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np

from torchlimits.contracts.sink import Sink, check_continues
from torchlimits.files.row_file import append_whole, replacing
from torchlimits.record.sinks.log_function import newest_of
from torchlimits.trajectory import Trajectory

#: how every such file begins
_BEGINNING = b"step,time,"


class CSV(Sink):
    """Recorded statistics as a CSV file; give it to `tl.track` as ``writer``.

    One row a record, with columns ``step``, ``time`` (limit time), ``run`` where there are
    independent runs (then one row a record and run), and the statistics by name, as in
    `Trajectory.to_pandas`. Numbers have as many digits as float64 needs: ``pandas.read_csv`` gives
    the recorded ones bit for bit (before pandas 3 with ``float_precision="round_trip"``). Rows
    reach the file at every flush, whole ones only.

    A file that a `CSV` wrote before is replaced at the first row, unless a tracker's state is
    loaded first: then it is cut after the state's last step and continued.

    Args:
        path: the file; its folder is made if it is not there.

    Raises:
        ValueError: if there is a directory or some other file at ``path``.
        OSError: if the folder cannot be made.

    Example:
        >>> import tempfile, torch
        >>> u = torch.tensor([[0.0, 1.0], [0.1, 1.5]], dtype=torch.float64)
        >>> piece = Trajectory(torch.tensor([0.0, 0.5]), torch.tensor([0, 1]), u, ["m[0,1]", "r2"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = CSV(Path(folder) / "u.csv")
        ...     table.add(piece)
        ...     print(table.path.read_text())
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

    newest: int = -1

    def __init__(self, path: str | Path) -> None:
        # the file behind a symbolic link, not a file in the place of the link
        self.path = Path(os.path.realpath(path))
        self._like: Trajectory | None = None
        if self.path.exists():
            self._check_ours()
        self.path.parent.mkdir(parents=True, exist_ok=True)

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
        if self._like is None:
            self._like = chunk.slice(slice(0, 0))
        check_continues(self._like, chunk, "CSV")

    def add(self, chunk: Trajectory) -> None:
        """Append the chunk's rows that are not in the file yet: all or, with an OSError, none."""
        self.check(chunk)
        later = chunk.slice(chunk.steps > self.newest)
        if not len(later):
            return
        if self.newest < 0:
            self._begin(_header(later) + _lines(later))
        else:
            with self.path.open("r+b", buffering=0) as file:
                append_whole(file, _lines(later))
        self.newest = int(later.steps[-1])

    def _begin(self, content: bytes) -> None:
        """Begin a new file, which replaces an old one once it is whole."""
        with replacing(self.path) as partial:
            partial.write_bytes(content)

    def flush(self) -> None:
        """Do nothing: no row is held back."""

    def state_dict(self) -> dict[str, int]:
        """Tell how far the rows came, for `Tracker.state_dict`."""
        return {"newest": self.newest}

    def load_state_dict(self, state: Any) -> None:
        """Go on where `state_dict` was taken, with the rows up to there that the file has.

        Raises:
            ValueError: if the state is not one that `state_dict` gave.
        """
        newest = newest_of(state)
        self.newest = self._cut(newest) if self.path.exists() else -1

    def _cut(self, newest: int) -> int:
        """Drop what comes after a step, and a torn record; return the last step left, or -1."""
        assert self._like is not None, "`check` comes first"
        with self.path.open("r+b") as file:
            header = file.readline()
            if header != _header(self._like):
                return -1
            end, last = len(header), -1
            for step, record in itertools.groupby(file, _step_of):
                lines = list(record)
                whole = len(lines) == self._like.runs and lines[-1].endswith(b"\n")
                if step is None or step > newest or not whole:
                    break
                end, last = end + sum(map(len, lines)), step
            file.truncate(end)
        return last


def _header(chunk: Trajectory) -> bytes:
    run = ["run"] if chunk.values.ndim > 2 else []
    return _text([["step", "time", *run, *chunk.names]])


def _lines(chunk: Trajectory) -> bytes:
    """The text of all runs' rows, record by record."""
    runs, records = chunk.runs, len(chunk)
    values = chunk.values.reshape(runs, records, -1).movedim(0, 1).reshape(runs * records, -1)
    steps = np.repeat(chunk.steps.numpy(), runs).tolist()
    times = np.repeat(chunk.times.numpy(), runs).tolist()
    numbers = np.tile(np.arange(runs), records).tolist()
    places = zip(steps, times, *([numbers] if chunk.values.ndim > 2 else []), strict=True)
    return _text((*place, *row) for place, row in zip(places, values.tolist(), strict=True))


def _text(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _step_of(line: bytes) -> int | None:
    step = line.partition(b",")[0]
    return int(step) if step.isdigit() else None

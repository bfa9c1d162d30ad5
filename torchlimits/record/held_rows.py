"""`HeldRows`: the rows that a `Recording` has, in memory and in a file, as one immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchlimits.files.row_file import RowFile
from torchlimits.files.rows import Header, later, widened

#: room in memory is made for so many times the rows there are
_ROOM = 4


@dataclass(frozen=True)
class HeldRows:
    """All that a `Recording` holds: it is replaced as a whole, by one assignment.

    Rows that are both in the file and in memory count once: those in memory that are not later than
    the file's newest are leftovers.

    Args:
        header: of the rows in memory; that of the file may have fewer names.
        memory: room for rows, of which the first ``count`` are recorded.
        count: the number of those.
        file: the rows before, or None.
        previous: this tracker's files, one of which ``file`` may have to replace.
        resumed: whether what an earlier run left is to be replaced.
        opens: whether the newest row may still get values, and is therefore not written.
        open: that row, or none.
        until: if the file is to be replaced, the step from which on its rows do not count.
    """

    header: Header
    memory: np.ndarray
    count: int = 0
    file: RowFile | None = None
    previous: tuple[RowFile, ...] = ()
    resumed: bool = False
    opens: bool = False
    open: np.ndarray | None = None
    until: int | None = None

    @classmethod
    def none(cls, header: Header) -> HeldRows:
        """No rows yet."""
        return cls(header, np.empty(0, header.row))

    @property
    def files(self) -> tuple[RowFile, ...]:
        """This tracker's files, one of which a new one may have to replace."""
        return self.previous if self.file is None else (*self.previous, self.file)

    @property
    def nbytes(self) -> int:
        """The size of the rows in memory."""
        return self.count * self.header.row.itemsize

    def __len__(self) -> int:
        return sum(map(len, self.parts()))

    @property
    def newest(self) -> int:
        """The step of the last row; -1 if there is none."""
        if self.open is not None:
            return int(self.open["step"][0])
        return max(self._written, int(self.memory["step"][self.count - 1]) if self.count else -1)

    @property
    def unwritten(self) -> np.ndarray:
        """The rows that are only in memory and can be written."""
        rows = self.memory[: self.count]
        return rows if self.file is None else later(rows, self._written)

    @property
    def _written(self) -> int:
        """The step of the last row of the file that counts; -1 if there is none."""
        if self.file is None:
            return -1
        return self.file.newest if self.until is None else min(self.file.newest, self.until - 1)

    def parts(self) -> list[np.ndarray]:
        """All rows, those of the file first, as wide as they were recorded."""
        parts = [self.unwritten] if self.open is None else [self.unwritten, self.open]
        if self.file is None:
            return parts
        rows = self.file.rows()
        return [rows if self.until is None else _before(rows, self.until), *parts]

    def with_rows(self, rows: np.ndarray) -> HeldRows:
        """Append rows to a copy; only the last row may still get values."""
        if not self.opens or not len(rows):
            return self._with_settled(rows)
        return dataclasses.replace(self.settled()._with_settled(rows[:-1]), open=rows[-1:].copy())

    def settled(self) -> HeldRows:
        """Return a copy in which no row may still get values."""
        if self.open is None:
            return self
        return dataclasses.replace(self._with_settled(self.open), open=None)

    def opened(self) -> HeldRows:
        """Return a copy in which the newest row may still get values."""
        rows = self.unwritten
        if self.open is not None or not len(self):
            return dataclasses.replace(self, opens=True)
        last = widened(rows[-1:] if len(rows) else self.parts()[0][-1:], self.header.row).copy()
        if len(rows):
            return dataclasses.replace(self, opens=True, open=last, count=self.count - 1)
        until = int(last["step"][0])
        return dataclasses.replace(self, opens=True, open=last, count=0, until=until)

    def _with_settled(self, rows: np.ndarray) -> HeldRows:
        """Append rows to those in memory, for which more room is made rarely."""
        memory, count = self.memory, self.count + len(rows)
        if count > len(memory):
            # what is not written to yet takes no memory
            memory = np.empty(max(count, _ROOM * self.count), self.header.row)
            _bytes_of(memory[: self.count])[:] = _bytes_of(self.memory[: self.count])
        _bytes_of(memory[self.count : count])[:] = _bytes_of(rows)
        return dataclasses.replace(self, memory=memory, count=count)

    def with_names(self, names: Sequence[str]) -> HeldRows:
        """Return a copy with more names, for which there are no values yet."""
        header = dataclasses.replace(self.header, names=list(names))
        memory = widened(self.memory[: self.count], header.row)
        last = None if self.open is None else widened(self.open, header.row)
        return dataclasses.replace(self, header=header, memory=memory, open=last)

    def without_memory(self) -> HeldRows:
        """Return a copy with the file's rows, and in memory only the one that may still change."""
        return dataclasses.replace(self, memory=self.memory[:0].copy(), count=0)


def _before(rows: np.ndarray, step: int) -> np.ndarray:
    return rows[: np.searchsorted(rows["step"], step)]


def _bytes_of(rows: np.ndarray) -> np.ndarray:
    # so rows are copied at once, not field by field
    return rows.view(np.uint8)

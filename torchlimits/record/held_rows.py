"""`HeldRows`: the rows that a `Recording` has, in memory and in a file, as one immutable value."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchlimits.files.row_file import RowFile
from torchlimits.files.rows import Header, later, widened


@dataclass(frozen=True)
class HeldRows:
    """All that a `Recording` holds: it is replaced as a whole, by one assignment.

    Rows that are both in the file and in memory count once: those in memory that are not later than
    the file's newest are leftovers.

    Args:
        header: of the rows in memory; that of the file may have fewer names.
        memory: room for rows, of which the first ``count`` are recorded.
        count: of those.
        file: the rows before, or None.
        previous: this tracker's files, one of which ``file`` may have to replace.
        resumed: whether what an earlier run left is to be replaced.
    """

    header: Header
    memory: np.ndarray
    count: int = 0
    file: RowFile | None = None
    previous: tuple[RowFile, ...] = ()
    resumed: bool = False

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
        """Of the rows in memory."""
        return self.count * self.header.row.itemsize

    def __len__(self) -> int:
        return len(self.unwritten) + (0 if self.file is None else self.file.count)

    @property
    def newest(self) -> int:
        """The step of the last row; -1: there is none."""
        written = -1 if self.file is None else self.file.newest
        return max(written, int(self.memory["step"][self.count - 1]) if self.count else -1)

    @property
    def unwritten(self) -> np.ndarray:
        """The rows that are in memory only."""
        rows = self.memory[: self.count]
        return rows if self.file is None else later(rows, self.file.newest)

    def parts(self) -> list[np.ndarray]:
        """All rows, those of the file first, as wide as they were recorded."""
        return [*([] if self.file is None else [self.file.rows()]), self.unwritten]

    def with_rows(self, rows: np.ndarray) -> HeldRows:
        """With rows behind the others, for which more room is made rarely."""
        memory, count = self.memory, self.count + len(rows)
        if count > len(memory):
            memory = np.empty(max(count, 2 * self.count), self.header.row)
            _bytes_of(memory[: self.count])[:] = _bytes_of(self.memory[: self.count])
        _bytes_of(memory[self.count : count])[:] = _bytes_of(rows)
        return dataclasses.replace(self, memory=memory, count=count)

    def with_names(self, names: Sequence[str]) -> HeldRows:
        """With more names, for which there are no values yet."""
        header = dataclasses.replace(self.header, names=list(names))
        memory = widened(self.memory[: self.count], header.row)
        return dataclasses.replace(self, header=header, memory=memory)

    def without_memory(self) -> HeldRows:
        """With the file's rows alone."""
        return dataclasses.replace(self, memory=self.memory[:0].copy(), count=0)


def _bytes_of(rows: np.ndarray) -> np.ndarray:
    # rows are copied at once, not field by field
    return rows.view(np.uint8)

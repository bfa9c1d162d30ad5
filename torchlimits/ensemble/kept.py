"""`Kept`: where the processes of a training keep their runs, and how to go on from there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchlimits.record.recording import UNFINISHED


class ProcessGone(RuntimeError):
    """Another process that shares the runs is gone; the message says what is kept, and where."""


@dataclass(frozen=True)
class Kept:
    """The files of a training, or of what one process trains of it.

    Attributes:
        path: the trajectory, or None.
        checkpoint: what the training goes on from, or None.
    """

    path: Path | None = None
    checkpoint: Path | None = None

    def of(self, rank: int, ranks: int) -> Kept:
        """Return the files of one of several processes: ``name.rank1.npz`` for ``name.npz``.

        Example:
            >>> str(Kept(Path("u.npz")).of(1, ranks=2).path)
            'u.rank1.npz'
        """
        if ranks == 1:
            return self
        names = [
            p if p is None else p.with_name(f"{p.stem}.rank{rank}{p.suffix}")
            for p in (self.path, self.checkpoint)
        ]
        return Kept(*names)

    def rows(self) -> Path | None:
        """Return the file of the rows, finished or not; None if it is not there."""
        if self.path is None:
            return None
        unfinished = self.path.with_name(self.path.name + UNFINISHED)
        return next((file for file in (unfinished, self.path) if file.exists()), None)

    def remove(self, *, rows: bool) -> None:
        """Remove what is no longer needed: the checkpoint, and the rows if they are elsewhere."""
        if self.checkpoint is not None:
            Path(os.path.realpath(self.checkpoint)).unlink(missing_ok=True)
        if rows and self.path is not None:
            self.path.unlink(missing_ok=True)

    def told(self, shares: Sequence[range], rank: int) -> str:
        """Say which runs are in which files here, what is missing, and how to go on.

        Args:
            shares: the runs of each process.
            rank: the process that it is said of.

        Example:
            >>> print(Kept().told([range(32), range(32, 70)], rank=1))
            its runs 32 ... 69 are lost: neither path nor checkpoint was given
        """
        if self.path is None and self.checkpoint is None:
            return f"its {_runs(shares[rank])} are lost: neither path nor checkpoint was given"
        parts = [self.of(r, len(shares)) for r in range(len(shares))]
        others = [r for r in range(len(shares)) if r != rank]
        where = [
            ("its " if r == rank else "") + f"{_runs(shares[r])}: {parts[r].rows() or 'no file'}"
            for r in [rank, *others]
            if self.path is not None
        ]
        return "; ".join([*where, self._how(parts, shares)])

    def _how(self, parts: Sequence[Kept], shares: Sequence[range]) -> str:
        """Say what the same call would do."""
        if self.checkpoint is None:
            return "the same call begins again: with checkpoint=FILE it would go on"
        files = [part.checkpoint for part in parts if part.checkpoint is not None]
        there = [str(file) for file in files if file.exists()]
        missing = [
            f"{_runs(share)}, as {file} is not here"
            for file, share in zip(files, shares, strict=True)
            if not file.exists()
        ]
        goes_on = [f"goes on from {', '.join(there)}"] if there else []
        begins = [f"begins again with {', '.join(missing)}"] if missing else []
        again = "the same call" + f", with {len(shares)} processes again," * (len(shares) > 1)
        return f"{again} {', and '.join(goes_on + begins)}"


def _runs(runs: range) -> str:
    return f"runs {runs.start} ... {runs.stop - 1}"

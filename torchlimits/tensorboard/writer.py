"""`Writer`: writes a growing trajectory into a TensorBoard log directory."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from torchlimits import _checks
from torchlimits._checks import warn
from torchlimits.contracts.explanation import Explanation
from torchlimits.files.lock import Lock, Taken
from torchlimits.tensorboard import events, summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.tensorboard.explained import write_explanation
from torchlimits.tensorboard.live import Live, Progress
from torchlimits.tensorboard.tags import (
    APART,
    all_tags,
    columns_of,
    experiment_of,
    layout_of,
    log_folder,
    place_of,
    run_folders,
)
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)


class Writer(Live):
    """Writes statistics while they are being recorded; give it to `tl.track` as ``writer``.

    There are at most ``max_points`` rows at any moment: every recorded one at first; whenever there
    would be more, they are thinned out to every second of them, then every fourth and so on, so
    that they stay evenly spread. Step 0 is always there and, from `close` on, so is the last step.
    The *Text* tab says so. With ``total_steps``, rows are spread from the beginning as they will be
    at the end. After the run, `write` replaces the live file. Wall times are real ones.

    **Whose files.** Event files of an earlier run of the same folder are replaced at the first
    `add`, which the log says by name, unless a tracker's state is loaded first: then they are
    continued, and what they hold beyond that state is purged. Files are known by a mark in them:
    those of a run in a subdirectory (``runs/0`` beside ``runs``) and those of other programs are
    never touched. In a folder with event files of others, ours are in its subdirectory
    ``torchlimits``, so that nothing is purged there. If our files are deleted during the run, they
    are written again, with all rows, at the next flush.

    **One writer at a time.** Until it is closed, a writer holds the file ``.torchlimits.lock`` in
    the folder. A second program is refused. A second writer in the same program, for instance from
    a notebook cell that is run again, takes the folder over: the first one stops, says so in a
    warning, and writes nothing more.

    Args:
        logdir: the run directory itself, ``<logdir>/measured`` for a later
            ``write(logdir, ...)``; several runs go to its subdirectories 0, 1, 2 ...
        max_points: how many rows are shown at most; None stands for all.
        total_steps: how many optimizer steps there will be, if that is known.
        max_runs: how many runs are shown at most; the *Text* tab says what is left out.

    Raises:
        ValueError: if a number is out of range.
        OSError: if ``logdir`` is a file or cannot be written to; and at `tl.track`, if another
            program that runs writes to it.

    Example:
        >>> import tempfile, torch
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
        max_runs: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(max_points, total_steps)
        self._max_runs = _checks.positive_int("max_runs", max_runs)
        # the folder behind a symbolic link, which is made if the link leads nowhere yet
        self.logdir: Path = log_folder(os.path.realpath(logdir))
        self._files: tuple[events.EventFile, ...] = ()
        #: the files that those replace and that are still there
        self._old: list[Path] = []
        #: how many statistics have charts
        self._charts = 0
        self._locks: list[Lock] = []
        self._stopped = False
        #: whether somebody took away files that have been begun anew since
        self._lost = False
        self._experiment = experiment_of(self.logdir)

    def check(self, chunk: Trajectory) -> None:
        """Raise an exception if `add` would refuse the chunk, and keep other writers out."""
        super().check(chunk)
        if self._is_stopped():
            return
        if not self._locks:
            folders = run_folders(self.logdir, chunk, self._max_runs)
            self._locks = [Lock(folder / ".torchlimits.lock") for folder in folders]
        for lock in self._locks:
            try:
                lock.take(over=True)
            except Taken as error:
                raise Taken(
                    error.errno,
                    "expected a log directory that no other running program writes to, got "
                    f"{lock.path.parent}: {error.strerror}; give another",
                ) from error

    def _is_stopped(self) -> bool:
        """Whether a later writer of this program has the folder."""
        taken = [lock for lock in self._locks if lock.lost]
        if taken and not self._stopped:
            self._stopped = True
            warn(
                f"{self} does not show any more steps: a later tracker of this program writes to "
                f"{taken[0].path.parent}; this one's trajectory has them. Give each tracker a log "
                "directory of its own, and close it"
            )
        return self._stopped

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        if self._is_stopped():
            return
        if not self._files:
            self._start(rows)
        style = self._progress.style
        if len(rows.names) > self._charts:
            self._files[0].add(layout_of(rows.names, self._experiment, False, style))
            self._files[0].add(self._about(rows))
            self._charts = len(rows.names)
        tags = all_tags(rows.names, self._experiment, style=style)
        for file, values in zip(self._files, columns_of(rows, band=False), strict=False):
            file.add_scalars(tags, rows.steps.numpy(), wall_times, values)

    @property
    def _thins(self) -> bool:
        return self._max_points is not None

    def _thin(self, level: int) -> tuple[int, ...]:
        """Begin the files anew with fewer of their rows; the old ones go at the next flush."""
        places = self._buckets(np.array(self._progress.shown, dtype=np.int64)) >> level
        first = np.unique(places, return_index=True)[1]
        shown = tuple(self._progress.shown[i] for i in first)
        if self._is_stopped() or not shown or self._like is None:
            return shown
        if not self._files:
            # going on from a state: thin out what is there, which is read until new files are there
            self._start(self._like, begin=False)
        self._lost |= any(file.gone and not file.retired for file in self._files)
        folders = {file.folder for file in self._files}
        own = events.own_files(self.logdir, numbered=True)
        old = [path for path in own if path.parent in folders]
        files = tuple(self._thinned(file, old, {*shown}) for file in self._files)
        self._old, self._files, self._charts = sorted({*self._old, *old}), files, 0
        return shown

    def _thinned(
        self, file: events.EventFile, old: list[Path], steps: set[int]
    ) -> events.EventFile:
        # a run that was resumed is in several files
        earlier = [path for path in old if path.parent == file.folder] if file.purge_step else []
        contents = [path.read_bytes() for path in sorted(earlier) if path != file.path]
        rows = events.scalars_in([*contents, file.content()])
        new = events.EventFile(file.folder, root=self.logdir, began=file.began)
        new.take({step: rows[step] for step in sorted(steps & {*rows})})
        return new

    def _about(self, like: Trajectory) -> Summary:
        """What the *Text* tab says."""
        lines = ["## Recorded live", "Every recorded row is shown."]
        if self._max_points is not None:
            lines[1] = (
                f"At most {self._max_points} rows are shown at any moment: every recorded one at "
                "first, then every second of them, every fourth and so on, evenly spread. "
                "`max_points=` shows more, and the trajectory has all of them."
            )
        if like.runs > self._max_runs:
            lines.append(
                f"The first {self._max_runs} of {like.runs} runs are shown; `max_runs=` shows more."
            )
        return summaries.text("torchlimits/about", "\n\n".join(lines))

    def _start(self, like: Trajectory, *, begin: bool = True) -> None:
        """Begin new files, before the files that they replace go.

        After `load_state_dict`, they continue the files that are there.
        """
        purge_step = self._progress.written + 1
        old = [] if purge_step else events.own_files(self.logdir, numbered=True)
        if any(file.lstat().st_size for file in old):
            names = ", ".join(os.path.relpath(file, self.logdir) for file in old)
            _log.warning("event files of an earlier run in %s are replaced: %s", self.logdir, names)
        folders = run_folders(self.logdir, like, self._max_runs)
        places = [events.room(folder, self.logdir) for folder in folders]
        now, runs = time.time(), len(places)
        starts = [now + APART * place_of(run, False, runs) for run in range(runs)]
        files = [
            events.EventFile(place, root=self.logdir, purge_step=purge_step, began=start)
            for place, start in zip(places, starts, strict=True)
        ]
        for file in files if begin else []:
            file.flush()
        self._charts, self._old, self._files = len(like.names) if purge_step else 0, old, (*files,)

    def load_state_dict(self, state: Any) -> None:
        """Go on from the state that `state_dict` gave; in a folder without event files, anew."""
        super().load_state_dict(state)
        self._files, files = (), events.own_files(self.logdir, numbered=True)
        bases = [f.parent.parent if f.parent.name == events.ROOM else f.parent for f in files]
        rooms = [events.room(base, self.logdir) for base in bases]
        if not files or rooms != [file.parent for file in files]:
            # there are none, or they are where other people's are by now
            self._progress = Progress()
        elif self._thins:
            place = min(file.parent for file in files)
            rows = events.scalars_in(
                path.read_bytes() for path in sorted(files) if path.parent == place
            )
            shown = tuple(step for step in sorted(rows) if step <= self._progress.written)
            self._progress = replace(self._progress, shown=shown)

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        if self._is_stopped():
            return
        if self._lost or any(file.gone and not file.retired for file in self._files):
            self._lost = False
            _log.warning(
                "event files in %s were removed while a tracker wrote to them: they are written "
                "again, with all rows",
                self.logdir,
            )
            self._files, self._progress = (), Progress()
        if not self._files and self._progress.written >= 0 and self._like is not None:
            # a state was loaded: what came after it is dropped, even if no further step comes
            self._start(self._like)
        for file in self._files:
            file.flush()
        events.retire(self._old)
        self._old = []

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
        if not self._is_stopped():
            write_explanation(self.logdir, explanation)

    def finish(self) -> None:
        """Write the last row, whatever the spacing, flush, and let others write to the folder."""
        super().finish()
        for lock in self._locks:
            lock.release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

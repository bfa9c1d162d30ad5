"""`Writer`: a trajectory in a TensorBoard log directory while it grows."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from torchlimits import _checks
from torchlimits._checks import warn
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.tags import tags_of
from torchlimits.files.lock import Lock, Taken
from torchlimits.tensorboard import events
from torchlimits.tensorboard.explained import write_explanation
from torchlimits.tensorboard.live import Live, Progress
from torchlimits.tensorboard.tags import columns_of, layout_of, log_folder, run_folders
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)


class Writer(Live):
    """Writes statistics while they are being recorded; give it to `tl.track` as ``writer``.

    At most ``max_points`` rows, step 0 and (at `close`) the last one included: evenly spread when
    the number of steps is known; otherwise every step at first, then about 40 a doubling of the
    step (for 1000 points), which lasts for 10^9 steps. Steps past ``total_steps`` keep the spacing
    and go over the cap. After the run, `write` replaces the live file by an evenly spread one. Wall
    times are real ones.

    **Whose files.** Event files of an earlier run of the same folder are replaced at the first
    `add`, which the log says by name, unless a tracker's state is loaded first: then they are
    continued, and what they hold beyond that state is purged. Files are known by a mark in them:
    those of a run in a subdirectory (``runs/0`` beside ``runs``) and those of other programs are
    never touched. In a folder with event files of others, ours are in its subdirectory
    ``torchlimits``, so that nothing is purged there. If our files are deleted during the run, they
    are written again, with all rows, at the next flush.

    **One writer at a time.** Until it is closed, a writer holds the file ``.torchlimits.lock`` in
    the folder. A second program is refused. A second writer in the same program, of a notebook's
    cell that is run again for instance, takes the folder over: the first one stops, says so in a
    warning, and writes nothing more.

    Args:
        logdir: the run directory itself, ``<logdir>/measured`` for a later
            ``write(logdir, ...)``; several runs go to its subdirectories 0, 1, 2 ...
        max_points: how many rows at most; None: all.
        total_steps: how many optimizer steps there will be, if that is known.
        max_runs: how many runs at most.

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
        max_runs: int = 16,
    ) -> None:  # fmt: skip
        super().__init__(max_points, total_steps)
        self._max_runs = _checks.positive_int("max_runs", max_runs)
        # the folder behind a symbolic link, which is made if the link leads nowhere yet
        self.logdir: Path = log_folder(os.path.realpath(logdir))
        self._files: tuple[events.EventFile, ...] = ()
        #: files that those replace and that are still there
        self._old: list[Path] = []
        #: how many statistics have charts
        self._charts = 0
        self._locks: list[Lock] = []
        self._stopped = False

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
        taken = [lock for lock in self._locks if not lock.held and lock.was_held]
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
        tags = tags_of(rows.names, style=self._progress.style)
        if not self._files:
            self._start(rows)
        if len(rows.names) > self._charts:
            self._files[0].add(layout_of(rows.names, False, self._progress.style))
            self._charts = len(rows.names)
        for file, values in zip(self._files, columns_of(rows, band=False), strict=False):
            file.add_scalars(tags, rows.steps.numpy(), wall_times, values)

    def _start(self, like: Trajectory) -> None:
        """Files that are there before those that they replace go.

        After `load_state_dict` they continue those that are there.
        """
        purge_step = self._progress.written + 1
        old = [] if purge_step else events.own_files(self.logdir, numbered=True)
        if any(file.lstat().st_size for file in old):
            names = ", ".join(os.path.relpath(file, self.logdir) for file in old)
            _log.warning("event files of an earlier run in %s are replaced: %s", self.logdir, names)
        folders = run_folders(self.logdir, like, self._max_runs)
        places = [events.room(folder, self.logdir) for folder in folders]
        files = [
            events.EventFile(place, root=self.logdir, purge_step=purge_step) for place in places
        ]
        for file in files:
            file.flush()
        self._charts, self._old, self._files = len(like.names) if purge_step else 0, old, (*files,)

    def load_state_dict(self, state: Any) -> None:
        """Go on from the state that `state_dict` gave; in a folder without event files, anew."""
        super().load_state_dict(state)
        self._files, files = (), events.own_files(self.logdir, numbered=True)
        bases = [f.parent.parent if f.parent.name == events.ROOM else f.parent for f in files]
        rooms = [events.room(base, self.logdir) for base in bases]
        if not files or rooms != [file.parent for file in files]:
            # none, or where other people's are by now
            self._progress = Progress()

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        if self._is_stopped():
            return
        if any(file.gone and not file.retired for file in self._files):
            _log.warning(
                "event files in %s were removed while a tracker wrote to them: they are written "
                "again, with all rows",
                self.logdir,
            )
            self._files, self._progress = (), Progress()
        if not self._files and self._progress.written >= 0 and self._like is not None:
            # a state was loaded: what came after it is dropped, also if there is no step more
            self._start(self._like)
        events.retire(self._old)
        self._old = []
        for file in self._files:
            file.flush()

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

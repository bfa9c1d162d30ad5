"""TensorBoard event files: appended to, replaced by newer ones, and known by a mark in them."""

# protobuf makes its classes at import time, where a type checker does not see them:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float, Int
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from torchlimits.files.row_file import append_whole
from torchlimits.tensorboard.records import ROWS, data_of, record, scalar_records

#: how the names of the files that this package wrote end
SUFFIX = ".torchlimits"
_PARTIAL = SUFFIX + ".partial"
_STEM = "events.out.tfevents"
#: what their second event says, followed by the folder relative to that of the recording
_MARK = "torchlimits.Events/1 "
#: room for the first two events
_HEAD = 2**14
#: the subfolder for our files in a folder in which somebody else has some
ROOM = "torchlimits"


@dataclass(frozen=True)
class _Kept:
    """Where everything is that an `EventFile` was given.

    Attributes:
        pending: what is in memory only.
        path, inode, size: the file and how much of it is written; bytes beyond that are those of an
            append that was interrupted.
        newest: the last step of the scalars.
    """

    pending: tuple[bytes, ...] = ()
    path: Path | None = None
    inode: int = -1
    size: int = 0
    newest: int = -1


#: by path, the files that are written in this process
_open: weakref.WeakValueDictionary[Path, EventFile] = weakref.WeakValueDictionary()


class EventFile:
    """An event file that grows at each `flush`; nothing is held open in between.

    Every method may be interrupted anywhere and called again with the same arguments.

    Args:
        folder: the run directory; made if it is not there.
        root: the folder of the recording, ``folder`` itself if there are no independent runs.
        partial: whether the file has a name that TensorBoard does not read, until `publish`.
        purge_step: readers forget what earlier files of the folder hold from this step on.
        began: seconds since 1970 in its first event, by which TensorBoard orders runs; None stands
            for the time at which the file is made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = EventFile(Path(folder))
        ...     file.add_scalars(["m"], np.arange(3), np.arange(3.0), np.ones((3, 1)))
        ...     file.flush()
        ...     len(own_files(Path(folder)))
        1
    """

    def __init__(
        self, folder: Path, *, root: Path | None = None, partial: bool = False,
        purge_step: int = 0, began: float | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.purge_step, self.began = folder, purge_step, began
        self._mark = _MARK + os.path.relpath(folder, root or folder)
        self._suffix = _PARTIAL if partial else SUFFIX
        self._kept = _Kept()
        #: whether `retire` took the file away, for newer ones of this process
        self.retired = False

    @property
    def path(self) -> Path | None:
        """Where the file is, once it has been begun."""
        return self._kept.path

    @property
    def gone(self) -> bool:
        """Whether there was a file, and somebody has removed, replaced or emptied it."""
        kept = self._kept
        if kept.path is None:
            return False
        try:
            found = kept.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        return found.st_ino != kept.inode or found.st_size < kept.size

    def add(self, summary: Summary, step: int = 0, wall_time: float | None = None) -> None:
        """Append one event that holds a summary."""
        now = time.time() if wall_time is None else wall_time
        event = Event(wall_time=now, step=step, summary=summary)
        self._keep((record(event.SerializeToString()),), self._kept.newest)

    def add_scalars(
        self, tags: Sequence[str], steps: Int[np.ndarray, " T"],
        wall_times: Float[np.ndarray, " T"], values: Float[np.ndarray, "T k"],
    ) -> None:  # fmt: skip
        """Append T events of k scalars, except those of steps that the file has.

        The arguments are those of `scalar_records`.
        """
        (new,) = np.nonzero(steps > self._kept.newest)
        for rows in np.split(new, range(ROWS, len(new), ROWS)):
            if len(rows):
                blocks = scalar_records(tags, steps[rows], wall_times[rows], values[rows])
                self._keep(tuple(blocks), int(steps[rows[-1]]))
            if len(self._kept.pending) > 4:
                # what cannot be written now is kept for the next flush, which will say so
                with contextlib.suppress(OSError):
                    self.flush()

    def _keep(self, records: tuple[bytes, ...], newest: int) -> None:
        kept = self._kept
        self._kept = replace(kept, pending=(*kept.pending, *records), newest=newest)

    def flush(self) -> None:
        """Hand everything added so far to the operating system.

        Raises:
            OSError: if that cannot be written; then it is kept for the next flush, and the file is
                whole.
        """
        if self._kept.path is None or self.gone:
            # at the first flush, or if a later writer replaced the file: go on in a new one
            self._begin()
        kept, data = self._kept, b"".join(self._kept.pending)
        assert kept.path is not None
        if not data:
            return
        with kept.path.open("r+b", buffering=0) as file:
            file.truncate(kept.size)
            append_whole(file, data)
            self._kept = replace(kept, pending=(), size=kept.size + len(data))

    def content(self) -> bytes:
        """All records: those of the file, if somebody has not taken it away, and those to come."""
        kept, written = self._kept, b""
        if kept.path is not None and not self.gone:
            written = kept.path.read_bytes()[: kept.size]
        return written + b"".join(kept.pending)

    def take(self, rows: Mapping[int, Sequence[bytes]]) -> None:
        """Append records of scalars by their steps, which rise."""
        for step, records in rows.items():
            self._keep(tuple(records), step)

    def publish(self) -> None:
        """Flush, and rename a partial file to a name that TensorBoard reads."""
        self.flush()
        kept = self._kept
        assert kept.path is not None
        path = kept.path.rename(_free_name(self.folder, _STEM, SUFFIX))
        self._kept = replace(kept, path=path)

    def _begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = _STEM if self._suffix == SUFFIX else "unfinished"
        path = _free_name(self.folder, stem, self._suffix)
        began = time.time() if self.began is None else self.began
        version = Event(wall_time=began, file_version="brain.Event:2")
        # START makes a running TensorBoard forget what earlier or replaced files held
        status = SessionLog.START if self._kept.path is None else SessionLog.STATUS_UNSPECIFIED
        session = SessionLog(status=status, msg=self._mark)
        mark = Event(wall_time=time.time(), step=self.purge_step, session_log=session)
        head = b"".join(record(event.SerializeToString()) for event in (version, mark))
        with path.open("xb", buffering=0) as file:
            try:
                append_whole(file, head)
            except OSError:
                path.unlink()
                raise
            inode = os.fstat(file.fileno()).st_ino
        self._kept = replace(self._kept, path=path, inode=inode, size=len(head))
        self.retired = False
        _open[path] = self


def _free_name(folder: Path, stem: str, suffix: str) -> Path:
    """A name that sorts after all others: TensorBoard reads a run's files in that order.

    It does so even if the clock has been set back since they were written.
    """
    host = socket.gethostname() or "localhost"
    stamps = [re.match(rf"{re.escape(stem)}\.(\d+)", path.name) for path in folder.iterdir()]
    # others write seconds, we write nanoseconds: as texts, 17 and 170 stand before 171
    newest = max((int(stamp[1].ljust(19, "0")) for stamp in stamps if stamp), default=0)
    # a second back: somebody's file that is made after ours in the same second is to sort after it
    for moment in itertools.count(max(time.time_ns() - 10**9, newest + 1)):
        path = folder / f"{stem}.{moment}.{host}.{os.getpid()}{suffix}"
        if not path.exists():
            return path
    raise AssertionError("unreachable")


# --- whose files -----------------------------------------------------------------------------


def own_files(root: Path, *, numbered: bool = False) -> list[Path]:
    """The event files of a recording in a folder, finished or not.

    They are known by a mark in them, which says for which folder they were written. In the folder
    itself, files without a mark count as well if an earlier version of this package named them.

    Args:
        root: the folder, which need not exist.
        numbered: also those in its subdirectories 0, 1, 2 ... (independent runs).
    """
    folders = [root]
    if numbered and root.is_dir():
        folders += [child for child in root.iterdir() if child.name.isdigit() and child.is_dir()]
    patterns = (f"{_STEM}.*{SUFFIX}", f"unfinished.*{_PARTIAL}")
    places = [place for folder in folders for place in (folder, folder / ROOM)]
    files = [path for place in places for pattern in patterns for path in place.glob(pattern)]
    return sorted(path for path in files if _is_of(path, root))


def room(folder: Path, root: Path) -> Path:
    """Where a recording's events for a run directory go, in it or, beside others', below it.

    A START in the folder itself would make TensorBoard forget the points of other people's files.

    Args:
        folder: the run directory.
        root: the recording's folder.
    """
    if not folder.is_dir():
        return folder
    names = (path for path in folder.iterdir() if "tfevents" in path.name)
    return folder / ROOM if any(not _is_of(path, root) for path in names) else folder


def _is_of(path: Path, root: Path) -> bool:
    """Whether this package wrote an event file, for the recording of a folder."""
    if not path.name.endswith((SUFFIX, _PARTIAL)) or not (path.is_file() or path.is_symlink()):
        return False
    place, mark = os.path.relpath(path.parent, root), _mark_of(path)
    return place == "." if mark is None else place == mark


def _mark_of(path: Path) -> str | None:
    """The folder in the mark of a file, relative to the recording's; None if it has no mark."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            events = [Event.FromString(data) for data in data_of(file.read(_HEAD), 2)]
    except (OSError, DecodeError):
        return None
    message = events[1].session_log.msg if len(events) > 1 else ""
    return message.removeprefix(_MARK) if message.startswith(_MARK) else None


def scalars_in(contents: Iterable[bytes]) -> dict[int, list[bytes]]:
    """The records of scalars in files in order, by their steps, without those that are purged."""
    found: dict[int, list[bytes]] = {}
    for content in contents:
        for data in data_of(content, len(content)):
            event = Event.FromString(data)
            if event.session_log.status == SessionLog.START:
                found = {step: rows for step, rows in found.items() if step < event.step}
            elif event.summary.value and event.summary.value[0].HasField("simple_value"):
                found.setdefault(event.step, []).append(record(data))
    return found


def retire(paths: Sequence[Path]) -> None:
    """Remove event files that newer ones replace, and numbered run directories left with none.

    The newest file of each folder is only emptied, up to its mark, and deleted when it is found so:
    without its data server, TensorBoard never leaves a file that vanished while it was the one
    being read. A symbolic link is deleted, but what it leads to is left as it is.
    """
    newest = {path.parent: path for path in sorted(paths) if path.name.endswith(SUFFIX)}
    for path in paths:
        if path in _open:
            _open[path].retired = True
        others = [p for p in path.parent.glob("*tfevents*") if p not in paths]
        if not (others and path == newest.get(path.parent) and _emptied(path)):
            path.unlink(missing_ok=True)
        _remove_empty(path.parent)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # there is something else in it
        while folder.name == ROOM or folder.name.isdigit():
            folder.rmdir()
            folder = folder.parent


def _emptied(path: Path) -> bool:
    """Cut a file after its mark; False if there is nothing after it, or no file."""
    if path.is_symlink() or not path.exists():
        return False
    with path.open("r+b") as file:
        mark = len(b"".join(map(record, data_of(file.read(_HEAD), 2))))
        keep = mark if _mark_of(path) is not None else 0
        if os.fstat(file.fileno()).st_size <= keep:
            return False
        file.truncate(keep)
    return True

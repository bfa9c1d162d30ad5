"""`Lock`: one writer at a time for a file or a folder, among objects and among processes."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # a system without such locks: only this process is looked after
    fcntl = None

#: the errors of a file system that has no locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class Taken(OSError):
    """Another tracker or process holds the lock; the message says which."""


@dataclass(frozen=True, eq=False)
class _Entry:
    """A lock that an object of this process holds."""

    file: Any
    process: int
    owner: weakref.ref[Lock]


#: by path; what a forked process finds here is its parent's
_held: dict[str, _Entry] = {}
#: by path: who took the lock last, whether or not it is held any more
_latest: dict[str, object] = {}


class Lock:
    """A lock file, which is there while the lock is held; belongs to one sink.

    The operating system gives the lock back when the program ends, however it does, and a forked
    process (a data loader's worker) does not inherit it. A file that a killed program left behind
    is in nobody's way.

    Args:
        path: the lock file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, second = (Lock(Path(folder) / ".lock") for _ in range(2))
        ...     first.take()
        ...     second.take(over=True)
        ...     print(first.held, first.lost, second.held, second.lost)
        ...     second.release()
        ...     len(list(Path(folder).iterdir()))
        False True True False
        0
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = os.path.realpath(path)
        # None unless this object took the lock and did not release it
        self._taken_in: int | None = None
        self._token = object()
        weakref.finalize(self, _release, self._key, weakref.ref(self))

    @property
    def held(self) -> bool:
        """Whether it is this object that holds the lock, here and now."""
        entry = self._entry()
        return entry is not None and entry.owner() is self

    @property
    def lost(self) -> bool:
        """Whether this object took the lock, and another one, or another process, has had it since.

        It is False while both are collected as garbage: nobody else came, and what holds the lock
        may end its work.
        """
        if self._taken_in is None:
            return False
        return self._taken_in != os.getpid() or _latest.get(self._key) is not self._token

    def _entry(self) -> _Entry | None:
        """The entry of the lock, if an object of this process holds it."""
        entry = _held.get(self._key)
        return None if entry is None or entry.process != os.getpid() else entry

    def take(self, *, over: bool = False) -> None:
        """Hold the lock from here on, anew if its file was deleted.

        Args:
            over: take it from another object of this process, which finds `held` to be False.

        Raises:
            Taken: if somebody else has it.
            OSError: if the lock file cannot be made.
        """
        entry = self._entry()
        if entry is not None and entry.owner() not in (None, self) and not over:
            gc.collect()  # an owner that nobody can reach any more may not be collected yet
            entry = self._entry()
            if entry is not None and entry.owner() not in (None, self):
                raise Taken(errno.EBUSY, "another tracker of this program writes there")
        file = entry.file if entry is not None and self.path.exists() else _locked(self.path)
        _held[self._key] = _Entry(file, os.getpid(), weakref.ref(self))
        _latest[self._key], self._taken_in = self._token, os.getpid()

    def release(self) -> None:
        """Give the lock back and remove its file; does nothing if it is not held."""
        self._taken_in = None
        _release(self._key, weakref.ref(self))


def _release(key: str, owner: weakref.ref[Lock]) -> None:
    entry = _held.get(key)
    # two references to one object are equal, and the same reference is also when it is gone
    if entry is None or entry.process != os.getpid() or entry.owner != owner:
        return
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(key), os.fstat(entry.file.fileno())):
            os.unlink(key)
    entry.file.close()
    _held.pop(key, None)


def _locked(path: Path) -> Any:
    """The open file, locked, with the number of this process in it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
        if not _got(file):
            holder = path.read_bytes()[:20].decode(errors="replace")
            raise Taken(errno.EBUSY, f"process {holder or '?'} writes there")
        # whoever had the lock may have removed the file between our opening and our locking
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
    with contextlib.suppress(OSError):  # a full disk: the lock is what counts
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file


def _got(file: Any) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return True
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True

"""Where a run's files may be: one place has one tracker at a time, and nothing is overwritten.

While a run goes on, its rows are in ``<path>.unfinished``, which its tracker has locked.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
from io import FileIO
from pathlib import Path

from torchlimits.files.rows import MAGIC

try:
    import fcntl
except ImportError:  # on Windows, which does not rename or remove open files anyway
    fcntl = None

_log = logging.getLogger(__name__)

#: what a recording is called until its run ends
UNFINISHED = ".unfinished"


def unfinished(path: Path) -> Path:
    """The file of an unfinished run whose trajectory will be at ``path``."""
    return path.with_name(path.name + UNFINISHED)


def lock(file: FileIO) -> bool:
    """Lock an open file until it is closed; False if another tracker, here or elsewhere, has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def taken(place: Path) -> bool:
    """Whether a tracker must not put its rows at a place, as it may not replace the file there.

    That is so if another tracker has the file, or no tracker has written it. What a program that
    was killed left is nobody's; an empty file and a symbolic link do not count.
    """
    try:
        found = place.lstat()
        if stat.S_ISLNK(found.st_mode):
            return False
        if not stat.S_ISREG(found.st_mode):
            return True
        # for writing: some network file systems lock no file that is open only for reading
        with place.open("r+b", buffering=0) as file:
            return not lock(file) or file.read(len(MAGIC)) not in (b"", MAGIC)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def keep_aside(place: Path) -> None:
    """Rename what a program that was killed left behind: nothing recorded is overwritten."""
    if place.is_symlink() or not place.exists() or not place.stat().st_size:
        return
    names = (place.with_name(f"{place.name}.{number}") for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    place.rename(aside)
    _log.warning("%s of a run that was not finished is kept as %s", place.name, aside)


def another(path: Path) -> Path:
    """A name like ``path`` that no run has: ``u-1.npz`` for ``u.npz``."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
    return next(
        name
        for name in names
        if not os.path.lexists(name) and not os.path.lexists(unfinished(name))
    )

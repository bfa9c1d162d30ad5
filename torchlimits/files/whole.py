"""Writing whole or not at all: beside the place and then renamed into it, or at the file's end."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Generator
from io import FileIO
from pathlib import Path

#: how the names of files begin that have not come to their places yet
MARK = "torchlimits-partial-"


def beside(path: Path) -> Path:
    """A name in the folder of ``path`` that nobody has or can guess.

    Open it with mode ``"x"``, which follows no link and refuses a file that is there.
    """
    return path.with_name(f"{MARK}{secrets.token_hex(8)}")


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """An empty file to write beside ``path``, in whose place it is put at the end of the block.

    So a crash never leaves half a file under the real name; after an error, what was there stays,
    and the new file is gone. It has the mode of the file that it replaces, or that of a new one.
    What is at ``path`` is replaced whatever it is, a symbolic link too: give ``os.path.realpath``
    of a user's path. The folder is made if it is not there.
    """
    partial = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.open("xb").close()
        _as_before(path, partial)
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _as_before(path: Path, partial: Path) -> None:
    """Give a file the mode of the one that it is to replace, where there are modes."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            partial.chmod(stat.S_IMODE(found.st_mode) | stat.S_IWUSR)


def append_whole(file: FileIO, data: bytes) -> None:
    """Write to the end of an unbuffered file: all, or an OSError and the file as it was."""
    end = file.seek(0, os.SEEK_END)
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except BaseException:
        file.truncate(end)
        raise

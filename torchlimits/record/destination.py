"""Where a trajectory goes: found out before hours of training, and never where others write."""

from __future__ import annotations

import os
from pathlib import Path

from torchlimits._checks import warn
from torchlimits.files import npz
from torchlimits.files.folder import prepared
from torchlimits.files.place import another, taken, unfinished
from torchlimits.files.rows import MAGIC
from torchlimits.trajectory import Trajectory

#: the trajectory's file in a log directory
_RECORDED = "recorded.rows"


def identity(path: Path | None) -> tuple[int, ...] | None:
    """Return what tells a file from one that is written there later; None if there is no file."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def holds(trajectory: Trajectory, path: Path) -> bool:
    """Tell whether the trajectory has all that is in a file: then the file may be replaced."""
    try:
        found = Trajectory.load(path)
    except (OSError, ValueError):
        return False
    first = trajectory.slice(slice(0, len(found)))
    names = list(trajectory.names[: len(found.names)])
    if found.std is not None or list(found.names) != names or first.steps.ne(found.steps).any():
        return False
    values = first.values[..., : len(names)]
    return bool(
        first.times.equal(found.times)
        and values.shape == found.values.shape
        and values.allclose(found.values, rtol=0.0, atol=0.0, equal_nan=True)
    )


def say_in_use(path: Path, place: Path) -> None:
    """Warn that a path is another tracker's, and that this tracker's is ``place``."""
    warn(
        f"another tracker, of this program (was it closed?) or of another one, records to {path}, "
        f"or {unfinished(path).name} is no file of a tracker: the rows of this one go to {place}"
    )


def place_of(path: str | Path | None, logdir: str | Path | None) -> Path | None:
    """Where a trajectory goes, after making sure, before hours of training, that it can be written.

    Args:
        path: as in `tl.track`.
        logdir: where it goes without a path: ``recorded.rows`` in this folder, if there is one.

    Returns:
        None without both; another name, and a warning, if another tracker records there now.

    Raises:
        ValueError: if the path is a directory, or a file of another kind.
        OSError: if its folder cannot be made or written to.
    """
    if path is None:
        return None if logdir is None else _not_in_use(Path(logdir) / _RECORDED)
    # the file behind a symbolic link, not a file in the place of the link
    path = Path(os.path.realpath(path))
    prepared(path)
    if not _is_ours(path):
        raise ValueError(
            f"expected path as a new file, or one that a tracker or Trajectory.save wrote, got "
            f"{path}, which is something else and would be replaced: give another name"
        )
    return _not_in_use(path)


def _not_in_use(path: Path) -> Path:
    """The path, or one like it if another tracker has it."""
    if not taken(unfinished(path)):
        return path
    place = another(path)
    say_in_use(path, place)
    return place


def _is_ours(path: Path) -> bool:
    """Whether nothing is there, or a file, known by its beginning, that may be replaced."""
    if not os.path.lexists(path):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        beginning = file.read(64)
    return not beginning or beginning.startswith(MAGIC) or npz.begins(beginning)

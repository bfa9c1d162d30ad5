"""The folder of a file that is to be written: made where it is not there, or refused in words."""

from __future__ import annotations

import os
from pathlib import Path


def prepared(path: Path, name: str = "path") -> Path:
    """The path itself, in a folder that is there and can be written to.

    Args:
        path: of the file.
        name: what the user's argument is called.

    Raises:
        ValueError: if the path is a directory.
        OSError: if its folder cannot be made or written to.

    Example:
        >>> try:
        ...     prepared(Path(os.devnull) / "u.npz")
        ... except OSError as error:
        ...     print(str(error).partition(",")[0])
        expected path in a folder that can be made
    """
    if path.is_dir():
        raise ValueError(
            f"expected {name} as a file to write to, got the directory {path}: name a file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"expected {name} in a folder that can be made, got {path}: "
            f"{error.strerror or error}; give another"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"expected {name} in a folder that can be written to, got {path}: give another"
        )
    return path

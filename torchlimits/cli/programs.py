"""`program`: how the programs that the output names are started from here."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

_MODULES = {"tensorboard": "tensorboard.main", "torchlimits": "torchlimits"}


def program(name: str) -> str:
    """Return the words that start a program of this Python environment, for a shell.

    Args:
        name: ``"tensorboard"`` or ``"torchlimits"``.

    Example:
        >>> program("tensorboard").split()[-1].endswith(("tensorboard", "tensorboard.main"))
        True
    """
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if found is not None and Path(found).resolve() == beside.resolve():
        return name  # the shell finds it
    if beside.exists():
        return shlex.quote(_short(beside))
    return f"{shlex.quote(_short(Path(sys.executable)))} -m {_MODULES[name]}"


def _short(path: Path) -> str:
    """The path from the present folder, where it is below that."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

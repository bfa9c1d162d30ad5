"""The `.npz` file of a saved trajectory, which numpy alone can read: one array for each field."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from torchlimits.files import archive

FORMAT = "torchlimits.Trajectory/1"
#: what the file holds, and of what kind
_ARRAYS = {
    "format": "U",
    "times": "<f8",
    "steps": "<i8",
    "names": "U",
    "values": "<f8",
    "std": "<f8",
    "metadata": "U",
}


def write(path: Path, fields: Mapping[str, np.ndarray]) -> None:
    """Write a trajectory's fields; the folder is made if it is not there.

    Args:
        path: the file.
        fields: ``times``, ``steps``, ``values``, ``names``, ``metadata`` (as JSON) and, where
            there is one, ``std``.

    Raises:
        OSError: if the file cannot be written; then what was at ``path`` is still there.
    """
    # written aside and renamed, so that a crash never leaves half a file under the real name
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, format=np.array(FORMAT), **fields)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def read(file: BinaryIO) -> dict[str, Any]:
    """The fields that `write` wrote: arrays, but ``names`` as a list and ``metadata`` as a dict.

    Nothing is unpickled.

    Args:
        file: open for reading.

    Raises:
        ValueError: if the file is of another format, or damaged.
        zipfile.BadZipFile: if it is not a zip archive.
    """
    found: dict[str, Any] = archive.arrays(file, _ARRAYS)
    form = found.pop("format", None)
    if str(form) != FORMAT:
        raise ValueError(
            f"expected a file of format {FORMAT!r}, got {form}: give one that Trajectory.save wrote"
        )
    missing = sorted({*_ARRAYS} - {"format", "std", *found})
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    if found["names"].ndim != 1 or found["times"].ndim != 1:
        raise ValueError("its names or times are not a list")
    found["names"] = found["names"].tolist()
    found["metadata"] = json.loads(str(found["metadata"]))
    if not isinstance(found["metadata"], dict):
        raise ValueError("its metadata are not a dict")
    return found

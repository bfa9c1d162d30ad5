"""The `.npz` file of a saved trajectory: one array for each field, which numpy alone can read.

Somebody may have damaged a file that is read, or made it to do damage.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from torchlimits.files.row_file import replacing

FORMAT = "torchlimits.Trajectory/1"
#: what the file holds, and of what kind
_ARRAYS = {
    "format": "U", "times": "<f8", "steps": "<i8", "names": "U", "values": "<f8", "std": "<f8",
    "metadata": "U",
}  # fmt: skip
#: deflate never packs more tightly
_DEFLATE = 1032
#: texts (metadata, names) are smaller than this
_LONGEST_TEXT = 2**28


def write(path: Path, fields: Mapping[str, np.ndarray]) -> None:
    """Write a trajectory's fields; the folder is made if it is not there.

    Args:
        path: the file.
        fields: ``times``, ``steps``, ``values``, ``names``, ``metadata`` (as JSON) and, where
            there is one, ``std``.

    Raises:
        OSError: if the file cannot be written; then what was at ``path`` is still there.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, format=np.array(FORMAT), **fields)
        file.flush()
        os.fsync(file.fileno())


def read(file: BinaryIO) -> dict[str, Any]:
    """The fields that `write` wrote: arrays, but ``names`` as a list and ``metadata`` as a dict.

    Nothing is unpickled, and no memory is taken for sizes that the file cannot hold.

    Args:
        file: open for reading.

    Raises:
        ValueError: if the file is of another format, or an array of it is damaged, of another kind
            or claims an impossible size.
        zipfile.BadZipFile: if it is not a zip archive.
    """
    found: dict[str, Any] = _arrays(file, _ARRAYS)
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


def _arrays(file: BinaryIO, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Those of the arrays named that are there, each of its kind; ``"U"`` is any text."""
    file.seek(0, 2)
    size = file.tell()
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        return {
            name: _array(archive, members[f"{name}.npy"], kind, size)
            for name, kind in kinds.items()
            if f"{name}.npy" in members
        }


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kind: str, size: int) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in an unknown way")
    if member.compress_size > size or member.file_size > _DEFLATE * (member.compress_size + 1):
        raise ValueError(f"{member.filename} claims {member.file_size} bytes, which cannot be")
    with archive.open(member) as stream:
        shape, dtype = _header(stream)
        if dtype.str != kind and not (kind == "U" and dtype.kind == "U"):
            raise ValueError(f"{member.filename} holds {dtype}, expected {kind}")
        claimed = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or claimed != member.file_size - stream.tell():
            raise ValueError(f"{member.filename} claims shape {shape}, which it does not hold")
        if dtype.kind == "U" and claimed > _LONGEST_TEXT:
            raise ValueError(f"{member.filename} is a text of {claimed} bytes")
        stream.seek(0)
        array = npy.read_array(stream, allow_pickle=False)
        if stream.read(1):  # reads to the end: the archive's checksum is compared there
            raise ValueError(f"{member.filename} goes on after its array")
    return array


def _header(stream: IO[bytes] | zipfile.ZipExtFile) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"an array of the unknown version {version}")
    shape, _, dtype = read(stream)
    return shape, dtype

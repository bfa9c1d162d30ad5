"""The `.npz` file of a saved trajectory: one array for each field, which numpy alone can read.

The comment of the zip archive, its last bytes, is the crc32c of all bytes before it: a file that
was damaged anywhere is refused. Files of format ``torchlimits.Trajectory/1`` do not have it; they
must hold the known arrays and no others. Whoever makes a file with `numpy.savez` takes that format.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np

from torchlimits.files.rows import check_texts
from torchlimits.files.whole import replacing

FORMAT = "torchlimits.Trajectory/2"
#: the format before, without a checksum; it is still read
FIRST_FORMAT = "torchlimits.Trajectory/1"
#: what the file holds, and of what kind
_ARRAYS = {
    "format": "U", "times": "<f8", "steps": "<i8", "names": "U", "values": "<f8", "std": "<f8",
    "lower": "<f8", "upper": "<f8", "samples": "<f8", "error": "<f8", "metadata": "U",
}  # fmt: skip
_FIELDS = _ARRAYS.keys() - {"format"}
#: what not every trajectory has
_OPTIONAL = {"std", "lower", "upper", "samples", "error"}
#: what else may be there: numpy before 2.0 took the argument of that name for an array to save
_HARMLESS = "allow_pickle.npy"
#: how the comment begins; eight hexadecimal digits follow
_COMMENT = b"crc32c "
_COMMENT_BYTES = len(_COMMENT) + 8
#: deflate never packs more tightly
_DEFLATE = 1032
#: texts (metadata, names) are not larger than this; see `check_texts`
_LONGEST_TEXT = 2**28
_PIECE_BYTES = 2**24


def write(path: Path, names: Sequence[str], fields: Mapping[str, np.ndarray]) -> None:
    """Write a trajectory's fields; the folder is made if it is not there.

    Args:
        path: the file.
        names: of the statistics.
        fields: ``times``, ``steps``, ``values``, ``metadata`` (as JSON) and, where there are
            any, ``std``, ``lower``, ``upper``, ``samples`` and ``error``.

    Raises:
        ValueError: if names or metadata are so long that they could not be read again.
        OSError: if the file cannot be written; then what was at ``path`` is still there.
    """
    # before an array is made of them: one long name makes all of them long
    check_texts(names, str(fields["metadata"]))
    arrays: dict[str, Any] = {"format": np.array(FORMAT), **fields}
    arrays["names"] = np.array(list(names), dtype=np.str_)
    with replacing(path) as partial, partial.open("r+b") as file:
        np.savez_compressed(file, **arrays)
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = _comment(0)
        size = file.seek(0, os.SEEK_END)
        comment = _comment(_crc32c(file, size - _COMMENT_BYTES))
        file.seek(size - _COMMENT_BYTES)
        file.write(comment)
        file.flush()
        os.fsync(file.fileno())


def _comment(checksum: int) -> bytes:
    return _COMMENT + b"%08x" % checksum


def _crc32c(file: BinaryIO, size: int) -> int:
    """The checksum of the first ``size`` bytes of a file."""
    result = 0
    file.seek(0)
    while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
        result = google_crc32c.extend(result, piece)
        size -= len(piece)
    return result


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
    size = file.seek(0, os.SEEK_END)
    checked = _check_comment(file, size)
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive, size)
        if not checked and (bad := archive.testzip()) is not None:
            raise ValueError(f"{bad} is damaged")
        members = archive.namelist()
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        form = str(arrays["format"]) if "format.npy" in members else None
        if form not in (FORMAT, FIRST_FORMAT):
            raise ValueError(
                f"expected a file of format {FORMAT!r}, got {form}: give one that Trajectory.save "
                "wrote"
            )
        if form == FORMAT and not checked:
            raise ValueError("its end is damaged, or another program wrote it")
        _check_members(members)
        found: dict[str, Any] = {name: arrays[name] for name in arrays.files if name in _FIELDS}
    _check_kinds(found)
    found["names"] = found["names"].tolist()
    found["metadata"] = json.loads(str(found["metadata"]))
    if not isinstance(found["metadata"], dict):
        raise ValueError("its metadata are not a dict")
    return found


def begins(content: bytes) -> bool:
    """Whether these are the first 64 bytes of such a file, whose first array tells its format."""
    return content.startswith(b"PK\x03\x04") and b"format.npy" in content


def _check_comment(file: BinaryIO, size: int) -> bool:
    """Whether the file ends with its checksum; ValueError if that is not the right one."""
    file.seek(max(size - _COMMENT_BYTES, 0))
    comment = file.read()
    if not comment.startswith(_COMMENT):
        return False
    if comment != _comment(_crc32c(file, size - _COMMENT_BYTES)):
        raise ValueError("it is damaged: its checksum is not that of its content")
    return True


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Raise ValueError for arrays larger than the file can hold, however they were packed."""
    for member in archive.infolist():
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} is compressed in an unknown way")
        if member.compress_size > size or member.file_size > _DEFLATE * (member.compress_size + 1):
            raise ValueError(f"{member.filename} claims {member.file_size} bytes, which cannot be")
        if _ARRAYS.get(member.filename.removesuffix(".npy")) == "U" and (
            member.file_size > _LONGEST_TEXT + _PIECE_BYTES
        ):
            raise ValueError(f"{member.filename} is a text of {member.file_size} bytes")


def _check_members(members: list[str]) -> None:
    known = {f"{name}.npy" for name in _ARRAYS}
    needed = {f"{name}.npy" for name in _ARRAYS.keys() - _OPTIONAL}
    missing = sorted(name.removesuffix(".npy") for name in needed - {*members})
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    if len(set(members)) < len(members) or not {*known, _HARMLESS}.issuperset(members):
        raise ValueError(f"it has other members than {sorted(known)}: {sorted(members)}")


def _check_kinds(found: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for arrays of another type, or if names and columns differ in number."""
    for name, array in found.items():
        kind = _ARRAYS[name]
        text = kind == "U" and array.dtype.kind == "U" and array.dtype.itemsize > 0
        if array.dtype.str != kind and not text:
            raise ValueError(f"{name} is {array.dtype}, expected {kind}")
    if found["names"].ndim != 1 or found["times"].ndim != 1:
        raise ValueError("its names or times are not a list")
    if found["values"].shape[-1:] != found["names"].shape:
        raise ValueError(f"it has {len(found['names'])} names for values {found['values'].shape}")

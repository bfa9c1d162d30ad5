"""Arrays of a ``.npz`` file that somebody may have damaged, or made to do damage."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from typing import IO, BinaryIO

import numpy as np
from numpy.lib import format as npy

#: deflate never packs more tightly
_DEFLATE = 1032
#: texts (metadata, names) are smaller than this
_LONGEST_TEXT = 2**28


def arrays(file: BinaryIO, kinds: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays of some names that are there, each of its kind.

    Nothing is unpickled, and no memory is taken for sizes that the file cannot hold.

    Args:
        file: open for reading.
        kinds: for each name the dtype, ``"<f8"`` for instance, or ``"U"`` for any text.

    Raises:
        ValueError: if an array is damaged, of another kind, or claims an impossible size.
        zipfile.BadZipFile: if the file is no zip archive.
    """
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


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"an array of the unknown version {version}")
    shape, _, dtype = read(stream)
    return shape, dtype

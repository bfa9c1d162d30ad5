"""Reading files of rows, with suspicion: they may be damaged, or made to do harm."""

from __future__ import annotations

import logging
import os
from io import FileIO
from pathlib import Path

import google_crc32c
import numpy as np

from torchlimits.files.row_file import SMALL
from torchlimits.files.rows import (
    FORMAT,
    LONGEST_LINE,
    STATE_BYTES,
    Header,
    checksums,
    in_memory,
    mapped,
    pieces,
    state_line,
)

_log = logging.getLogger(__name__)


def read(path: Path) -> tuple[Header, np.ndarray]:
    """The header and the rows of a file, checked; no descriptor is held.

    A large file is memory-mapped. A torn end is left out, if the file is that of a run that goes
    on or was killed; one that was finished must be whole.

    Raises:
        ValueError: if the header or a row is damaged, rows are missing, or it is another file.
        OSError: if it cannot be opened.
    """
    with path.open("rb", buffering=0) as file:
        line = _first_line(file)
        header, form = Header.parse(line)
        seed, offset, promised = google_crc32c.value(line), len(line), None
        size = file.seek(0, os.SEEK_END)
        if form == FORMAT:
            promised, offset = _state(file, offset, seed), offset + STATE_BYTES
        width = header.row.itemsize
        count, torn = divmod(size - offset, width)
        if promised is not None and size != offset + promised * width:
            raise ValueError(f"it should have {promised} rows, got {size - offset} bytes of them")
        load = in_memory if size < SMALL else mapped
        rows = load(file, header.row, offset, count)
    whole = _whole(rows, seed)
    if promised is not None and whole < count:
        raise ValueError(f"row {whole} is damaged")
    if whole < count or torn:
        _log.warning("%s ends in a torn row: the %d rows before are read", path, whole)
    rows = rows[:whole]
    if len(rows) and not (rows["step"][0] >= 0 and (np.diff(rows["step"]) > 0).all()):
        raise ValueError("its steps do not increase")
    return header, rows


def _first_line(file: FileIO) -> bytes:
    line = bytearray()
    while len(line) < LONGEST_LINE and (block := file.read(2**16)):
        line += block
        if b"\n" in block:
            return bytes(line[: line.index(b"\n") + 1])
    raise ValueError(f"its header is not a line of less than {LONGEST_LINE} bytes")


def _state(file: FileIO, offset: int, seed: int) -> int | None:
    """How many rows the second line promises, or None; it has to be that line to the last bit."""
    file.seek(offset)
    line = file.read(STATE_BYTES)
    number = line.removeprefix(b'{"rows": ').partition(b",")[0]
    count = int(number) if number.isdigit() else None
    if line != state_line(seed, count):
        raise ValueError("its header is damaged")
    return count


def _whole(rows: np.ndarray, seed: int) -> int:
    """How many rows have the right checksum; ValueError if a good row comes after a bad one."""
    first_bad = len(rows)
    begin = 0
    for piece in pieces(rows):
        good = piece["crc32c"] == np.array(checksums(seed, piece), dtype=np.uint64)
        if first_bad == len(rows) and not good.all():
            first_bad = begin + int(good.argmin())
        if first_bad < len(rows) and good[max(first_bad - begin, 0) :].any():
            raise ValueError(f"row {first_bad} is damaged, but rows after it are not")
        begin += len(piece)
    if len(rows) and not first_bad:
        raise ValueError("its header or all of its rows are damaged")
    return first_bad

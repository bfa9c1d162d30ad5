"""What rows of a trajectory look like, in memory and in a file: their `Header`, type and checksums.

The layout of the file is described in `torchlimits.files.row_file`.
"""

from __future__ import annotations

import bisect
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import torch

from torchlimits import _checks

FORMAT = "torchlimits.Rows/2"
#: the format before, without the line that tells how many rows there are; it is still read
FIRST_FORMAT = "torchlimits.Rows/1"
#: how such a file begins
MAGIC = b'{"format": "torchlimits.Rows/'
#: the bytes of the second line
STATE_BYTES = 64

#: the longest header: room for a million names
LONGEST_LINE = 2**26
#: in a file of numpy's, names take as many bytes as their number times the longest: at most these
_LONGEST_NAMES = 2**28
_LARGEST_ROW = 2**31
#: the most leading dimensions: numpy has 32 or 64 in all
_MOST_DIMENSIONS = 16
#: rows are checked and written in pieces of about so many bytes
PIECE_BYTES = 2**24


def check_texts(names: Sequence[str], metadata: str) -> None:
    """Raise ValueError, before they are written, for texts so long that they would not be read."""
    longest = max(map(len, names), default=0)
    if 4 * len(names) * longest > _LONGEST_NAMES:
        raise ValueError(
            f"expected names of at most {_LONGEST_NAMES // 4} characters, their number times the "
            f"longest, got {len(names)} names, one of {longest} characters: shorten it"
        )
    if len(metadata) > LONGEST_LINE:
        raise ValueError(
            f"expected metadata of at most {LONGEST_LINE} characters as JSON, got "
            f"{len(metadata)}: keep large things in a file of their own"
        )


@dataclass(frozen=True)
class Header:
    """What all rows share.

    Args:
        names: the k statistics' names.
        runs: the leading dimensions of the values, () for one run.
        metadata: JSON-able, as in `Trajectory`.

    Raises:
        ValueError: if names repeat, or something is too large to be read again.
    """

    names: Sequence[str]
    runs: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checks.names(self.names)
        if len(set(self.names)) < len(self.names):
            twice = sorted(name for name, times in Counter(self.names).items() if times > 1)
            raise ValueError(f"expected k different names, got {twice[:20]} more than once")
        if len(self.runs) > _MOST_DIMENSIONS:
            raise ValueError(
                f"expected at most {_MOST_DIMENSIONS} leading dimensions, got {self.runs}: "
                "flatten some of them"
            )
        size = 8 * len(self.names) * math.prod(self.runs)
        if size > _LARGEST_ROW - 64:
            raise ValueError(
                f"expected rows of at most {_LARGEST_ROW} bytes, got {size} for each step: record "
                "fewer statistics, or fewer runs at once"
            )
        check_texts(self.names, _checks.json_text("metadata", self.metadata))
        if len(self.line) > LONGEST_LINE:
            raise ValueError(
                f"expected names and metadata of at most {LONGEST_LINE} bytes as JSON, got "
                f"{len(self.line)}: shorten the names"
            )

    @cached_property
    def row(self) -> np.dtype:
        """The type of a row, whose values are ``(*runs, k)``."""
        values = (*self.runs, len(self.names))
        return np.dtype(
            [("step", "<i8"), ("time", "<f8"), ("values", "<f8", values), ("crc32c", "<u8")]
        )

    @cached_property
    def line(self) -> bytes:
        """The first line of the file."""
        text = json.dumps(
            {
                "format": FORMAT,
                "names": list(self.names),
                "runs": list(self.runs),
                "metadata": dict(self.metadata),
            }
        ).encode()
        return text.ljust(math.ceil((len(text) + 1) / 64) * 64 - 1) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> tuple[Header, str]:
        """The header of a file's first line, and the file's format; or ValueError."""
        if not line.startswith(MAGIC) or not line.endswith(b"\n"):
            raise ValueError("its first line is not a whole header")
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its header is not JSON: {error}") from error
        form = content.get("format")
        if form not in (FORMAT, FIRST_FORMAT):
            raise ValueError(f"expected format {FORMAT!r}, got {form!r}")
        names, runs, metadata = (content.get(key) for key in ("names", "runs", "metadata"))
        if not _is_list_of(names, str):
            raise ValueError("its names are not a list of strings")
        if not _is_list_of(runs, int) or min(runs, default=0) < 0:
            raise ValueError("its runs are not a list of sizes")
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are not a dict")
        return cls(names, tuple(runs), metadata), form


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def state_line(seed: int, count: int | None) -> bytes:
    """The second line: how many rows there are, None while they grow in number.

    Args:
        seed: the checksum of the first line, which this one vouches for.
        count: the number of rows.
    """
    number = json.dumps(count)
    checksum = google_crc32c.extend(seed, number.encode())
    text = f'{{"rows": {number}, "crc32c": {checksum}}}'
    return text.encode().ljust(STATE_BYTES - 1) + b"\n"


def pieces(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in slices of some MB, at least one row each."""
    step = max(1, PIECE_BYTES // rows.itemsize)
    return (rows[begin : begin + step] for begin in range(0, len(rows), step))


def later(rows: np.ndarray, step: int) -> np.ndarray:
    """Rows after a step."""
    # not numpy's search: it would copy the whole column
    return rows[bisect.bisect_right(rows["step"], step) :]


def checksums(seed: int, rows: np.ndarray) -> list[int]:
    """crc32c of the header's line (alone: ``seed``) and each row up to its checksum."""
    data, width, extend = rows.tobytes(), rows.itemsize, google_crc32c.extend
    return [extend(seed, data[begin : begin + width - 8]) for begin in range(0, len(data), width)]


def widened(rows: np.ndarray, row: np.dtype) -> np.ndarray:
    """Rows of the type ``row``, with NaN in columns that they lack; copied if there are any."""
    if rows.dtype == row:
        return rows
    wide = np.empty(len(rows), row)
    wide["step"], wide["time"] = rows["step"], rows["time"]
    known = rows["values"].shape[-1]
    wide["values"][..., :known], wide["values"][..., known:] = rows["values"], np.nan
    return wide


def in_memory(file: FileIO, row: np.dtype, offset: int, count: int) -> np.ndarray:
    """Rows of a file, read into memory."""
    if not count:
        return np.empty(0, row)
    file.seek(offset)
    data = bytearray(count * row.itemsize)
    view = memoryview(data)
    while view:
        read = file.readinto(view)
        if not read:
            raise ValueError("it became shorter while it was read")
        view = view[read:]
    return np.frombuffer(data, row)


def mapped(file: FileIO, row: np.dtype, offset: int, count: int) -> np.ndarray:
    """Rows of a file, read when they are used; writing into them changes only the copy in memory.

    They need no descriptor, of which a process has few: neither ``file``'s, which may be closed,
    nor, where the system has names for open files, one of their own.
    """
    if not count:
        return np.empty(0, row)
    name, size = Path(f"/dev/fd/{file.fileno()}"), offset + count * row.itemsize
    if os.fstat(file.fileno()).st_size < size:
        raise ValueError("it became shorter while it was read")
    try:
        data = torch.from_file(str(name), shared=False, size=size, dtype=torch.uint8, device="cpu")
    except RuntimeError:  # without such names
        return np.asarray(np.memmap(file, row, "c", offset=offset, shape=(count,)))
    return np.frombuffer(data.numpy(), row, count, offset)

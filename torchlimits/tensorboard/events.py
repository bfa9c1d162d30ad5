"""TensorBoard event files, written fast: the framing of records, and files that replace files."""

# protobuf makes its classes at import time, where a type checker does not see them:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Float, Int, UInt8
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from torchlimits.files.row_file import append_whole

#: how the files that this package wrote, and may replace, are told from everybody else's
SUFFIX = ".torchlimits"
_PARTIAL = SUFFIX + ".partial"

_ROWS = 8192  # framed at a time: some MB
_FRAME_HEADER, _FRAME_FOOTER = 12, 4


# --- framing ---------------------------------------------------------------------------------


def record(data: bytes) -> bytes:
    """One record: length (uint64), its masked crc32c, the data, its masked crc32c.

    >>> len(record(b"abc")) - len(b"abc")
    16
    """
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def scalar_records(
    tags: Sequence[str],
    steps: Int[np.ndarray, " T"],
    wall_times: Float[np.ndarray, " T"],
    values: Float[np.ndarray, "T k"],
) -> Iterator[bytes]:
    """Records of T events, one a step, each holding the k scalars; blocks of a few MB.

    Events whose steps take as many bytes differ only in fixed places: one is serialised by
    protobuf, and numpy fills in those of all the others.

    Args:
        tags: the k tags.
        steps: optimizer steps, shape ``(T,)``, at least 0.
        wall_times: seconds since 1970, shape ``(T,)``.
        values: shape ``(T, k)``; rounded to float32, as everywhere in TensorBoard.
    """
    with np.errstate(over="ignore"):
        floats = np.asarray(values).astype("<f4")
    sizes = _varint_size(np.asarray(steps, dtype=np.uint64))
    groups = np.split(np.arange(len(steps)), np.flatnonzero(np.diff(sizes)) + 1)
    for group in groups:
        for rows in np.split(group, range(_ROWS, len(group), _ROWS)):
            if len(rows):
                yield _block(tags, steps[rows], wall_times[rows], floats[rows], int(sizes[rows[0]]))


def _block(
    tags: Sequence[str], steps: Int[np.ndarray, " rows"], wall_times: Float[np.ndarray, " rows"],
    floats: Float[np.ndarray, "rows k"], size: int,
) -> bytes:  # fmt: skip
    """Framed events of rows whose steps all take ``size`` bytes."""
    event, at_floats = _template(tags, 1 << 7 * (size - 1))
    frame = np.frombuffer(record(event), dtype=np.uint8)
    block = np.tile(frame, (len(steps), 1))
    body = block[:, _FRAME_HEADER:-_FRAME_FOOTER]
    # Event: tag byte, wall_time (8 bytes), tag byte, step (varint), summary
    body[:, 1:9] = _as_bytes(wall_times.astype("<f8")[:, None])
    body[:, 10 : 10 + size] = _varints(steps.astype(np.uint64), size)
    body[:, at_floats] = _as_bytes(floats)
    data, width, crc = block.tobytes(), block.shape[1], google_crc32c.value
    starts = range(_FRAME_HEADER, len(data), width)
    crcs = np.array([crc(data[i : i + len(event)]) for i in starts], dtype=np.uint32)
    block[:, -_FRAME_FOOTER:] = _as_bytes(_mask(crcs).astype("<u4")[:, None])
    return block.tobytes()


def _template(tags: Sequence[str], step: int) -> tuple[bytes, Int[np.ndarray, " bytes"]]:
    """A serialised event and where the bytes of its k floats are in it."""
    values = [Summary.Value(tag=tag, simple_value=1.0) for tag in tags]
    event = Event(wall_time=1.0, step=step, summary=Summary(value=values)).SerializeToString()
    # the summary is the last field, simple_value the last field of each of its values
    lengths = [len(Summary(value=[value]).SerializeToString()) for value in values]
    ends = len(event) - sum(lengths) + np.cumsum(lengths)
    return event, (ends[:, None] + np.arange(-4, 0)).ravel()


def _as_bytes(column: np.ndarray) -> UInt8[np.ndarray, "T bytes"]:
    return np.ascontiguousarray(column).view(np.uint8)


def _varint_size(numbers: np.ndarray) -> Int[np.ndarray, " T"]:
    limits = np.array([1 << 7 * i for i in range(1, 10)], dtype=np.uint64)
    return np.searchsorted(limits, numbers, side="right") + 1


def _varints(numbers: np.ndarray, size: int) -> UInt8[np.ndarray, "T size"]:
    digits = numbers[:, None] >> np.arange(0, 7 * size, 7, dtype=np.uint64) & np.uint64(0x7F)
    digits[:, :-1] |= np.uint64(0x80)
    return digits.astype(np.uint8)


def _mask(crcs: np.ndarray) -> np.ndarray:
    """TFRecord's masking: rotate right by 15 bits, add a constant, modulo 2^32."""
    return (crcs >> np.uint32(15) | crcs << np.uint32(17)) + np.uint32(0xA282EAD8)


def _masked_crc(data: bytes) -> bytes:
    crcs = np.array([google_crc32c.value(data)], dtype=np.uint32)
    return _mask(crcs).astype("<u4").tobytes()


# --- files -----------------------------------------------------------------------------------


class EventFile:
    """An event file that grows at each `flush`; nothing is held open in between.

    Args:
        folder: the run directory; made if it is not there.
        partial: under a name that TensorBoard does not read, until `publish`.
        purge_step: readers forget what earlier files of the folder hold from this step on.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = EventFile(Path(folder))
        ...     file.add_scalars(["m"], np.arange(3), np.arange(3.0), np.ones((3, 1)))
        ...     file.flush()
        ...     len(own_files(Path(folder)))
        1
    """

    def __init__(self, folder: Path, *, partial: bool = False, purge_step: int = 0) -> None:
        self.folder, self._purge_step = folder, purge_step
        self._suffix = _PARTIAL if partial else SUFFIX
        self._path: Path | None = None
        self._pending: list[bytes] = []

    def add(self, summary: Summary, step: int = 0, wall_time: float | None = None) -> None:
        """Append one event that holds a summary."""
        now = time.time() if wall_time is None else wall_time
        event = Event(wall_time=now, step=step, summary=summary)
        self._pending.append(record(event.SerializeToString()))

    def add_scalars(
        self, tags: Sequence[str], steps: Int[np.ndarray, " T"],
        wall_times: Float[np.ndarray, " T"], values: Float[np.ndarray, "T k"],
    ) -> None:  # fmt: skip
        """Append T events of k scalars; arguments as in `scalar_records`."""
        for block in scalar_records(tags, steps, wall_times, values):
            self._pending.append(block)
            if len(self._pending) > 4:
                # what cannot be written now is kept for the next flush, which will say so
                with contextlib.suppress(OSError):
                    self.flush()

    def flush(self) -> None:
        """Hand everything added so far to the operating system.

        Raises:
            OSError: if it cannot be written; it is kept for the next flush, and the file is whole.
        """
        if self._path is None or not self._path.exists() or not self._path.stat().st_size:
            # the first flush, or a later writer replaced the file: go on in a new one
            self._path = self._fresh()
        with self._path.open("ab", buffering=0) as file:
            append_whole(file, b"".join(self._pending))
        self._pending = []

    def publish(self) -> None:
        """Flush, and rename a partial file to a name that TensorBoard reads."""
        self.flush()
        assert self._path is not None
        self._path = self._path.rename(_free_name(self.folder, "events.out.tfevents", SUFFIX))

    def _fresh(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = "events.out.tfevents" if self._suffix == SUFFIX else "unfinished"
        path = _free_name(self.folder, stem, self._suffix)
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        # START makes a running TensorBoard forget what earlier or replaced files held
        session = SessionLog(status=SessionLog.START)
        start = Event(wall_time=time.time(), step=self._purge_step, session_log=session)
        first = [version] if self._path is not None else [version, start]
        with path.open("xb", buffering=0) as file:
            try:
                append_whole(file, b"".join(record(event.SerializeToString()) for event in first))
            except OSError:
                path.unlink()
                raise
        return path


def _free_name(folder: Path, stem: str, suffix: str) -> Path:
    """Names sort by time: TensorBoard reads a run's files in the order of their names."""
    host = socket.gethostname() or "localhost"
    for moment in itertools.count(time.time_ns()):
        path = folder / f"{stem}.{moment}.{host}.{os.getpid()}{suffix}"
        if not path.exists():
            return path
    raise AssertionError("unreachable")


def own_files(folder: Path, *, numbered: bool = False) -> list[Path]:
    """The event files in a folder that this package wrote, finished or not.

    Args:
        folder: need not exist.
        numbered: also those in its subdirectories 0, 1, 2 ... (independent runs).
    """
    folders = [folder]
    if numbered and folder.is_dir():
        folders += [child for child in folder.iterdir() if child.name.isdigit()]
    patterns = (f"events.out.tfevents.*{SUFFIX}", f"unfinished.*{_PARTIAL}")
    return sorted(path for place in folders for pattern in patterns for path in place.glob(pattern))


def retire(paths: Sequence[Path]) -> None:
    """Remove event files that newer ones replace, and numbered run directories left with none.

    The newest of each folder is only emptied, and deleted when it is found empty: without its data
    server, TensorBoard never leaves a file that vanished while it was the one being read.
    """
    newest = {path.parent: path for path in sorted(paths) if path.name.endswith(SUFFIX)}
    for path in paths:
        others = [file for file in own_files(path.parent) if file not in paths]
        if others and path == newest.get(path.parent) and path.stat().st_size:
            path.write_bytes(b"")
        else:
            path.unlink(missing_ok=True)
        if path.parent.name.isdigit() and not any(path.parent.iterdir()):
            path.parent.rmdir()

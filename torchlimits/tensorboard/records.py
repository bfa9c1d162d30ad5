"""The framing of TensorBoard's event files, and scalars written fast."""

# protobuf makes its classes at import time, where a type checker does not see them:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

#: how many rows are framed at a time, which take some MB
ROWS = 8192
_FRAME_HEADER, _FRAME_FOOTER = 12, 4


def record(data: bytes) -> bytes:
    """One record: length (uint64), its masked crc32c, the data, its masked crc32c.

    >>> len(record(b"abc")) - len(b"abc")
    16
    """
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def data_of(records: bytes, count: int) -> list[bytes]:
    """The data of so many records at the beginning of a file, or of fewer, if it has no more.

    >>> data_of(record(b"a") + record(b"bc") + record(b"d")[:3], 3)
    [b'a', b'bc']
    """
    found: list[bytes] = []
    begin = 0
    while len(found) < count and len(records) >= begin + _FRAME_HEADER:
        (length,) = struct.unpack("<Q", records[begin : begin + 8])
        begin += _FRAME_HEADER
        if len(records) < begin + length + _FRAME_FOOTER:
            break
        found.append(records[begin : begin + length])
        begin += length + _FRAME_FOOTER
    return found


def scalar_records(
    tags: Sequence[str],
    steps: Int[np.ndarray, " T"],
    wall_times: Float[np.ndarray, " T"],
    values: Float[np.ndarray, "T k"],
) -> Iterator[bytes]:
    """Records of T events, one for each step with its k scalars, in blocks of a few MB.

    Events whose steps take equally many bytes differ only in fixed places: one is serialised by
    protobuf, and numpy fills in the places of all the others. NaN is no value: there is no point
    for it, and scalars that have values at other steps than the first one are in events of their
    own.

    Args:
        tags: the k tags.
        steps: optimizer steps, shape ``(T,)``, at least 0.
        wall_times: seconds since 1970, shape ``(T,)``.
        values: shape ``(T, k)``; rounded to float32, as everywhere in TensorBoard.
    """
    values = np.asarray(values)
    with np.errstate(over="ignore"):
        floats = values.astype("<f4")
    # the sum is NaN if one of them is, or if infinities meet: cheaper than testing each of them
    with np.errstate(invalid="ignore"):
        missing = np.isnan(values) if np.isnan(floats.sum()) else None
    if missing is None or not missing.any():
        yield from _records_of_all(tags, steps, wall_times, floats)
        return
    for columns, rows in _patterns(missing):
        if len(rows):
            named = [str(tags[column]) for column in columns]
            part = floats[np.ix_(rows, columns)]
            yield from _records_of_all(named, steps[rows], wall_times[rows], part)


def _patterns(
    missing: Bool[np.ndarray, "T k"],
) -> Iterator[tuple[Int[np.ndarray, " columns"], Int[np.ndarray, " rows"]]]:
    """Columns that lack a value in the same rows, and the other rows."""
    members: dict[bytes, list[int]] = {}
    for column in range(missing.shape[1]):
        members.setdefault(np.packbits(missing[:, column]).tobytes(), []).append(column)
    for columns in members.values():
        yield np.array(columns), np.flatnonzero(~missing[:, columns[0]])


def _records_of_all(
    tags: Sequence[str], steps: Int[np.ndarray, " T"], wall_times: Float[np.ndarray, " T"],
    floats: Float[np.ndarray, "T k"],
) -> Iterator[bytes]:  # fmt: skip
    """The same as `scalar_records`, if no value is missing."""
    sizes = _varint_size(np.asarray(steps, dtype=np.uint64))
    groups = np.split(np.arange(len(steps)), np.flatnonzero(np.diff(sizes)) + 1)
    for group in groups:
        for rows in np.split(group, range(ROWS, len(group), ROWS)):
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

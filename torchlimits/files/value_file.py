"""One value in a file: numbers, texts and tensors, and lists and dicts of these, with a checksum.

The first line names the format and has the crc32c of all bytes after it, which are those of
`torch.save`; a file that was damaged anywhere is refused, and nothing in it is executed. A power
cut may leave such a file, as writing does not wait for the disk.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import google_crc32c
import torch

from torchlimits.files.whole import replacing

_MAGIC = b"torchlimits.Value/1 crc32c "


def write(path: Path, value: Any) -> None:
    """Write a value, whole or not at all.

    Args:
        path: the file, in a folder that is made if it is not there.
        value: what ``torch.load(weights_only=True)`` can read.

    Raises:
        OSError: if it cannot be written; then what was at ``path`` is still there.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    body = buffer.getvalue()
    with replacing(path) as partial, partial.open("r+b") as file:
        file.write(_MAGIC + b"%08x\n" % google_crc32c.value(body) + body)


def read(path: Path) -> Any:
    """Return the value that `write` wrote, its tensors on the CPU.

    Raises:
        ValueError: if the file is damaged, or not one of these.
        OSError: if it cannot be read.
    """
    head, _, body = path.read_bytes().partition(b"\n")
    if not head.startswith(_MAGIC):
        raise ValueError("it is not a file of this format")
    if head != _MAGIC + b"%08x" % google_crc32c.value(body):
        raise ValueError("its checksum is not that of its content")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)

"""Threads: how many torch's operations take, and one that works ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Block = TypeVar("Block")


@contextmanager
def threads(count: int) -> Generator[None]:
    """Have torch's operations use ``count`` threads until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ahead(blocks: Iterator[Block], device: torch.device) -> Generator[Block]:
    """Yield the same blocks, each made by another thread while the one before it is used.

    Only on the CPU: other devices do their work in the background anyway, in the order of the
    stream that is current in the thread that asks for it.

    Args:
        blocks: made one after the other.
        device: where they are made.

    Example:
        >>> list(ahead(iter([1, 2, 3]), torch.device("cpu")))
        [1, 2, 3]
    """
    if device.type != "cpu":
        yield from blocks
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block

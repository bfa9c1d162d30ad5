"""Threads: how many operations take, those that share work or go ahead, and constants."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

Block = TypeVar("Block")
Item = TypeVar("Item")
Made = TypeVar("Made")
Given = ParamSpec("Given")


@contextmanager
def threads(count: int) -> Generator[None]:
    """Have torch's operations use ``count`` threads until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    work: Callable[[Item], Made], items: Sequence[Item], device: torch.device
) -> list[Made]:
    """What a function makes of each item, by as many threads as torch uses.

    Each thread takes one for its operations. On other devices than the CPU one item comes after
    the other.

    Args:
        work: the function.
        items: its arguments.
        device: where it works.

    Example:
        >>> side_by_side(lambda n: n**2, [1, 2, 3], torch.device("cpu"))
        [1, 4, 9]
    """
    # glibc asks the system for memory at every operation until it has seen this much freed at once
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
    workers = min(len(items), torch.get_num_threads())
    if workers <= 1 or device.type != "cpu":
        return [work(item) for item in items]
    with (
        threads(1),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        return list(pool.map(work, items))


def apart(function: Callable[[], Block]) -> Block:
    """What a function returns in a thread of its own.

    What torch.func makes inside a transformation belongs to it and cannot be used afterwards, nor
    can a graph that was being recorded; neither reaches another thread.

    Args:
        function: makes tensors.

    Example:
        >>> def twice(x):
        ...     kept.append(apart(lambda: torch.ones(2)))
        ...     return x * kept[0].sum()
        >>> kept = []
        >>> torch.func.grad(twice)(torch.tensor(1.0)), kept[0].sum()
        (tensor(2.), tensor(2.))
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()


def constant(function: Callable[Given, Block]) -> Callable[Given, Block]:
    """Keep what a function returns, made `apart`.

    Args:
        function: makes tensors from hashable arguments.

    Example:
        >>> ones = constant(lambda n: torch.ones(n))
        >>> torch.func.grad(lambda x: x * ones(2).sum())(torch.tensor(1.0)), ones(2).sum()
        (tensor(2.), tensor(2.))
    """

    @lru_cache(maxsize=64)
    def made(*given: Given.args, **named: Given.kwargs) -> Block:
        return apart(lambda: function(*given, **named))

    @wraps(function)
    def kept(*given: Given.args, **named: Given.kwargs) -> Block:
        return made(*given, **named)

    # as what functools caches has it
    kept.__dict__["cache_clear"] = made.cache_clear
    return kept


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

"""`seeded`: random numbers from a seed, which leave everybody else's generators as they were."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch


class _Source(NamedTuple):
    """A generator of the whole program: how its state is read and set, and the state to start."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    start: Any


@contextmanager
def seeded(seed: int, devices: Iterable[torch.device] = ()) -> Generator[None]:
    """Have the program's generators start at a seed inside the block, and restore them after it.

    They are torch's on the CPU and on the devices, Python's ``random`` and numpy's. States are set,
    and torch is given no seed: that would reach the generators of all devices, and start CUDA.

    Args:
        seed: an int >= 0.
        devices: those on which numbers may be drawn, beside the CPU.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     print(torch.equal(torch.rand(2), first))
        True
    """
    sources = _sources(seed, frozenset(d for d in devices if d.type not in ("cpu", "meta")))
    before = [source.read() for source in sources]

    def restore() -> None:
        for source, state in zip(sources, before, strict=True):
            source.write(state)

    try:
        try:
            for source in sources:
                source.write(source.start)
            yield
        finally:
            restore()
    finally:
        # once more: an interrupt may have ended the first
        restore()


@lru_cache(maxsize=16)
def _sources(seed: int, devices: frozenset[torch.device]) -> list[_Source]:
    own = torch.default_generator
    result = [
        _Source(random.getstate, random.setstate, random.Random(seed).getstate()),
        _Source(
            np.random.get_state,
            np.random.set_state,
            np.random.RandomState(seed % 2**32).get_state(),
        ),
        _Source(own.get_state, own.set_state, _start("cpu", seed)),
    ]
    return result + [_on_device(device, seed) for device in devices]


def _on_device(device: torch.device, seed: int) -> _Source:
    room: Any = torch.get_device_module(device)
    if device.type == "mps":  # there is one such device, and its functions take no argument for it
        return _Source(room.get_rng_state, room.set_rng_state, _start(device, seed))
    return _Source(
        lambda: room.get_rng_state(device),
        lambda state: room.set_rng_state(state, device),
        _start(device, seed),
    )


def _start(device: torch.device | str, seed: int) -> torch.Tensor:
    return torch.Generator(device).manual_seed(seed).get_state()

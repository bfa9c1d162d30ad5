"""Streams of random numbers: each depends on its own number, not on what is drawn beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

#: work, and its future in a pool
_Begun = tuple[Callable[[], None], Future[None]]


def generators(
    seed: int, numbers: Iterable[int], purpose: int = 0, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """Return generators, each of which depends only on seed, its number and purpose.

    torch takes 32 bits of a seed: the seeds run through them in odd strides, so that no two
    generators of one run are the same, which hashing would allow once in 10^5.

    Args:
        seed: the seed of the whole run, an int >= 0.
        numbers: one number for each generator, between 0 and 2^31 - 1.
        purpose: 0 or 1, which gives every number two streams.
        device: the device of the generators.

    Raises:
        ValueError: if the seed is not an int >= 0.

    Example:
        >>> (third,) = generators(0, [3])
        >>> third.initial_seed() == generators(0, range(10))[3].initial_seed()
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected seed as an int >= 0, got {seed!r}")
    offset, stride = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    return [
        torch.Generator(device).manual_seed(
            (offset + (2 * number + purpose) * (stride | 1)) % 2**32
        )
        for number in numbers
    ]


def stream(
    sample: Callable[..., tuple[Tensor, Tensor]], sources: Sequence[torch.Generator], *, lanes: int,
    length: int, workers: int = 1, steps: int | None = None,
) -> Generator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Yield data (x, y) of step after step for groups of replicas, drawn ahead.

    A group's data depend on its generator only, for given lanes and length. The tensors of a step
    are overwritten when ``length`` further steps have been asked for.

    Args:
        sample: ``sample(replicas=, generator=)`` -> x, y with these leading dimensions.
        sources: one generator for each group.
        lanes: the number of replicas in a group.
        length: the number of steps that are drawn at once.
        workers: the number of threads that share the groups; where they are late, the caller helps.
        steps: how many steps there are, the same ones whatever their number; None: without end.

    Example:
        >>> def sample(replicas, generator):
        ...     return torch.randn(*replicas, 5, generator=generator), torch.zeros(*replicas)
        >>> x, y = next(stream(sample, generators(0, range(3)), lanes=4, length=10))
        >>> x.shape, y.shape
        (torch.Size([12, 5]), torch.Size([12]))
    """

    # each group's generator and its first replica
    groups = list(zip(sources, range(0, lanes * len(sources), lanes), strict=True))

    def room() -> list[Tensor]:
        """Make tensors by steps, then by replicas: what one step reads lies together."""
        like = sample(replicas=(1, 1), generator=torch.Generator())
        # the rest of a block is drawn, so that numbers do not depend on steps, and not kept
        kept = length if steps is None else min(length, steps)
        return [part.new_empty(kept, lanes * len(sources), *part.shape[2:]) for part in like]

    def draw(into: list[Tensor], source: torch.Generator, first: int) -> None:
        parts = sample(replicas=(length, lanes), generator=source)
        for whole, part in zip(into, parts, strict=True):
            whole[:, first : first + lanes] = part[: len(whole)]

    rooms = itertools.cycle([room(), room()])
    with ThreadPoolExecutor(workers) as pool:

        def begun(into: list[Tensor]) -> list[_Begun]:
            work = [partial(draw, into, *group) for group in groups]
            return [(one, pool.submit(one)) for one in work]

        coming = next(rooms)
        draws = begun(coming)
        for left in itertools.repeat(length + 1) if steps is None else range(steps, 0, -length):
            _finish(draws)
            block = coming
            if left > length:
                coming = next(rooms)
                draws = begun(coming)
            yield from zip(*(part[:left].unbind() for part in block), strict=True)


def _finish(begun: list[_Begun]) -> None:
    """Wait for work, or do it here if no thread has begun it."""
    for work, future in reversed(begun):
        if future.cancel():
            work()
        else:
            future.result()


@contextmanager
def reproducible(generator: torch.Generator | None) -> Generator[None]:
    """Have the global generators follow a generator inside the block, and restore them after it."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    if generator.device.type != "cpu" or torch.cuda.is_initialized():
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
        return
    # the CPU's alone: asking for CUDA's would start it, which takes time and memory
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)

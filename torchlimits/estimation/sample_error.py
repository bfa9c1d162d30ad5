"""The error that a finite number of samples leaves in a solution of estimated dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from torchlimits.estimation.estimate import Sampler, checked_samples

#: a block of fewer samples says nothing about the solution that all of them have
LEAST = 32


class Replay:
    """A sampler that draws a number of samples once, and serves them from the first on.

    Args:
        sampler: what draws them.
        samples: how many.

    Example:
        >>> data = Replay(lambda batch, generator=None: torch.arange(batch), samples=6)
        >>> data.restart()
        >>> data(4), data(2), [block(3) for block in data.blocks(2)]
        (tensor([0, 1, 2, 3]), tensor([4, 5]), [tensor([0, 1, 2]), tensor([3, 4, 5])])
    """

    def __init__(self, sampler: Sampler, samples: int) -> None:
        self._sampler, self.samples = sampler, samples
        self._data: Any = None
        self._served = 0

    def restart(self) -> None:
        """Make the first sample the next one again."""
        self._served = 0

    def drawn(self, generator: torch.Generator | None = None) -> Any:
        """All samples; the ``generator`` draws them if they are not there yet."""
        if self._data is None:
            data = self._sampler(self.samples, generator=generator)
            self._data = checked_samples(data, self.samples)
        return self._data

    def blocks(self, count: int) -> list[Replay]:
        """The same samples in blocks of one size, without those that are left over.

        Args:
            count: how many blocks.
        """
        size = self.samples // count

        def of(number: int) -> Sampler:
            rows = slice(number * size, (number + 1) * size)
            return lambda batch, generator=None: pytree.tree_map(
                lambda x: x[rows], self.drawn(generator)
            )

        return [Replay(of(number), size) for number in range(count)]

    def __call__(self, batch: int, generator: torch.Generator | None = None) -> Any:
        """The next samples.

        Args:
            batch: how many.
            generator: draws all of them, the first time.
        """
        data = self.drawn(generator)
        rows = slice(self._served, self._served + batch)
        self._served += batch
        return pytree.tree_map(lambda x: x[rows], data)


def block_error(
    solve: Callable[[Replay], Float[Tensor, "..."]], data: Replay, blocks: int
) -> tuple[Float[Tensor, "..."] | None, str]:
    """The standard error of what all samples give, by what each block of them gives alone.

    The mean over the blocks has the error of all samples together, to leading order.

    Args:
        solve: what samples give.
        data: all samples.
        blocks: into how many to divide them, fewer where they would be too small.

    Returns:
        The error, or None; and what to say about it.
    """
    count = min(blocks, data.samples // LEAST)
    if count < 2:
        why = "not asked for" if blocks < 2 else f"not known from {data.samples} samples"
        return None, f"standard error {why}"
    try:
        found = torch.stack([solve(block) for block in data.blocks(count)])
    except (RuntimeError, ValueError) as error:
        size = data.samples // count
        return None, f"standard error not known: {size} samples alone have no solution: {error}"
    return found.std(0) / count**0.5, f"standard error by {count} blocks of the samples"

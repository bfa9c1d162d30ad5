"""`Data`: the fresh data of step after step, whose place can be kept and found again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from torchlimits import _random


class Data:
    """The data of groups of replicas, drawn ahead; they depend on the groups' generators only.

    Its state is small: the states that the generators had when they began to draw the block of
    steps that the present one is in.

    Args:
        sample: ``sample(replicas=, generator=)`` -> x, y with these leading dimensions.
        sources: one generator for each group.
        lanes: the number of replicas in a group.
        length: the number of steps that are drawn at once.
        total: how many steps there are, the first of which are the same whatever their number;
            None stands for no end.

    Attributes:
        steps: the number of steps whose data have been taken.

    Example:
        >>> def sample(replicas, generator):
        ...     return torch.randn(*replicas, generator=generator), torch.zeros(replicas)
        >>> def fresh():
        ...     return Data(sample, _random.generators(0, range(2)), lanes=1, length=4)
        >>> first, again = fresh(), fresh()
        >>> drawn = first.stream()
        >>> _ = [next(drawn) for _ in range(6)]
        >>> again.load_state_dict(first.state_dict())
        >>> torch.equal(next(again.stream())[0], next(drawn)[0]), again.steps
        (True, 7)
    """

    def __init__(
        self, sample: Callable[..., tuple[Tensor, Tensor]], sources: Sequence[torch.Generator], *,
        lanes: int, length: int, total: int | None = None,
    ) -> None:  # fmt: skip
        self._total = total
        self._sample, self._sources = sample, sources
        self._lanes, self._length = lanes, length
        self._number = {id(source): number for number, source in enumerate(sources)}
        self.steps = 0
        self._begin_at(0)

    def _begin_at(self, block: int) -> None:
        """Take the generators' present states for those at the beginning of a block."""
        self._first = block
        self._next = [block for _ in self._sources]
        #: for each group, the state at the beginning of the last few blocks
        self._states = [{block: source.get_state()} for source in self._sources]

    def _drawn(self, *, replicas: tuple[int, ...], generator: torch.Generator) -> Any:
        """Sample, and keep the state that a group's generator had before."""
        number = self._number.get(id(generator))
        if number is not None:
            block, states = self._next[number], self._states[number]
            states[block] = generator.get_state()
            states.pop(block - 3, None)
            self._next[number] = block + 1
        return self._sample(replicas=replicas, generator=generator)

    def stream(self, workers: int = 1) -> Generator[tuple[Tensor, Tensor]]:
        """Yield the data of every step from the present one on.

        Args:
            workers: the number of threads that draw.
        """
        before = self._first * self._length
        drawn = _random.stream(
            self._drawn, self._sources, lanes=self._lanes, length=self._length, workers=workers,
            steps=None if self._total is None else self._total - before,
        )  # fmt: skip
        with closing(drawn):
            known = self.steps - before
            for x, y in itertools.islice(drawn, known, None):
                self.steps += 1
                yield x, y

    def state_dict(self) -> dict[str, Any]:
        """Return where the data are, as numbers and tensors."""
        # the block of the last step taken: that of the next may not have been begun yet
        block = max(self._first, (self.steps - 1) // self._length)
        states = torch.stack([states[block] for states in self._states])
        return {"steps": self.steps, "block": block, "states": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; call it before `stream`."""
        for source, kept in zip(self._sources, state["states"], strict=True):
            source.set_state(kept.clone())  # which must own its memory
        self.steps = int(state["steps"])
        self._begin_at(int(state["block"]))

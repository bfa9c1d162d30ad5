"""`Copies`: how the tensors of a step get into the slots of a ring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Copies(ABC):
    """Writes tensors into one slot of each buffer.

    Example:
        >>> import torch
        >>> buffer = torch.zeros(3, 2)
        >>> copies_into([buffer]).write(1, [torch.ones(2)])
        >>> buffer.tolist()
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """

    @abstractmethod
    def write(self, slot: int, values: list[Tensor]) -> None:
        """Copy values, which need no gradient, into slot number ``slot``.

        Args:
            slot: its number.
            values: a tensor for each buffer, shaped as one slot of it.
        """


def copies_into(buffers: Sequence[Tensor]) -> Copies:
    """What writes into these buffers ``(capacity, *shape)``: numpy where it knows their memory."""
    try:
        return _ByNumpy([_array(buffer) for buffer in buffers])
    except TypeError:  # another device, or a type that numpy has not
        return _ByTorch(buffers)


class _ByTorch(Copies):
    """One fused kernel for all buffers."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        # the slots' views are made once: that costs more than the copy
        self._slots = list(zip(*(buffer.unbind() for buffer in buffers), strict=True))

    def write(self, slot: int, values: list[Tensor]) -> None:
        torch._foreach_copy_(self._slots[slot], values)  # type: ignore[reportPrivateImportUsage]


class _ByNumpy(Copies):
    """A copy from memory to memory for each buffer: a third of the time that the kernel takes."""

    def __init__(self, buffers: Sequence[np.ndarray]) -> None:
        # a dimension more: numpy makes numbers, not views, of the entries of a vector
        self._slots = list(zip(*(buffer[:, None] for buffer in buffers), strict=True))
        self._values: list[Tensor] = []
        self._arrays: list[np.ndarray] = []

    def write(self, slot: int, values: list[Tensor]) -> None:
        if values is not self._values:
            # the same list is the same memory
            self._arrays, self._values = [_array(value) for value in values], values
        for place, array in zip(self._slots[slot], self._arrays):  # noqa: B905
            place[...] = array


def _array(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, or TypeError."""
    return tensor.numpy()

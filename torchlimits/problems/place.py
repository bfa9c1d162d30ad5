"""`Place`: the device and dtype that a problem's data have."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

DeviceAndType = tuple[torch.device, torch.dtype]


class Place:
    """Beside the last model that there is: those that were made in passing leave no trace.

    Args:
        device, dtype: of the data as long as there is no model.

    Example:
        >>> place = Place(torch.device("cpu"), torch.float64)
        >>> parameter = torch.zeros(1)
        >>> place.follow(parameter)
        >>> place.now
        (device(type='cpu'), torch.float32)
        >>> place.follow(torch.zeros(1, dtype=torch.float16))  # which is gone at once
        >>> place.now
        (device(type='cpu'), torch.float32)
        >>> del parameter
        >>> place.now
        (device(type='cpu'), torch.float64)
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._default = (device, dtype)
        # a tuple: other threads may ask while one makes a model
        self._followed: tuple[weakref.ref[Tensor], ...] = ()

    def follow(self, parameter: Tensor) -> None:
        """From now on beside this parameter, wherever it is moved."""
        alive = (ref for ref in self._followed if ref() is not None)
        self._followed = (*alive, weakref.ref(parameter))

    @property
    def now(self) -> DeviceAndType:
        """Device and dtype."""
        for ref in reversed(self._followed):
            parameter = ref()
            if parameter is not None:
                return parameter.device, parameter.dtype
        return self._default

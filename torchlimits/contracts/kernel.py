"""`Kernel`: several training steps of all runs as one launch on the device; and `Gradients`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

#: sets ``.grad`` of every parameter of a model, from x and y
Gradients = Callable[[Tensor, Tensor], None]


class NoKernelError(ValueError):
    """There is no kernel for this training; the message says what it would need."""


class BrokenKernelError(NoKernelError):
    """There is a kernel, but it cannot be compiled on this machine."""


@runtime_checkable
class Kernel(Protocol):
    """Takes the parameters of a model through steps of training."""

    def advance(self, steps: int) -> None:
        """Take ``steps`` steps of training; the host need not wait for them."""
        ...


@runtime_checkable
class KnowsKernel(Protocol):
    """A problem whose training can be done by a `Kernel`."""

    def kernel(
        self, model: Any, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
    ) -> Kernel:
        """Return the kernel that trains this model, or raise a `NoKernelError`."""
        ...


@runtime_checkable
class KnowsGradients(Protocol):
    """A problem that has the gradients of its model's loss in closed form."""

    def gradients(self, model: Any) -> Gradients:
        """Return a function (x, y) that does what autograd would, or raise a `NoKernelError`."""
        ...

"""`Kernel`: several training steps of all runs as one launch on the device."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from torchlimits.record.tracker import Tracker

#: steps of one launch at most: a screen that hangs on the same GPU waits for it to end
_AT_ONCE = 64


class NoKernelError(ValueError):
    """There is no kernel for this training; the message says what it would need."""


class BrokenKernelError(NoKernelError):
    """There is one, but it cannot be compiled here."""


class Kernel(Protocol):
    """Takes the parameters of a model through steps of training."""

    def advance(self, steps: int) -> None:
        """Take so many steps; the host need not wait for them."""
        ...


@runtime_checkable
class KnowsKernel(Protocol):
    """A problem whose training can be done by a `Kernel`."""

    def kernel(
        self, model: Any, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
    ) -> Kernel:
        """The kernel for runs of a model, or a `NoKernelError`."""
        ...


def kernel_for(
    problem: object, model: nn.Module, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
) -> Kernel:
    """A problem's kernel, compiled.

    Raises:
        NoKernelError: if it has none for this training.
        BrokenKernelError: if it cannot be compiled: without a C compiler, for instance.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise NoKernelError(f"expected a model on CUDA, got one on {device}")
    if not isinstance(problem, KnowsKernel):
        raise NoKernelError(f"expected a problem with a kernel, got {type(problem).__name__}")
    kernel = problem.kernel(model, optimizer, batch_size=batch_size, seed=seed)
    try:
        kernel.advance(0)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        raise BrokenKernelError(
            f"expected a kernel that can be compiled, got {type(error).__name__}: {what}"
        ) from error
    return kernel


def advanced(kernel: Kernel, tracker: Tracker) -> Generator[None]:
    """Step after step, without end; as many at once as the tracker leaves unrecorded.

    Args:
        kernel: moves the parameters.
        tracker: records them; it is told of every step here.
    """
    tracker.remove()
    while True:
        steps = min(_AT_ONCE, tracker.every - tracker.step % tracker.every)
        kernel.advance(steps)
        for _ in range(steps):
            tracker.stepped()
            yield

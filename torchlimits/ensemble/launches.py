"""Launches of a problem's kernel: how many steps each takes, and which states are recorded."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import nn

from torchlimits.contracts.kernel import BrokenKernelError, Kernel, KnowsKernel, NoKernelError
from torchlimits.record.tracker import Tracker

#: at most this many steps in one launch, as a screen on the same GPU waits for it to end
_AT_ONCE = 64


def kernel_for(
    problem: object, model: nn.Module, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
) -> Kernel:
    """Return a problem's kernel, compiled.

    Raises:
        NoKernelError: if the problem has none for this training.
        BrokenKernelError: if the kernel cannot be compiled: without a C compiler, for instance.
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
    """Take step after step, without end; as many in a launch as the tracker leaves unrecorded.

    Args:
        kernel: moves the parameters.
        tracker: records the parameters; it is told of every step here.
    """
    tracker.remove()
    while True:
        steps = min(_AT_ONCE, tracker.every - tracker.step % tracker.every)
        kernel.advance(steps)
        for _ in range(steps):
            tracker.stepped()
            yield

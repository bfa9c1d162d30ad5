"""`Surroundings`: what statistics are evaluated in, wherever in the user's loop a flush comes."""

# numpy's older generators are shared by everybody, statistics among them
# ruff: noqa: NPY002

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchlimits._exact import exactly
from torchlimits.statistics.seeded import seeded

#: random numbers that statistics draw begin here for every row
_SEED = 0
_AUTOCAST = ("cpu", "cuda")


class Surroundings:
    """Evaluates without autocast, autograd or inference mode, and with the defaults at the start.

    A row is a function of the model's state: it depends neither on the default device and dtype
    that a later flush finds, nor on the generators of random numbers.

    Attributes:
        draws: whether statistics draw random numbers; then these are the same for each row, and
            afterwards the generators of the training are as they were before.

    Example:
        >>> surroundings = Surroundings()
        >>> with torch.device("meta"), surroundings.entered():
        ...     torch.zeros(1).device
        device(type='cpu')
        >>> surroundings.draws = True
        >>> draws = []
        >>> for _ in range(2):
        ...     with surroundings.row():
        ...         draws.append(float(torch.rand(())))
        >>> draws[0] == draws[1]
        True
    """

    def __init__(self) -> None:
        self._device, self._dtype = torch.get_default_device(), torch.get_default_dtype()
        self.draws = False

    @contextmanager
    def entered(self) -> Generator[None]:
        """Enter the modes in which any number of rows is evaluated."""
        with _Kept(), ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(exactly())
            if torch.get_default_device() != self._device:
                stack.enter_context(self._device)
            if torch.get_default_dtype() != self._dtype:
                torch.set_default_dtype(self._dtype)
            yield

    @contextmanager
    def row(self) -> Generator[None]:
        """Seed the generators for one row, if statistics draw: numbers are the same for each."""
        if not self.draws:
            yield
            return
        with seeded(_SEED, [torch.device("cuda", index) for index in _cuda()]):
            yield

    def generators(self) -> list[Any]:
        """The states of the generators that everybody shares: Python's, numpy's, torch's."""
        on_cuda = [torch.cuda.get_rng_state(index) for index in _cuda()]
        return [random.getstate(), np.random.get_state(), torch.get_rng_state(), *on_cuda]

    def restore(self, states: list[Any]) -> None:
        """Set what `generators` returned."""
        python, numpy, cpu, *on_cuda = states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        # statistics may be the first to use CUDA
        for index, state in enumerate(on_cuda):
            torch.cuda.set_rng_state(state, index)


def _cuda() -> range:
    # asking for more would start CUDA, which takes time and memory
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


class _Kept:
    """Puts back what a block changes of torch's modes, even if an interrupt ended its cleaning."""

    def __enter__(self) -> None:
        self._grad, self._dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        self._autocast = [torch.is_autocast_enabled(kind) for kind in _AUTOCAST]

    def __exit__(self, *error: object) -> None:
        torch.set_grad_enabled(self._grad)
        if torch.get_default_dtype() != self._dtype:
            torch.set_default_dtype(self._dtype)
        for kind, enabled in zip(_AUTOCAST, self._autocast, strict=True):
            if torch.is_autocast_enabled(kind) != enabled:
                torch.set_autocast_enabled(kind, enabled)


def exact(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32, so that sums over many entries keep their digits."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor

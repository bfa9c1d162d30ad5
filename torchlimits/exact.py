"""`exactly`: arithmetic in the precision of the tensors, whatever the training asks for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

#: what torch.autocast may be on for
_TYPES = ("cpu", "cuda")


@contextmanager
def exactly() -> Generator[None]:
    """Neither autocast nor TensorFloat-32 nor autograd, until the end of the block.

    A flush comes wherever the user's loop happens to be. Inside ``torch.autocast`` matrix products
    would be rounded to bfloat16, and with ``torch.set_float32_matmul_precision("high")`` to ten
    bits: rows would depend on the clock, and a Gram matrix on what it was projected from.

    The precision of matrix products is a setting of the whole program, which is touched only where
    it is not the highest already.

    Example:
        >>> import torch
        >>> x = torch.full((1, 1), 1.001)
        >>> with torch.autocast("cpu", torch.bfloat16), exactly():
        ...     (x @ x).dtype
        torch.float32
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in _TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_highest_precision())
        yield


@contextmanager
def _highest_precision() -> Generator[None]:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn]
    backends[1] = getattr(backends[1], "matmul", None)
    if hasattr(backends[0], "fp32_precision"):  # torch 2.9; the older interface warns of a mixture
        before = [(one, one.fp32_precision) for one in backends]
        lower = [(one, value) for one, value in before if value not in ("ieee", "none")]
        for one, _ in lower:
            one.fp32_precision = "ieee"
        try:
            yield
        finally:
            for one, value in lower:
                one.fp32_precision = value
        return
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)

"""`Replayed`: a function of tensors whose operations are recorded once and then repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: calls after which it pays to record the operations, which takes as long as some hundred calls
_PATIENCE = 200

Function = Callable[..., tuple[Tensor, ...]]


class Replayed:
    """A function that is called many times with tensors of the same shapes.

    vmap, functional_call and autograd take longer than the sums of a small head. They result
    in a list of operations, the same for all tensors of the same shapes; after some calls only
    those are done. They are the same operations in the same order, so results are the same to
    the last bit. A function that cannot be recorded (it asks for values) goes on being called.

    Args:
        function: takes tensors and returns a tuple of tensors, without side effects or memory.
        patience: calls with tensors of the same shapes before the operations are recorded.

    Example:
        >>> import torch
        >>> def slope(x):
        ...     x = x.detach().requires_grad_()
        ...     return torch.autograd.grad(x.square().sum(), x)
        >>> fast = Replayed(slope, patience=1)
        >>> [fast(torch.ones(2) * i)[0].tolist() for i in (1, 2, 3)]
        [[2.0, 2.0], [4.0, 4.0], [6.0, 6.0]]
    """

    def __init__(self, function: Function, patience: int = _PATIENCE) -> None:
        self.function, self.patience = function, patience
        self._calls: dict[object, int] = {}
        #: the recorded operations, for each set of shapes
        self._operations: dict[object, Function] = {}

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The function's values.

        Args:
            tensors: the arguments, on one device.
        """
        key = tuple((t.shape, t.dtype, t.device) for t in tensors)
        operations = self._operations.get(key)
        if operations is not None:
            with torch.no_grad():
                return operations(*tensors)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        values = self.function(*tensors)
        if calls == self.patience:  # once only, as it may not work
            self._write_down(key, tensors, values)
        return values

    def _write_down(
        self, key: object, tensors: tuple[Tensor, ...], values: tuple[Tensor, ...]
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            # make_fx would count the self of a method among the tensors
            operations = make_fx(lambda *given: self.function(*given))(*tensors)
            with torch.no_grad():
                again = operations(*tensors)
        except Exception:  # whatever a user's own code raises there; called as it is, it works
            return
        if all(torch.equal(a, b) for a, b in zip(again, values, strict=True)):
            self._operations[key] = operations

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_calls": {}, "_operations": {}}

"""How much memory an evaluation takes, and how many of them `torch.func.vmap` makes at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Footprint(TorchDispatchMode):
    """Adds up what the operations in a block make: a bound on what they hold at any time.

    The shapes alone decide, and not what the allocator does: the sum is the same on every run.

    Attributes:
        nbytes: the sum, without views.

    Example:
        >>> x = torch.ones(100)
        >>> with Footprint() as footprint:
        ...     _ = (x.reshape(10, 10) + 1).sum()
        >>> footprint.nbytes
        404
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.nbytes += sum(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))
        return result


def multiplicity(tensors: list[Tensor]) -> int:
    """How many evaluations `torch.func.vmap` makes of one call with these tensors.

    Example:
        >>> seen = []
        >>> def f(x):
        ...     seen.append(multiplicity([x]))
        ...     return x
        >>> _ = torch.func.vmap(torch.func.vmap(f))(torch.ones(3, 5))
        >>> seen
        [15]
    """
    count = _Count()
    with torch.no_grad():
        _Levels.apply(count, *(x.detach() for x in tensors))
    return count.product


class _Count:
    """A number in an object of its own, which torch.func hands on as it is."""

    product = 1


class _Levels(torch.autograd.Function):
    """A function of nothing, to which each level of vmap around it tells its size."""

    @staticmethod
    def forward(count: _Count, *tensors: Tensor) -> Tensor:
        return torch.empty(0, device="cpu")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Any, None]:
        args[0].product *= info.batch_size
        return _Levels.apply(*args), None

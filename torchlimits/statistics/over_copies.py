"""Functions of one model's tensors, for tensors with leading dimensions: replicas, snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits.statistics.quadratic import near
from torchlimits.statistics.reads import ReadRecorder


class OverCopies:
    """A function of one module's tensors, for tensors with any leading dimensions.

    Args:
        function: a function of ``{name: tensor}`` of one module.
        dims: how many dimensions each tensor of one module has.

    Example:
        >>> norms = OverCopies(lambda p: p["weight"].norm(), {"weight": 2})
        >>> norms({"weight": torch.ones(5, 2, 3)}).shape
        torch.Size([5])
    """

    def __init__(self, function: Any, dims: Mapping[str, int]) -> None:
        self.function, self.dims = function, dims

    def near(self, parameters: Any) -> OverCopies:
        """The same function, with what it holds moved to where the parameters are."""
        return OverCopies(near(self.function, parameters), self.dims)

    def bound(self, module: nn.Module) -> OverCopies:
        """The same function, bound to the module if it needs the module itself."""
        if not hasattr(self.function, "bound"):
            return self
        return OverCopies(self.function.bound(module), self.dims)

    def __call__(self, parameters: Any) -> Tensor:
        """The values of all copies, with the leading dimensions of the parameters."""
        # vmap takes plain dicts only; of anything else, one copy shows what is read
        given = parameters if type(parameters) is dict else self._read(parameters)
        leading = next(
            (x.ndim - self._dims_of(n) for n, x in given.items() if self._known(n)), None
        )
        if leading is None:
            raise ValueError(
                f"expected a statistic that reads one of {list(self.dims)}, got one that reads "
                f"{list(given)}: how many models there are is seen from these alone"
            )
        evaluated = self.function
        for _ in range(leading):
            evaluated = torch.func.vmap(evaluated)
        return evaluated(given)

    def _read(self, parameters: Any) -> dict[str, Tensor]:
        recorder = ReadRecorder(_First(parameters, self), {})
        self.function(recorder)
        return {name: parameters[name] for name in recorder.read}

    def _known(self, name: str) -> bool:
        return name in self.dims or name.rpartition(".")[0] in self.dims

    def _dims_of(self, name: str) -> int:
        """The dimensions of a tensor of one module; a gradient has those of its parameter."""
        return self.dims[name if name in self.dims else name.rpartition(".")[0]]

    def first(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor of the first copy."""
        while tensor.ndim > self._dims_of(name):
            tensor = tensor[0]
        return tensor


class _First(Mapping[str, Tensor]):
    """The tensors of the first copy."""

    def __init__(self, tensors: Mapping[str, Tensor], copies: OverCopies) -> None:
        self._tensors, self._copies = tensors, copies

    def __getitem__(self, name: str) -> Tensor:
        return self._copies.first(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

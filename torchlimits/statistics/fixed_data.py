"""`FixedData`: the inputs, and targets, on which statistics of the module are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.statistics.of_model import OfModel
from torchlimits.statistics.quadratic import Parameters

Inputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, eq=False)
class FixedData:
    """n inputs of a module, with n targets or without.

    Args:
        positional: what the module is called with, each ``(n, ...)``.
        named: the same, by name.
        targets: ``(n, ...)`` or None.
        batch: how many samples the module gets at once; None stands for all.

    Example:
        >>> data = FixedData.of(torch.arange(5.0)[:, None], torch.zeros(5), batch=2)
        >>> [(len(part), fraction) for part, fraction in data.parts()]
        [(2, 0.4), (2, 0.4), (1, 0.2)]
    """

    positional: tuple[Tensor, ...]
    named: dict[str, Tensor]
    targets: Tensor | None = None
    batch: int | None = None

    @classmethod
    def with_targets(cls, inputs: Any, targets: Any, batch: int | None = None) -> FixedData:
        """Copies of inputs and targets that a user gave, or TypeError or ValueError."""
        if targets is None:
            raise TypeError("expected targets as a tensor (n, ...), got None")
        return cls.of(inputs, targets, batch)

    @classmethod
    def of(cls, inputs: Any, targets: Any = None, batch: int | None = None) -> FixedData:
        """Copies of inputs that a user gave, or TypeError or ValueError."""
        named = dict(inputs) if isinstance(inputs, Mapping) else {}
        single = isinstance(inputs, Tensor)
        positional = (inputs,) if single else () if named else _tuple_of(inputs)
        told = {**{f"inputs[{i}]": x for i, x in enumerate(positional)}, **named}
        if single:
            told = {"inputs": inputs}
        if targets is not None:
            told["targets"] = targets
        _check_sizes(told)
        if batch is not None:
            _checks.positive_int("batch", batch)
        # copies: what the user does with theirs must not change the rows
        return cls(
            tuple(x.detach().clone() for x in positional),
            {name: x.detach().clone() for name, x in named.items()},
            None if targets is None else targets.detach().clone(),
            batch,
        )

    def near(self, parameters: Parameters) -> FixedData:
        """The same data on the parameters' device: floats in their dtype, if they have just one."""
        floats = [x for x in parameters.values() if x.is_floating_point()]
        if not floats:
            return self
        dtypes = {x.dtype for x in floats}

        def moved(x: Tensor) -> Tensor:
            alike = x.is_floating_point() and len(dtypes) == 1
            return x.to(floats[0].device, floats[0].dtype if alike else x.dtype)

        return replace(
            self,
            positional=tuple(map(moved, self.positional)),
            named={name: moved(x) for name, x in self.named.items()},
            targets=None if self.targets is None else moved(self.targets),
        )

    def __len__(self) -> int:
        return len(next(iter([*self.positional, *self.named.values()])))

    def output(self, module: nn.Module) -> Any:
        """What the module returns for all inputs."""
        return module(*self.positional, **self.named)

    def parts(self) -> Iterator[tuple[FixedData, float]]:
        """The batches, and which fraction of the samples each of them is."""
        n = len(self)
        if self.batch is None or self.batch >= n:
            yield self, 1.0
            return
        for start in range(0, n, self.batch):
            here = slice(start, start + self.batch)
            part = replace(
                self,
                positional=tuple(x[here] for x in self.positional),
                named={name: x[here] for name, x in self.named.items()},
                targets=None if self.targets is None else self.targets[here],
            )
            yield part, len(part) / n


@dataclass(frozen=True, eq=False)
class OnData(OfModel):
    """A statistic of the module on fixed data, which is moved to the parameters' device."""

    data: FixedData

    def near(self, parameters: Parameters) -> OfModel:
        """The same statistic, with the data on the device of ``parameters``."""
        return replace(self, data=self.data.near(parameters))


def mean_loss(loss: Loss, module: nn.Module, data: FixedData) -> Tensor:
    """The loss on all of the data at once, a scalar."""
    value = loss(data.output(module), data.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            "expected loss(output, target) to return its mean over the samples, a tensor with one "
            f"entry, got {what}: use reduction='mean', or .mean()"
        )
    return value.reshape(())


def mean(of: Callable[[FixedData], Tensor], data: FixedData) -> Tensor:
    """The mean over batches of a mean over samples."""
    values = [of(part) * fraction for part, fraction in data.parts()]
    return torch.stack(values).sum(0)


def check_loss(loss: object) -> None:
    """Raise TypeError unless the loss is something to call."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            "expected loss as a function loss(output, target), such as "
            f"torch.nn.functional.cross_entropy, got {loss!r}"
        )


def _tuple_of(inputs: Any) -> tuple[Tensor, ...]:
    if not isinstance(inputs, (tuple, list)):
        raise TypeError(
            "expected inputs as a tensor (n, ...), a tuple of them, or a dict of them by the "
            f"names of the module's arguments, got {type(inputs).__name__}"
        )
    return tuple(inputs)


def _check_sizes(told: Mapping[str, Any]) -> None:
    if not told.keys() - {"targets"}:
        raise ValueError("expected at least one input, got none")
    for name, x in told.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"expected {name} as a tensor (n, ...), got {type(x).__name__}")
    sizes = {name: x.shape[0] if x.ndim else None for name, x in told.items()}
    if len(set(sizes.values())) != 1 or not all(sizes.values()):
        raise ValueError(
            "expected inputs and targets of the same n >= 1 samples along their first dimension, "
            f"got shapes { ({name: tuple(x.shape) for name, x in told.items()}) }"
        )

"""`Source`: where one tensor that a statistic reads is found, step after step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchlimits.record.own_names import whole
from torchlimits.statistics.slow_variable import has_slow_variable, slow_value


class Source(ABC):
    """A tensor by its name, wherever training keeps it."""

    name: str

    @abstractmethod
    def now(self) -> Tensor | None:
        """The present tensor, as training has it; None if there is none at this step."""

    @abstractmethod
    def absent(self) -> Tensor:
        """What stands for a tensor that is not there."""

    def is_meta(self) -> bool:
        """Whether there is a tensor without values."""
        tensor = self.now()
        return tensor is not None and tensor.is_meta

    def whole(self) -> Tensor:
        """The present values, without autograd, of all processes that share the tensor.

        Raises:
            ValueError: if it has no values.
        """
        tensor = self.now()
        if tensor is None:
            return self.absent()
        if tensor.is_meta:
            raise ValueError(
                f"expected tensors with values, got {self.name!r} on the meta device: call "
                "model.to_empty(device=...) and initialise it, or remove the tracker before"
            )
        if tensor.layout is not torch.strided:
            tensor = tensor.detach().to_dense()
        return whole(tensor)


@dataclass(frozen=True)
class Parameter(Source):
    """A parameter, in the place where its module keeps it."""

    name: str
    owner: dict[str, Any]
    leaf: str

    def now(self) -> Tensor | None:
        """The parameter."""
        return self.owner.get(self.leaf)

    def absent(self) -> Tensor:
        """Raise ValueError: it was there before."""
        raise ValueError(
            f"expected a model with {self.name!r}, as at step 0, got one without: make another "
            "tracker for other parameters"
        )


@dataclass(frozen=True)
class Shard(Source):
    """A parameter that several processes share: a whole one takes its place for a while."""

    name: str
    parameter: nn.Parameter

    def now(self) -> Tensor | None:
        """What this process has of it."""
        return self.parameter

    def absent(self) -> Tensor:
        """Raise AssertionError: it is there."""
        raise AssertionError("unreachable")


class Buffer(Parameter):
    """A buffer: modules may put another tensor in its place at every step."""


@dataclass(frozen=True)
class Gradient(Source):
    """The gradient of a parameter: what the optimizer's last step used.

    There is none at step 0, nor where a step's loss does not depend on the parameter.
    """

    name: str
    parameter: nn.Parameter

    def now(self) -> Tensor | None:
        """The ``.grad``, or None."""
        return self.parameter.grad

    def absent(self) -> Tensor:
        """Zeros: the recorder knows that they stand for no gradient."""
        return torch.zeros_like(whole(self.parameter), memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class OptimizerState(Source):
    """What the optimizer keeps for a parameter under a key of its state; zeros before step 1."""

    name: str
    optimizer: Optimizer
    parameter: nn.Parameter
    key: str

    def now(self) -> Tensor | None:
        """The present value, or None before the parameter's first step."""
        state = self.optimizer.state.get(self.parameter)
        if not state:
            return None
        if self.key not in state:
            raise KeyError(self.name)
        value = state[self.key]
        if value is None or isinstance(value, Tensor):
            return value
        return torch.tensor(float(value), device=self.parameter.device)

    def absent(self) -> Tensor:
        """Zeros, in the shape that the state will have."""
        return self._zeros.clone()

    @cached_property
    def _zeros(self) -> Tensor:
        known = _first_state(self.optimizer, self.parameter)
        if known is None:  # nobody knows before the first step: the shape that most have
            return torch.zeros_like(whole(self.parameter))
        if known.get(self.key) is None:
            raise KeyError(self.name)
        return torch.zeros_like(torch.as_tensor(known[self.key], device=self.parameter.device))


@dataclass(frozen=True)
class SlowVariable(Source):
    """The slow variable of a parameter under momentum: itself before its first step."""

    name: str
    optimizer: Optimizer
    parameter: nn.Parameter

    def now(self) -> Tensor | None:
        """The present value, by the present learning rate."""
        state = self.optimizer.state.get(self.parameter)
        return slow_value(self.parameter, self._group, state)

    def absent(self) -> Tensor:
        """Raise AssertionError: it is there."""
        raise AssertionError("unreachable")

    @property
    def _group(self) -> dict[str, Any]:
        # loading a state replaces the groups; most have few parameters before this one
        for group in self.optimizer.param_groups:
            if any(self.parameter is p for p in group["params"]):
                return group
        raise KeyError(self.name)


def slow_variable_of(name: str, optimizer: Optimizer, parameter: nn.Parameter) -> SlowVariable:
    """Where the slow variable of a parameter is found.

    Raises:
        TypeError: if the optimizer is another than SGD, Adam and AdamW.
    """
    if not has_slow_variable(optimizer):
        raise TypeError(
            f"expected torch.optim.SGD, Adam or AdamW for {name!r}, whose memory of gradients the "
            f"slow variable is without, got {type(optimizer).__name__}: record the statistics of "
            "the parameters"
        )
    return SlowVariable(name, optimizer, parameter)


def _first_state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """What an optimizer of the same kind keeps for such a parameter after a step, or None."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    twin = nn.Parameter(torch.zeros_like(whole(parameter)))
    twin.grad = torch.zeros_like(twin)
    try:
        kind: Any = type(optimizer)
        trial = kind([{**group, "params": [twin]}])
        trial.step()
    except Exception:
        # an optimizer that wants a closure, or more than parameters to be made
        return None
    return dict(trial.state[twin])

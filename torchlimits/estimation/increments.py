"""How statistics change along gradients: to first and second order, and in a whole SGD step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from torchlimits.statistics.quadratic import Gradient, OuterGradient, Parameters, Quadratic


class Step(NamedTuple):
    """A step of SGD, x -> x - delta (pull + g), from a point x.

    Attributes:
        parameters: all parameters at x.
        centre: roughly the mean of g, for the parameters that move.
        size: the step size delta.
        pulls: what weight decay adds to g, the same in every step, where there is any.
    """

    parameters: Parameters
    centre: Mapping[str, Tensor]
    size: float
    pulls: Mapping[str, Tensor]


class Rows(NamedTuple):
    """The increments along a batch of gradients g_s, each of shape ``(B, *value)``."""

    #: Du[g_s]
    along: Tensor
    #: D^2 u[h_s, h_s] / 2 with h_s = g_s - centre
    curved: Tensor
    #: (u(X_1) - u(x)) / delta
    whole: Tensor


class Increments(ABC):
    """The increments of functions of the parameters, ``{name: in the shape of its value}``."""

    @abstractmethod
    def first(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Du[direction]."""

    @abstractmethod
    def second(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return D^2 u[direction, direction] / 2."""

    @abstractmethod
    def rows(self, gradients: Mapping[str, Gradient]) -> dict[str, Rows]:
        """Return the increments along each gradient of a batch."""


class QuadraticIncrements(Increments):
    """Increments of a quadratic function, which end with the second order."""

    def __init__(self, name: str, function: Quadratic, step: Step) -> None:
        self.name, self.function, self.step = name, function, step
        self.centre = step.centre.get(function.parameter)
        # u is quadratic: the pull's own increment, and derivatives at where it alone would lead
        self.pulled, self.ridge = step.parameters, torch.zeros_like(function(step.parameters))
        pull = step.pulls.get(function.parameter)
        if pull is not None:
            along, bend = self._changes(pull)
            self.ridge = step.size * bend - along
            x = step.parameters[function.parameter]
            self.pulled = {**step.parameters, function.parameter: x - step.size * pull}

    def first(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return Du[direction]."""
        own = direction.get(self.function.parameter)
        return {self.name: torch.zeros_like(self.ridge) if own is None else self._changes(own)[0]}

    def second(self, direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return D^2 u[direction, direction] / 2."""
        own = direction.get(self.function.parameter)
        return {self.name: torch.zeros_like(self.ridge) if own is None else self._changes(own)[1]}

    def _changes(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        assert self.centre is not None
        along, _, bend = self.function.changes(self.step.parameters, direction[None], self.centre)
        return along[0], torch.zeros_like(self.ridge) if bend is None else bend[0]

    def rows(self, gradients: Mapping[str, Gradient]) -> dict[str, Rows]:
        """Return the increments along each gradient of a batch."""
        return {self.name: self._rows(gradients)}

    def _rows(self, gradients: Mapping[str, Gradient]) -> Rows:
        if self.centre is None:
            zero = self.ridge.expand(_length(gradients), *self.ridge.shape)
            return Rows(zero, zero, zero)
        gradient = gradients[self.function.parameter]
        along, bend, kick = self.function.changes(self.step.parameters, gradient, self.centre)
        pulled = self.pulled is not self.step.parameters
        whole = self.ridge - (self.function.along(self.pulled, gradient) if pulled else along)
        if bend is None or kick is None:
            return Rows(along, torch.zeros_like(along), whole)
        return Rows(along, bend, whole + self.step.size * kick)


def _length(gradients: Mapping[str, Gradient]) -> int:
    gradient = next(iter(gradients.values()))
    return len(gradient.left if isinstance(gradient, OuterGradient) else gradient)

"""How a statistic changes along gradients: to first and second order, and in a whole SGD step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from torchlimits import _checks
from torchlimits.statistics.quadratic import Gradient, OuterGradient, Parameters, Quadratic, dense
from torchlimits.statistics.statistic_error import StatisticError
from torchlimits.statistics.summary import StatisticFunction


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
    """The increments of one function of the parameters, in the shape of its value."""

    @abstractmethod
    def first(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return Du[direction]."""

    @abstractmethod
    def second(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return D^2 u[direction, direction] / 2."""

    @abstractmethod
    def rows(self, gradients: Mapping[str, Gradient]) -> Rows:
        """Return the increments along each gradient of a batch."""


def increments_of(name: str, function: StatisticFunction, step: Step) -> Increments:
    """Return increments by the function's own derivatives if it has them, else by torch.func."""
    if isinstance(function, Quadratic):
        return QuadraticIncrements(function, step)
    return GeneralIncrements(name, function, step)


class QuadraticIncrements(Increments):
    """Increments of a quadratic function, which end with the second order."""

    def __init__(self, function: Quadratic, step: Step) -> None:
        self.function, self.step = function, step
        self.centre = step.centre.get(function.parameter)
        # u is quadratic: the pull's own increment, and derivatives at where it alone would lead
        self.pulled, self.ridge = step.parameters, torch.zeros_like(function(step.parameters))
        pull = step.pulls.get(function.parameter)
        if pull is not None:
            along, bend = self._changes(pull)
            self.ridge = step.size * bend - along
            x = step.parameters[function.parameter]
            self.pulled = {**step.parameters, function.parameter: x - step.size * pull}

    def first(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return Du[direction]."""
        own = direction.get(self.function.parameter)
        return torch.zeros_like(self.ridge) if own is None else self._changes(own)[0]

    def second(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return D^2 u[direction, direction] / 2."""
        own = direction.get(self.function.parameter)
        return torch.zeros_like(self.ridge) if own is None else self._changes(own)[1]

    def _changes(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        assert self.centre is not None
        along, _, bend = self.function.changes(self.step.parameters, direction[None], self.centre)
        return along[0], torch.zeros_like(self.ridge) if bend is None else bend[0]

    def rows(self, gradients: Mapping[str, Gradient]) -> Rows:
        """Return the increments along each gradient of a batch."""
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


class GeneralIncrements(Increments):
    """Increments of a function that torch.func differentiates twice, in forward mode."""

    def __init__(self, name: str, function: StatisticFunction, step: Step) -> None:
        self.name, self.function, self.step = name, function, step
        self.moving = {n: step.parameters[n] for n in step.centre}
        self.fixed = {n: p for n, p in step.parameters.items() if n not in self.moving}
        self.along_centre = self.first(step.centre)
        # differences of numbers delta apart: in float64, if the function accepts it
        exact = {n: p.double() for n, p in step.parameters.items()}
        try:
            function(exact)
        except Exception:  # it holds float32 tensors of its own
            exact = dict(step.parameters)
        self.exact_fixed = {n: exact[n] for n in self.fixed}
        self.start = {
            n: exact[n] - step.size * step.pulls[n].to(exact[n]) if n in step.pulls else exact[n]
            for n in self.moving
        }
        self.value = self._exact({n: exact[n] for n in self.moving})

    def first(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return Du[direction]."""
        with self._explained():
            tangents = {n: direction.get(n, torch.zeros_like(x)) for n, x in self.moving.items()}
            return jvp(self._of, (self.moving,), (tangents,))[1]

    def second(self, direction: Mapping[str, Tensor]) -> Tensor:
        """Return D^2 u[direction, direction] / 2."""
        with self._explained():
            return self._nested(dict(direction))[1] / 2

    def rows(self, gradients: Mapping[str, Gradient]) -> Rows:
        """Return the increments along each gradient of a batch."""
        tensors = {n: dense(gradients[n]) for n in self.moving}
        centred = {n: g - self.step.centre[n] for n, g in tensors.items()}
        moved = {n: x - self.step.size * tensors[n].to(x) for n, x in self.start.items()}
        with self._explained():
            first, second = vmap(self._nested)(centred)
            whole = (vmap(self._exact)(moved) - self.value) / self.step.size
        return Rows(first + self.along_centre, second / 2, whole)

    def _nested(self, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def along(moving: dict[str, Tensor]) -> Tensor:
            return jvp(self._of, (moving,), (direction,))[1]

        found = jvp(along, (self.moving,), (direction,))
        return found[0], found[1]

    def _of(self, moving: Mapping[str, Tensor]) -> Tensor:
        # + 0, as vmap wants a value that depends on what it maps over
        return self.function({**self.fixed, **moving}) + 0 * _any_entry(moving)

    def _exact(self, moving: Mapping[str, Tensor]) -> Tensor:
        return self.function({**self.exact_fixed, **moving}) + 0 * _any_entry(moving)

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            raise StatisticError(
                f"expected statistic {self.name!r} to be one that torch.func can differentiate "
                "twice (vmap of jvp of jvp: no .item(), no branches on values), got "
                f"{type(error).__name__}: {error}; it was given "
                + _checks.shapes(self.step.parameters)
            ) from error


def _any_entry(parameters: Mapping[str, Tensor]) -> Tensor:
    return next(iter(parameters.values())).reshape(-1)[0]


def _length(gradients: Mapping[str, Gradient]) -> int:
    gradient = next(iter(gradients.values()))
    return len(gradient.left if isinstance(gradient, OuterGradient) else gradient)

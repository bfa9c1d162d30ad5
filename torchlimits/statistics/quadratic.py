"""Statistics that are linear or quadratic in one parameter: they know their own derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class OuterGradient:
    r"""Gradients of a weight that are outer products, :math:`g_s = a_s x_s^T`, one for each sample.

    Gradients of a linear layer are: a is the gradient of its output, and x its input. For each
    sample, K + N numbers stand for K N.

    Args:
        left: a, shape ``(B, K)``.
        right: x, shape ``(B, N)``.
    """

    left: Float[Tensor, "B K"]
    right: Float[Tensor, "B N"]
    _overlaps: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def overlaps(self, directions: Float[Tensor, "d N"]) -> Float[Tensor, "B d"]:
        """<x_s, e_j>, computed once for statistics that share their directions."""
        if id(directions) not in self._overlaps:
            self._overlaps[id(directions)] = self.right @ directions.to(self.right).mT
        return self._overlaps[id(directions)]

    def dense(self) -> Float[Tensor, "B K N"]:
        """The products themselves."""
        return self.left[:, :, None] * self.right[:, None, :]

    def sum(self) -> Float[Tensor, "K N"]:
        """The sum over the samples."""
        if len(self.left) % 2:
            return self.left.mT @ self.right
        # two halves in a batch: BLAS takes half the time for them that it takes for the whole
        a, x = (t.unflatten(0, (2, -1)) for t in (self.left, self.right))
        return (a.mT @ x).sum(0)


Gradient = Tensor | OuterGradient


def near(function: Any, parameters: Parameters) -> Any:
    """A statistic with its own tensors on the parameters' device; any other function as it is."""
    return function.near(parameters) if hasattr(function, "near") else function


def total(gradient: Gradient) -> Tensor:
    """The sum over the samples, in the parameter's shape."""
    return gradient.sum() if isinstance(gradient, OuterGradient) else gradient.sum(0)


def total_square(gradient: Gradient) -> Tensor:
    """The sum of the squares over the samples, in the parameter's shape."""
    if isinstance(gradient, OuterGradient):
        return OuterGradient(gradient.left.square(), gradient.right.square()).sum()
    return gradient.square().sum(0)


def largest_entries(gradient: Gradient) -> Float[Tensor, " B"]:
    """The size of the largest entry of each sample's gradient."""
    if isinstance(gradient, OuterGradient):
        return gradient.left.abs().amax(1) * gradient.right.abs().amax(1)
    return gradient.flatten(1).abs().amax(1)


def part(gradient: Gradient, samples: slice | list[int]) -> Gradient:
    """The gradients of some of the samples."""
    if isinstance(gradient, OuterGradient):
        return OuterGradient(gradient.left[samples], gradient.right[samples])
    return gradient[samples]


def dense(gradient: Gradient) -> Tensor:
    """A gradient as one tensor, ``(B, *shape)``."""
    return gradient.dense() if isinstance(gradient, OuterGradient) else gradient


class Quadratic(ABC):
    """A homogeneous statistic of degree 1 or 2 in one parameter; a function of the parameters.

    Attributes:
        parameter: its name.
        degree: 1 or 2.

    Example:
        >>> import torch
        >>> from torchlimits.statistics import squared_lengths
        >>> lengths, x = squared_lengths("weight"), {"weight": torch.tensor([[3.0, 4.0]])}
        >>> gradients = torch.tensor([[[1.0, 0.0]], [[1.0, 2.0]]])  # of two samples
        >>> lengths.along(x, gradients)
        tensor([[ 6.],
                [22.]])
        >>> lengths.changes(x, gradients, centre=torch.zeros(1, 2))[1]
        tensor([[1.],
                [5.]])
    """

    parameter: str
    degree: int = 1

    @abstractmethod
    def __call__(self, parameters: Parameters) -> Tensor:
        """The value, with the parameter's leading dimensions."""

    def near(self, parameters: Parameters) -> Quadratic:
        """The same statistic, its directions on the device and in the dtype of the parameter.

        Evaluated there, it need not wait for a copy from the host.

        Args:
            parameters: the parameters, ``{name: tensor}``.

        Example:
            >>> import torch
            >>> from torchlimits.statistics import overlaps
            >>> m = overlaps("weight", torch.eye(2, 3, dtype=torch.float64))
            >>> m.near({"weight": torch.zeros(1, 3)}).directions.dtype
            torch.float32
        """
        return self

    @abstractmethod
    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """Du[g_s] for every sample, ``(B, *value)``.

        Args:
            parameters: the point, ``{name: tensor}``.
            gradient: the g_s, B gradients of this statistic's parameter.
        """

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Du[g_s], and half of D^2 u twice along g_s - centre and twice along g_s; None is 0.

        Args:
            parameters: the point, ``{name: tensor}``.
            gradient: the g_s, B gradients of this statistic's parameter.
            centre: about the mean of the g_s, in the parameter's shape.
        """
        return self.along(parameters, gradient), None, None

"""Statistics that are linear or quadratic in one parameter: they know their own derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class OuterGradient:
    r"""Gradients of a weight that are outer products, :math:`g_s = a_s x_s^T`, one a sample.

    Those of a linear layer are: a is the gradient of its output, x its input. Numbers of size
    K + N a sample stand for K N.

    Args:
        left: a, shape ``(B, K)``.
        right: x, shape ``(B, N)``.
    """

    left: Float[Tensor, "B K"]
    right: Float[Tensor, "B N"]
    _overlaps: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def overlaps(self, directions: Float[Tensor, "d N"]) -> Float[Tensor, "B d"]:
        """<x_s, e_j>, made once for statistics that share their directions."""
        if id(directions) not in self._overlaps:
            self._overlaps[id(directions)] = self.right @ directions.to(self.right).mT
        return self._overlaps[id(directions)]

    def dense(self) -> Float[Tensor, "B K N"]:
        """The products themselves."""
        return self.left[:, :, None] * self.right[:, None, :]

    def sum(self) -> Float[Tensor, "K N"]:
        """Over the samples."""
        if len(self.left) % 2:
            return self.left.mT @ self.right
        # two halves in a batch: BLAS takes half the time for them that it takes for the whole
        a, x = (t.unflatten(0, (2, -1)) for t in (self.left, self.right))
        return (a.mT @ x).sum(0)


Gradient = Tensor | OuterGradient


@runtime_checkable
class Placed(Protocol):
    """A statistic that holds tensors of its own."""

    def near(self, parameters: Parameters) -> Any:
        """The same statistic, with these tensors beside the parameters."""
        ...


def near(function: Any, parameters: Parameters) -> Any:
    """A statistic with what it holds beside the parameters; any other function as it is."""
    return function.near(parameters) if isinstance(function, Placed) else function


def total(gradient: Gradient) -> Tensor:
    """Over the samples, in the parameter's shape."""
    return gradient.sum() if isinstance(gradient, OuterGradient) else gradient.sum(0)


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
        >>> lengths, x = SquaredLengths("weight"), {"weight": torch.tensor([[3.0, 4.0]])}
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

        Evaluated there, it copies nothing from the host, for which it would wait.

        Args:
            parameters: where they are, ``{name: tensor}``.

        Example:
            >>> import torch
            >>> m = Overlaps("weight", torch.eye(2, 3, dtype=torch.float64))
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
        """Du[g_s], and half of D^2 u along g_s - centre and along g_s, twice; None: 0.

        Args:
            parameters: the point, ``{name: tensor}``.
            gradient: the g_s, B gradients of this statistic's parameter.
            centre: about their mean, in the parameter's shape.
        """
        return self.along(parameters, gradient), None, None


@dataclass(frozen=True, eq=False)
class Entries(Quadratic):
    """All entries of a parameter, in its shape.

    Args:
        parameter: its name.

    Example:
        >>> import torch
        >>> Entries("bias")({"bias": torch.tensor([1.0, 2.0])})
        tensor([1., 2.])
    """

    parameter: str

    def __call__(self, parameters: Parameters) -> Tensor:
        """The parameter."""
        return parameters[self.parameter]

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The gradient."""
        return dense(gradient)


@dataclass(frozen=True, eq=False)
class SecondLayer(Quadratic):
    """The output weights v of a network with one output, shape ``(..., 1, K)`` -> ``(..., K)``.

    Args:
        parameter: its name.

    Example:
        >>> import torch
        >>> SecondLayer("weight")({"weight": torch.tensor([[1.0, 2.0]])})
        tensor([1., 2.])
    """

    parameter: str

    def __call__(self, parameters: Parameters) -> Tensor:
        """v."""
        return parameters[self.parameter].squeeze(-2)

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The gradient."""
        return dense(gradient).squeeze(-2)


@dataclass(frozen=True, eq=False)
class Overlaps(Quadratic):
    r"""Overlaps :math:`m_{ij} = \langle W_i, e_j\rangle`, shape ``(..., K, d)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.
        directions: the e_j as rows.

    Example:
        >>> import torch
        >>> Overlaps("weight", torch.eye(2, 3))({"weight": torch.arange(6.0).reshape(2, 3)})
        tensor([[0., 1.],
                [3., 4.]])
    """

    parameter: str
    directions: Float[Tensor, "d N"]

    def near(self, parameters: Parameters) -> Overlaps:
        """With the directions beside the parameter, as `Quadratic.near` of ``parameters``."""
        return replace(self, directions=self.directions.to(parameters[self.parameter]))

    def __call__(self, parameters: Parameters) -> Tensor:
        """m."""
        weight = parameters[self.parameter]
        return weight @ self.directions.to(weight).mT

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The gradient's overlaps."""
        if isinstance(gradient, OuterGradient):
            return gradient.left[:, :, None] * gradient.overlaps(self.directions)[:, None, :]
        return gradient @ self.directions.to(gradient).mT


@dataclass(frozen=True, eq=False)
class Gram(Quadratic):
    r"""Gram matrix of the neurons :math:`R_{ij} = \langle W_i^\perp, W_j^\perp\rangle`.

    W_perp is W less its projection on the directions; without them it is W itself. Symmetric,
    shape ``(..., K, K)``: name it in ``SummaryStatistics(..., symmetric=...)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.
        perpendicular_to: orthonormal directions as rows.

    Example:
        >>> import torch
        >>> Gram("weight", torch.eye(1, 2))({"weight": torch.tensor([[5.0, 2.0]])})
        tensor([[4.]])
    """

    parameter: str
    perpendicular_to: Float[Tensor, "d N"] | None = None
    degree = 2

    def near(self, parameters: Parameters) -> Gram:
        """With the directions beside the parameter, as `Quadratic.near` of ``parameters``."""
        if self.perpendicular_to is None:
            return self
        return replace(self, perpendicular_to=self.perpendicular_to.to(parameters[self.parameter]))

    def __call__(self, parameters: Parameters) -> Tensor:
        """R."""
        # project first: W W^T - m m^T would lose all digits once R is small beside m m^T
        weight = self._perpendicular(parameters[self.parameter])
        return weight @ weight.mT

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """g_perp W_perp^T, symmetrised."""
        W = self._perpendicular(parameters[self.parameter])
        if isinstance(gradient, OuterGradient):
            return _symmetrised(gradient.left, gradient.right @ W.mT)
        half = gradient @ W.mT
        return half + half.mT

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Half of D^2 u along h is h_perp h_perp^T."""
        if not isinstance(gradient, OuterGradient):
            g, h = self._perpendicular(gradient), self._perpendicular(gradient - centre)
            return self.along(parameters, gradient), h @ h.mT, g @ g.mT
        a, x = gradient.left, gradient.right
        W, c = (self._perpendicular(p) for p in (parameters[self.parameter], centre))
        square = torch.linalg.vector_norm(x, dim=-1).square()
        if self.perpendicular_to is not None:
            square = square - gradient.overlaps(self.perpendicular_to).square().sum(-1)
        kick = (square[:, None] * a)[:, :, None] * a[:, None, :]
        return _symmetrised(a, x @ W.mT), kick - _symmetrised(a, x @ c.mT) + c @ c.mT, kick

    def _perpendicular(self, weight: Tensor) -> Tensor:
        if self.perpendicular_to is None:
            return weight
        e = self.perpendicular_to.to(weight)
        rows = weight.reshape(-1, weight.shape[-1])
        return torch.addmm(rows, rows @ e.mT, e, alpha=-1).reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class SquaredLengths(Quadratic):
    r"""Squared lengths :math:`|W_i^\perp|^2`, the diagonal of `Gram`, shape ``(..., K)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.
        perpendicular_to: orthonormal directions as rows.

    Example:
        >>> import torch
        >>> SquaredLengths("weight")({"weight": torch.tensor([[3.0, 4.0]])})
        tensor([25.])
    """

    parameter: str
    perpendicular_to: Float[Tensor, "d N"] | None = None
    degree = 2

    def near(self, parameters: Parameters) -> SquaredLengths:
        """With the directions beside the parameter, as `Quadratic.near` of ``parameters``."""
        return replace(self, perpendicular_to=self._gram.near(parameters).perpendicular_to)

    def __call__(self, parameters: Parameters) -> Tensor:
        """|W_i_perp|^2."""
        return self._gram(parameters).diagonal(dim1=-2, dim2=-1)

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """2 <g_i, W_i_perp>."""
        return self._gram.along(parameters, gradient).diagonal(dim1=-2, dim2=-1)

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the Gram matrix, on its diagonal."""
        along, bend, kick = (
            x.diagonal(dim1=-2, dim2=-1) for x in self._gram.changes(parameters, gradient, centre)
        )
        return along, bend, kick

    @property
    def _gram(self) -> Gram:
        return Gram(self.parameter, self.perpendicular_to)


def _symmetrised(a: Float[Tensor, "B K"], b: Float[Tensor, "B K"]) -> Float[Tensor, "B K K"]:
    product = a[:, :, None] * b[:, None, :]
    return product + product.mT

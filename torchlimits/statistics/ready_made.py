"""The ready-made statistics: functions of the parameters, for any leading dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits.statistics.quadratic import Gradient, OuterGradient, Parameters, Quadratic, dense


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
        """Return a copy with the directions where the parameter is, as `Quadratic.near` does."""
        return replace(self, directions=self.directions.to(parameters[self.parameter]))

    def __call__(self, parameters: Parameters) -> Tensor:
        """m."""
        weight = parameters[self.parameter]
        _check_directions(self.parameter, weight, self.directions)
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
        """Return a copy with the directions where the parameter is, as `Quadratic.near` does."""
        if self.perpendicular_to is None:
            return self
        return replace(self, perpendicular_to=self.perpendicular_to.to(parameters[self.parameter]))

    def __call__(self, parameters: Parameters) -> Tensor:
        """R."""
        # project first: W W^T - m m^T would lose all digits once R is small beside m m^T
        weight = parameters[self.parameter]
        _check_directions(self.parameter, weight, self.perpendicular_to)
        weight = self._perpendicular(weight)
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
        """Return a copy with the directions where the parameter is, as `Quadratic.near` does."""
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
        """The changes of the Gram matrix, on its diagonal."""
        along, bend, kick = (
            x.diagonal(dim1=-2, dim2=-1) for x in self._gram.changes(parameters, gradient, centre)
        )
        return along, bend, kick

    @property
    def _gram(self) -> Gram:
        return Gram(self.parameter, self.perpendicular_to)


def _check_directions(name: str, weight: Tensor, directions: Tensor | None) -> None:
    """Raise ValueError if directions are not as long as the rows of the weight."""
    if directions is None or (directions.ndim == 2 and weight.shape[-1] == directions.shape[-1]):
        return
    own = f"lambda p: p[{name!r}].flatten(1) @ directions.T"
    got = f"{tuple(directions.shape)} and a weight {tuple(weight.shape)}"
    raise ValueError(
        f"expected directions (d, N) for rows of {name!r} of length N, got {got}: for filters of a "
        f"convolution, which are tensors, take a function of your own such as {own}"
    )


def _symmetrised(a: Float[Tensor, "B K"], b: Float[Tensor, "B K"]) -> Float[Tensor, "B K K"]:
    product = a[:, :, None] * b[:, None, :]
    return product + product.mT


def row_norms(parameter: str) -> Callable[[Parameters], Tensor]:
    r"""Euclidean norms :math:`|W_i|` of the rows, shape ``(..., K)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.

    Example:
        >>> import torch
        >>> row_norms("weight")({"weight": torch.tensor([[3.0, 4.0]])})
        tensor([5.])
    """
    return lambda parameters: parameters[parameter].norm(dim=-1)


def norms(model: nn.Module) -> dict[str, Callable[[Parameters], Tensor]]:
    r"""Euclidean norms of all parameters of a model: ``norm.<name>``, :math:`|\theta_i|`.

    They are the norms of all layers in one line, for `tl.track`, frozen ones included; a parameter
    that layers share is one. Put them beside others by ``{**norms(model), "loss": ...}``.

    Cost: one pass over the parameters for each recorded step.

    Args:
        model: the user's own module, not a wrapper around it, whose names are different.

    Returns:
        ``{name: function of the parameters}``.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has no parameters.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> lengths = norms(layer)
        >>> list(lengths)
        ['norm.weight', 'norm.bias']
        >>> lengths["norm.weight"]({"weight": torch.tensor([[3.0, 4.0]])})
        tensor(5.)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    names = [name for name, _ in model.named_parameters()]
    if not names:
        raise ValueError(f"expected a module with parameters, got {type(model).__name__} without")
    return {f"norm.{name}": _Norm(name) for name in names}


@dataclass(frozen=True)
class _Norm:
    """The Euclidean norm of one parameter."""

    parameter: str

    def __call__(self, parameters: Parameters) -> Tensor:
        return torch.linalg.vector_norm(parameters[self.parameter])

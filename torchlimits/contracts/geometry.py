"""`Geometry`: what there is to know of the space of the statistics beyond a smooth vector field."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@runtime_checkable
class Velocity(Protocol):
    """A right-hand side -f + g with an optimizer's factors, as `Geometry` sees it."""

    @property
    def names(self) -> list[str]:
        """The names of the k statistics."""
        ...

    def __call__(self, t: float, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The right-hand side at limit time t."""
        ...

    def jacobian(self, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k k"]:
        """Its derivatives at each of S points."""
        ...

    def on(self, field: Any) -> Velocity:
        """The right-hand side of another `VectorField` with the same optimizer."""
        ...


class Geometry:
    """The space that a `VectorField` lives in; here all of R^k, with a field smooth on it.

    Fixed points, bands and Langevin dynamics ask it. Subclasses override what differs in their
    space: borders (R >= 0), kinks, pieces, starts.

    Example:
        >>> import torch
        >>> class HalfLine(Geometry):
        ...     def project(self, u):
        ...         return u.clamp_min(0)
        >>> HalfLine().project(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])

    What it answers for a smooth field on all of R^k:

        >>> import torchlimits as tl
        >>> velocity = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> space, u = Geometry(), torch.tensor([1.0, 1.0])
        >>> space.snap(u) is u, space.cell(u), space.persists(velocity, u[None])
        (True, tensor([0.]), tensor([True]))
        >>> space.pieces(velocity, u).shape, space.tolerance(1e-3, u)
        (torch.Size([1, 2, 2]), tensor([0.0010, 0.0010]))
        >>> space.starts(velocity, 3, torch.Generator())
        Traceback (most recent call last):
        ValueError: expected starts for the fixed points, got none, and the vector field's ...
    """

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters can have, for instance with R >= 0.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return u

    def snap(self, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k"]:
        """Points near zeros of -f + g, with what cannot be distinguished from 0 set to 0.

        Args:
            u: S points, shape ``(S, k)``.
        """
        return u

    def cell(self, u: Float[Tensor, " k"]) -> Tensor:
        """Labels of the part of space that u is in; components of fixed points end at borders.

        Args:
            u: a point, shape ``(k,)``.
        """
        return u.new_zeros(1)

    def pieces(self, velocity: Velocity, u: Float[Tensor, " k"]) -> Float[Tensor, "P k k"]:
        """The Jacobians of -f + g at u, a one-sided one for each smooth piece that meets there.

        Args:
            velocity: the right-hand side.
            u: a point, shape ``(k,)``.
        """
        return velocity.jacobian(u[None])

    def tolerance(self, error: float, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The error of -f + g in each entry: integrals err in proportion to u where u is small.

        Args:
            error: `VectorField.error`, where u is of order 1.
            u: statistics, shape ``(..., k)``.
        """
        return (error * u.abs().amax(-1, keepdim=True)).expand_as(u)

    def persists(self, velocity: Velocity, u: Float[Tensor, "S k"]) -> Bool[Tensor, " S"]:
        """False at zeros that any perturbation leaves, as -f + g is not Lipschitz there.

        Args:
            velocity: the right-hand side.
            u: S zeros of it, shape ``(S, k)``.
        """
        return torch.ones_like(u[:, 0], dtype=torch.bool)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """Random points from which fixed points are looked for.

        Args:
            velocity: the right-hand side.
            count: how many.
            generator: of the points, on the CPU.

        Raises:
            ValueError: if it is not known where to look, as here.
        """
        raise ValueError(
            "expected starts for the fixed points, got none, and the vector field's geometry does "
            f"not know where to look: give a tensor of shape (S, {len(velocity.names)})"
        )

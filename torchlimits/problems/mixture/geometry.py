"""`MixtureGeometry`: borders, kinks and cells in the space of a mixture's statistics."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits.contracts.geometry import Velocity
from torchlimits.problems.mixture import idle_neurons
from torchlimits.problems.mixture.field import MixtureField, squared_lengths
from torchlimits.problems.network.geometry import GramGeometry

#: parallel neurons are turned apart by this much, relative to their squared lengths
_APART = 1e-6


class MixtureGeometry(GramGeometry):
    """R is positive semidefinite; -f + g has kinks where neurons are idle and where they part."""

    def __init__(self, field: MixtureField) -> None:
        super().__init__(field.layout, field.coordinates.new_zeros(field.width))
        self.field = field

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """Starts with entries of order 1, as small ones would all end on the few attractors."""
        K, d = self.field.width, self.field.coordinates.shape[1]
        normal: dict[str, Any] = {
            "generator": generator, "dtype": torch.float64, "device": "cpu",
        }  # fmt: skip
        v, m = torch.randn(count, K, **normal), torch.randn(count, K, d, **normal)
        A = torch.randn(count, K, K, **normal) * 0.3
        return self.field.join(v, m, A @ A.mT)

    def pieces(self, velocity: Velocity, u: Float[Tensor, " k"]) -> Float[Tensor, "P k k"]:
        """The one-sided pieces where neurons are idle, linear in each sector between the means."""
        idle = self.idle(u)
        if not bool(idle.any()):
            return super().pieces(velocity, u)
        beside = idle_neurons.towards_means(self.field, u, idle, self.idle_length)
        return velocity.jacobian(beside)

    def snap(self, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k"]:
        """Set neurons that count as 0 to 0: on the slow way there, points would count once each."""
        v, m, R = self.field.split(u)
        active = ~self.idle(u)
        pairs = active[..., :, None] & active[..., None, :]
        return self.field.join(v * active, m * active[..., None], R * pairs)

    def tolerance(self, error: float, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """-f + g is of degree 1 in a neuron's length for its v and m, and of degree 2 for R."""
        v, m, R = self.field.split(u)
        length = (v.square() + squared_lengths(m, R)).sqrt()
        products = length[..., :, None] * length[..., None, :]
        return error * self.field.join(length, length[..., None].expand_as(m), products)

    def cell(self, u: Float[Tensor, " k"]) -> Tensor:
        """The number of the mean that each neuron is turned to, shape ``(K,)``; -1 if idle."""
        nearest = self.field.along_means(self.field.split(u)[1]).argmax(-1)
        return torch.where(self.idle(u), -1, nearest)

    @property
    def idle_length(self) -> float:
        """Neurons shorter than this count as 0."""
        return max(1e-9, 10 * self.field.error)

    def idle(self, u: Float[Tensor, "*batch k"]) -> Bool[Tensor, "*batch K"]:
        """Which neurons count as 0."""
        _, m, R = self.field.split(u)
        return squared_lengths(m, R) < self.idle_length**2


class SmoothedGeometry(MixtureGeometry):
    """The geometry at a finite snr: noise smooths the kinks between means, and parts neurons."""

    def pieces(self, velocity: Velocity, u: Float[Tensor, " k"]) -> Float[Tensor, "P k k"]:
        """The one smooth piece, on the fastest-growing ray of idle neurons."""
        u = self._inside(u)
        idle = self.idle(u)
        if not bool(idle.any()):
            return velocity.jacobian(u[None])
        few = self.field.of_neurons(int((~idle).sum()) + 1)
        ray = idle_neurons.on_fastest_ray(
            self.field, few, velocity.on(few), u, idle, self.idle_length
        )
        return idle_neurons.one_sided_jacobian(self.field, velocity, self._inside(ray), idle)[None]

    def _inside(self, u: Tensor) -> Tensor:
        """A point a little off the border, where R is singular and derivatives need not exist."""
        v, m, R = self.field.split(u)
        square = (m @ m.mT + R).diagonal(dim1=-2, dim2=-1)
        return self.field.join(v, m, R + _APART * torch.diag_embed(square))

    def persists(self, velocity: Velocity, u: Float[Tensor, "S k"]) -> Bool[Tensor, " S"]:
        """Turn parallel neurons apart by a little, and see whether the angle goes on growing."""
        v, m, R = self.field.split(u)
        W = m @ m.mT + R
        square = W.diagonal(dim1=-2, dim2=-1)
        apart = _APART * torch.diag_embed(square)
        _, dm, dR = self.field.split(velocity(0.0, self.field.join(v, m, R + apart)))
        dW = dm @ m.mT + m @ dm.mT + dR
        # 1 - cos^2 of the angle between neurons, times their squared lengths
        sine = _minors(W, W) / 2
        growth = _minors(W + apart, dW)
        products = square[..., :, None] * square[..., None, :]
        active = ~self.idle(u)[..., None]
        parallel = active & active.mT & (sine < 0.1 * _APART * products)
        return ~(parallel & (growth > 0)).flatten(-2).any(-1)


def _minors(A: Float[Tensor, "*batch K K"], B: Float[Tensor, "*batch K K"]) -> Tensor:
    """A_ii B_jj + A_jj B_ii - 2 A_ij B_ij: twice the 2 x 2 minors if A = B, else their change."""
    a, b = A.diagonal(dim1=-2, dim2=-1), B.diagonal(dim1=-2, dim2=-1)
    return a[..., :, None] * b[..., None, :] + b[..., :, None] * a[..., None, :] - 2 * A * B

"""`AdaptiveGeometry`: the space of statistics and second moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits.contracts.geometry import Geometry, Velocity

#: the distance at which second moments are looked at beside a point
_BESIDE = 1e-4
#: second moments that are smaller than this part of those beside them vanish
_VANISHING = 1e-2


class AdaptiveGeometry(Geometry):
    """The statistics have the space of their own field; second moments are not negative.

    Args:
        base: the geometry of the network's statistics.
        sizes: how many of these there are, how many second moments, and 1 for bias_correction2.
        settled: adds the second moments that settle to statistics of the network.
        eps: what is added to the root of each second moment, ``(V,)``.
    """

    def __init__(
        self, base: Geometry, sizes: tuple[int, int, int], settled: Callable[[Tensor], Tensor],
        eps: Float[Tensor, " V"],
    ) -> None:  # fmt: skip
        self.base, self.sizes, self.settled, self.eps = base, sizes, settled, eps

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters and an optimizer can have."""
        base, v, w = u.split(self.sizes, dim=-1)
        return torch.cat([self.base.project(base), v.clamp_min(0), w.clamp(0, 1)], dim=-1)

    def persists(self, velocity: Velocity, u: Float[Tensor, "S k"]) -> Bool[Tensor, " S"]:
        """False where a second moment vanishes, and is not small beside the point.

        Steps are as large there as anywhere, a second moment being that of the same gradients: the
        corrector of a row is c_delta as soon as its gradient is not 0. Where all weights are 0 -f
        + g is 0, too, but any perturbation leaves.

        Args:
            velocity: the right-hand side.
            u: S zeros of it, shape ``(S, k)``.
        """
        if not len(u):
            return torch.ones_like(u[:, 0], dtype=torch.bool)
        base, v, _ = u.split(self.sizes, dim=-1)
        like: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        normal = torch.randn(base.shape, generator=torch.Generator().manual_seed(0), **like)
        beside = self.base.project(base + _BESIDE * normal.to(base))
        there = self.settled(beside).split(self.sizes, dim=-1)[1]
        least = _VANISHING * there
        return ((v.clamp_min(0).sqrt() + self.eps.to(u)).square() >= least).all(-1)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """The starts of the network's own space, with the second moments that settle there."""
        return self.settled(self.base.starts(velocity, count, generator))

"""`AdaptiveGeometry`: the space of statistics and second moments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.geometry import Geometry, Velocity


class AdaptiveGeometry(Geometry):
    """The statistics have the space of their own field; second moments are not negative.

    Args:
        base: the geometry of the network's statistics.
        sizes: how many of these there are, how many second moments, and 1 for bias_correction2.
        settled: adds the second moments that settle to statistics of the network.
    """

    def __init__(
        self, base: Geometry, sizes: tuple[int, int, int], settled: Callable[[Tensor], Tensor]
    ) -> None:
        self.base, self.sizes, self.settled = base, sizes, settled

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters and an optimizer can have."""
        base, v, w = u.split(self.sizes, dim=-1)
        return torch.cat([self.base.project(base), v.clamp_min(0), w.clamp(0, 1)], dim=-1)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """The starts of the network's own space, with the second moments that settle there."""
        return self.settled(self.base.starts(velocity, count, generator))

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
        base: the space of the statistics.
        split: u -> the statistics, the second moments and w.
        settled: statistics -> u with the second moments that settle there.
        corrected: whether w is a part of u.
    """

    def __init__(
        self, base: Geometry, *, split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
        settled: Callable[[Tensor], Tensor], corrected: bool,
    ) -> None:  # fmt: skip
        self.base, self.split, self.settled, self.corrected = base, split, settled, corrected

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters and an optimizer can have."""
        base, v, w = self.split(u)
        parts = [self.base.project(base), v.clamp_min(0)]
        return torch.cat([*parts, w.clamp(0, 1)][: 2 + self.corrected], dim=-1)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """The starts of the field's own space, with the second moments that settle there."""
        base = self.base.starts(velocity, count, generator)
        return self.settled(base)

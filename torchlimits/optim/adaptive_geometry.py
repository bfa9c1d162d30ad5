"""`AdaptiveGeometry`: the space of statistics and second moments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.geometry import Geometry, Velocity

if TYPE_CHECKING:
    from torchlimits.optim.adaptive_field import AdaptiveField


class AdaptiveGeometry(Geometry):
    """The statistics have the space of their own field; second moments are not negative.

    Args:
        field: the field of both.
    """

    def __init__(self, field: AdaptiveField) -> None:
        self.field = field

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters and an optimizer can have."""
        base, v, w = self.field.split(u)
        parts = [self.field.base.geometry.project(base), v.clamp_min(0)]
        return torch.cat([*parts, w.clamp(0, 1)][: 2 + self.field.moments.rule.corrected], dim=-1)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """The starts of the field's own space, with the second moments that settle there."""
        base = self.field.base.geometry.starts(velocity, count, generator)
        return self.field.settled(base)

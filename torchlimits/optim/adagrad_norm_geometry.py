"""`AdaGradNormGeometry`: the space of statistics and of the b of AdaGrad-Norm."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.geometry import Geometry


class AdaGradNormGeometry(Geometry):
    """The statistics have the space of their own field; v = (b/n)^2 is not negative.

    Args:
        base: the geometry of the problem's statistics.
    """

    def __init__(self, base: Geometry) -> None:
        self.base = base

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters and an optimizer can have."""
        return torch.cat([self.base.project(u[..., :-1]), u[..., -1:].clamp_min(0)], dim=-1)

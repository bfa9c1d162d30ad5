"""The effective dynamics with their noise at dimension n, where exact chains take too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.diffusive import DiffusiveDynamics

if TYPE_CHECKING:
    from torchlimits.dynamics.effective_dynamics import EffectiveDynamics


class LangevinDynamics(DiffusiveDynamics):
    r"""The statistics at dimension n as a diffusion, not rescaled and not linearised,

    .. math:: du = (-f + g)(u)\, dt + (D(u)/n)^{1/2} dB,

    D the full one-step increment's covariance (`EffectiveDynamics.diffusion`).

    Many steps of SGD at once, their sum being nearly normal: right to O(1/n) in drift and
    diffusion, at saddles too, where runs part and a band means nothing; so it reaches dimensions
    and times, 10^9 and n log n steps, that the exact `ReducedChain` does not.

    Source: diffusion approximation of the chain of Theorem 2.2 of arXiv 2206.04030 (Kurtz).

    Args:
        dynamics: gives -f + g, D and n; made by its `EffectiveDynamics.langevin`.
    """

    def __init__(self, dynamics: EffectiveDynamics) -> None:
        k = len(dynamics.names)
        zero = torch.zeros(k, dtype=torch.float64, device="cpu")
        super().__init__(dynamics.names, dynamics.dim, dynamics.settings, zero, zero + 1)
        self.dynamics = dynamics

    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """-f + g at u, or at the nearest u that parameters can have."""
        return self.dynamics(0.0, self.dynamics._project(u))

    def diffusion(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
        """D(u)/n."""
        return self.dynamics.diffusion(self.dynamics._project(u)) / self.dim

    def _advance(self, u: Tensor, step: float, brownian: Tensor) -> Tensor:
        return self.dynamics._project(super()._advance(u, step, brownian))

    @property
    def rate(self) -> float:
        """Of the package's problems at parameters of order 1: several a unit of limit time."""
        return 5.0 * max(1.0, self.settings.drift_factor)

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return f"{self.dynamics.equation()}\n\nand at dimension n: du + (D(u)/n)^(1/2) dB"

"""The effective dynamics with their noise at dimension n, where exact chains take too long."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.diffusive import DiffusiveDynamics
from torchlimits.dynamics.flow import Flow
from torchlimits.dynamics.step_control import Equation


class LangevinDynamics(DiffusiveDynamics):
    r"""The statistics at dimension n as a diffusion, not rescaled and not linearised,

    .. math:: du = (-f + g)(u)\, dt + (D(u)/n)^{1/2} dB,

    where D is the covariance of the full one-step increment (`EffectiveDynamics.diffusion`).

    It takes many steps of SGD at once, since their sum is nearly normal. It is right to O(1/n) in
    drift and diffusion, at saddles too, where runs part and a band means nothing; so it reaches
    dimensions and times, 10^9 and n log n steps, that the exact `ReducedChain` does not.

    Its steps come from the rates that the paths meet, see `DiffusiveDynamics.solve`; D comes from
    the field's rule for bands, which errs by 1 % at most.

    Source: diffusion approximation of the chain of Theorem 2.2 of arXiv 2206.04030 (Kurtz).

    Args:
        flow: gives -f + g, D and n; made by `EffectiveDynamics.langevin`.
    """

    def __init__(self, flow: Flow) -> None:
        k = len(flow.names)
        zero = torch.zeros(k, dtype=torch.float64, device="cpu")
        super().__init__(flow.names, flow.dim, flow.limit, zero, zero + 1)
        self.flow = flow
        # an error of 1e-3 does not matter for the noise
        self.noise = flow.on(flow.field.for_band())

    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """-f + g at u, or at the nearest u that parameters can have."""
        return self.flow(0.0, self.flow.geometry.project(u))

    def diffusion(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
        """D(u)/n."""
        return self.noise.diffusion(self.flow.geometry.project(u)) / self.dim

    def _advance(self, u: Tensor, step: float, brownian: Tensor) -> Tensor:
        return self.flow.geometry.project(super()._advance(u, step, brownian))

    def _as_equation(self) -> Equation:
        # differences over shorter distances would be those of the integrals' errors
        distance = max(1e-4, self.flow.error**0.5)
        return replace(
            super()._as_equation(), project=self.flow.geometry.project, distance=distance
        )

    def _unbounded(self, t: float) -> str:
        return (
            f"paths grow beyond all bounds at t = {t:g}, with steps that resolve the rates there: "
            "the effective dynamics with their noise are unstable at this c_delta; take a smaller "
            "one, or shorter times"
        )

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return f"{self.flow.equation()}\n\nand at dimension n: du + (D(u)/n)^(1/2) dB"

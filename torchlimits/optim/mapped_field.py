"""`MappedField`: drift and corrector of gradients that are mapped before the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._once import without_derivatives
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.contracts.vector_field import VectorField, matrices_of_each
from torchlimits.optim.batch_averages import averages_of
from torchlimits.optim.differences import central_differences
from torchlimits.optim.gradient_map import GradientMap
from torchlimits.optim.moment_layout import Entries
from torchlimits.optim.step_noise import StepNoise


class MappedField(VectorField):
    r"""The statistics (theta, b, m, R) of a network whose gradients are mapped by f.

    Over batches of B samples, with a_k and C_kl of each batch (`MappedGradient`),

    .. math::
        \dot\theta &= -E f(\tfrac1B \textstyle\sum_b \partial_\theta l_b), \qquad
            \dot m = -E[a_k \tfrac1B \textstyle\sum_b g_{bk} x_{\parallel,b}^T] \\
        \dot R &= -E[a_k \tfrac1B \textstyle\sum_b g_{bk} P_b^T] - h.c. + c_\delta E[C].

    At coordinates of x that are axes, m moves by E f of that entry. Terms are for given batches
    and in units in which the corrector of plain SGD has a factor 1/B.

    Source: the increment of one step in the scaling of Theorem 2.2 of arXiv 2206.04030, with
    Stein's lemma over coordinates.

    Args:
        base: the field of plain gradients.
        map: f.
        batch_size: B.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.
    """

    def __init__(
        self, base: GradientField, map: GradientMap, *, batch_size: int,
        axes: Float[Tensor, "d J"],
    ) -> None:  # fmt: skip
        super().__init__(base.names, base.dim)
        self.base, self.map, self.batch_size, self.axes = base, map, batch_size, axes
        self.parameter_names, self.quadratic_in = base.parameter_names, base.quadratic_in
        self.averages = averages_of(base, map, batch_size, axes)
        self.rtol, self.atol = self.averages.tolerances
        self.settling_time = base.settling_time
        self.geometry = base.geometry

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and B g of batches of B; see `VectorField.terms`."""
        u = without_derivatives(u, f"the dynamics of mapped gradients ({type(self.map).__name__})")
        found = self.averages(u.double())[0]
        drift = self.base.of_parts(
            -found.theta, -found.bias, -found.signal, -found.across - found.across.mT
        )
        still = [torch.zeros_like(x) for x in found[:3]]
        kick = self.base.of_parts(still[0], still[1], still[2], self.batch_size * found.pair)
        return drift.to(u.dtype), kick.to(u.dtype)

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """B times the covariance of a step; see `VectorField.increment_covariance`."""
        with torch.no_grad():
            return matrices_of_each(u, lambda point: self._increments(point, step_size))

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        B, K, ones = self.batch_size, self.base.width, u.new_ones
        scales = Entries(ones(K), ones(K, self.axes.shape[1]), ones(K), ones(len(self.base.head)))
        # the limit counts c/B
        noise = StepNoise(self.base, self.axes)
        return B * noise.covariance(self.averages.draws(u), scales, step_size * B)

    # --- the rest of the contract -----------------------------------------------------------------

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives by central differences over long steps, as maps jump at nodes."""
        u = u.detach().double()
        return central_differences(velocity, u, torch.full_like(u, self.averages.difference))

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """How the statistics of the base decay."""
        return self.base.decay(u)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError as the base does."""
        self.base.check_start(u0)

    def for_band(self) -> MappedField:
        """The same field on what the base takes for bands."""
        base = self.base.for_band()
        assert isinstance(base, GradientField)
        return MappedField(base, self.map, batch_size=self.batch_size, axes=self.axes)

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of averages over batches."""
        return self.averages.error

    def describe(self) -> dict[str, Any]:
        """What the base describes, and the map."""
        return {**self.base.describe(), **self.map.describe()}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        kick = " + c E[C_ij]" if corrector else ""
        return "\n".join(
            [
                "Effective dynamics of h = W x + b, output = head(h) with gradients mapped by f, "
                f"{', '.join(f'{k}={v}' for k, v in self.map.describe().items())}; g = dl/dh, "
                "P = W_perp x, a = E f'(s Z), C = E f f of a batch's gradient:",
                "",
                "    dtheta/dt = - E f(dl/dtheta) - alpha theta",
                "    db_i/dt   = - E f(g_i) - alpha b_i",
                "    dm_ij/dt  = - E[a_i g_i x_j] - alpha m_ij",
                f"    dR_ij/dt  = - E[a_i g_i P_j] - E[a_j g_j P_i] - 2 alpha R_ij{kick}",
            ]
        )

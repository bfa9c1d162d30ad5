"""`LeastSquaresField`: the vector field of one-pass least squares, linear in the errors."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.geometry import Geometry, Velocity
from torchlimits.contracts.vector_field import VectorField
from torchlimits.problems.linear.gains import Gains
from torchlimits.problems.linear.levels import Levels
from torchlimits.problems.linear.module import WEIGHT


class NonNegative(Geometry):
    """Errors are squares: none is negative."""

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest point with no negative entry."""
        return u.clamp_min(0)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """The one fixed point, if there is one among non-negative errors."""
        zero = torch.zeros(1, len(velocity.names), dtype=torch.float64, device="cpu")
        # at the stability limit there is none, and no inverse
        at = torch.linalg.lstsq(velocity.jacobian(zero)[0], -velocity(0.0, zero)[0][:, None])
        return self.project(at.solution.mT)


class LeastSquaresField(VectorField):
    r"""ODE of the squared errors :math:`D_l = |\Pi_l (w - w^*)|^2` in the levels of Lambda,

    .. math:: \dot D_l = -2 \lambda_l D_l + c_\delta f_l \lambda_l \, (s^2 + \sum_m \lambda_m D_m),

    where the last factor is twice the risk, and the last term is the population corrector
    (`Gains`, also from measured fourth moments). It is closed at any spectrum, as for one sample
    the gradient is g x with :math:`g = \langle w - w^*, x \rangle - s \xi`, and, at leading order,
    :math:`|\Pi_l x|^2 = N_l \lambda_l`.

    **Increments.** One step changes D_l by :math:`-2 \delta g a_l + \delta^2 g^2 |\Pi_l x|^2`,
    :math:`a_l = \langle \Pi_l (w - w^*), x \rangle` independent :math:`N(0, b_l)`,
    :math:`b_l = \lambda_l D_l`. With :math:`\sigma^2 = E g^2` and the corrector r for c_delta = 1,
    Isserlis' theorem gives for plain SGD

    .. math:: n\,Cov = 4 \sigma^2 diag(b) + 4 b b^T - 4 c_\delta (b r^T + r b^T)
        + 2 c_\delta^2 r r^T.

    Source: the Volterra equation of homogenized SGD (Paquette, Paquette, Adlam and Pennington,
    arXiv 2205.07069), written as an ODE.

    Args:
        levels: lambda_l and N_l.
        gains: the corrector.
        noise: s, the standard deviation of the labels' noise.
        dim: n.

    u is ``(..., L)``: the D_l.
    """

    rtol = 1e-8
    atol = 1e-10
    geometry = NonNegative()
    settling_time = 0.0  # the start that `NonNegative` knows is the fixed point
    quadratic_in = WEIGHT

    def __init__(self, levels: Levels, gains: Gains, noise: float, dim: int) -> None:
        L = len(levels.eigenvalues)
        super().__init__([f"D[{level}]" for level in range(L)], dim)
        self.parameter_names = [WEIGHT] * L
        self.levels, self.gains, self.noise = levels, gains, noise

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g; see `VectorField.terms`."""
        gains = self.gains
        return -2 * self.levels.eigenvalues.to(u) * u, u @ gains.matrix.mT.to(u) + gains.noise.to(u)

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Half the mean squared error on fresh data.

        Args:
            u: the D_l, shape ``(..., L)``.
        """
        return self.excess_risk(u) + self.noise**2 / 2

    def excess_risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The risk above that of w*.

        Args:
            u: the D_l, shape ``(..., L)``.
        """
        return u @ self.levels.eigenvalues.to(u) / 2

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        b, r = self.levels.eigenvalues.to(u) * u, step_size * self.terms(u)[1]
        square = 2 * self.risk(u)[..., None]
        first, second = (b - r)[..., :, None], r[..., :, None]
        # 4 b b^T - 4 (b r^T + r b^T) + 2 r r^T
        return 4 * torch.diag_embed(square * b) + 4 * first * first.mT - 2 * second * second.mT

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives of a combination of the terms, which is linear: its values at unit vectors.

        Args:
            velocity: the combination, ``(S, k)`` -> ``(S, k)``, row by row.
            u: S points, shape ``(S, k)``.
        """
        # so far that the constant part, which is subtracted, is not larger than the others
        smallest = float(self.levels.eigenvalues.min())
        far = 2.0 ** ceil(log2(1 + self.noise**2 / smallest))
        units = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        with torch.no_grad():
            slopes = (velocity(far * units) - velocity(torch.zeros_like(units[:1]))) / far
        return slopes.mT.expand(len(u), *slopes.shape)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless no error is negative."""
        smallest = float(u0.detach().min())
        if smallest < -1e-6:
            raise ValueError(f"expected D >= 0 (errors are squares), got {smallest:g}")

    def describe(self) -> dict[str, Any]:
        """The noise, and what is known of the spectrum."""
        values = self.levels.eigenvalues
        total = float(values @ self.levels.fractions)
        return {
            "noise": self.noise, "levels": len(values), "largest": float(values.max()),
            "mean_eigenvalue": total,
        }  # fmt: skip

    def equation(self, corrector: bool = True) -> str:
        """The equation; see `VectorField.equation`."""
        noise = " + c f_l lambda_l 2 risk" if corrector else ""
        return (
            "One-pass least squares, 2 risk = s^2 + sum_m lambda_m D_m:\n\n"
            f"    dD_l/dt = -2 lambda_l D_l{noise}"
        )

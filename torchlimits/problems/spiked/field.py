"""`SpikedField`: the vector field of spiked matrix and tensor PCA."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.geometry import Geometry, Velocity
from torchlimits.contracts.vector_field import VectorField

NAMES = ["m", "r2"]


class SpikedGeometry(Geometry):
    """The half plane r2 >= 0, with a box that holds the fixed points.

    Args:
        reach: the largest \\|m\\|.
        radius2: the largest r2.
        origin: whether the origin is a fixed point.
    """

    def __init__(self, reach: float, radius2: float, *, origin: bool) -> None:
        self.reach, self.radius2, self.origin = reach, radius2, origin

    def project(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """Move u to the nearest point with r2 >= 0."""
        return torch.stack([u[..., 0], u[..., 1].clamp_min(0)], dim=-1)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S 2"]:
        """Points uniform in the box, and the origin if it is a fixed point."""
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64, device="cpu")
        m, r2 = self.reach * (2 * uniform[:, 0] - 1), self.radius2 * uniform[:, 1]
        starts = torch.stack([m, r2], dim=-1)
        if not self.origin:
            return starts
        # whatever is in doubt slowly converges to the degenerate origin
        return torch.cat([starts.new_zeros(1, 2), starts])


class SpikedField(VectorField):
    r"""ODE of m = <x, v> and r2 = \|x\|^2 - m^2, with R^2 = m^2 + r2:

    .. math::
        \dot m &= 2 m (k \lambda m^{k-2} - k R^{2k-2}) - \alpha m \\
        \dot r_2 &= -4 k R^{2k-2} (r_2 - c_\delta) - 2 \alpha r_2

    where :math:`4 k c_\delta R^{2k-2}` is the population corrector. Source: Proposition 3.1 of
    arXiv 2206.04030 (there c_delta = 1 and alpha = 0).

    Args:
        order: k >= 2; 2 is matrix PCA.
        snr: lambda.
        dim: n.
        geometry: where fixed points are.

    u is ``(..., 2)``: m, r2. The diffusion matrix is that of the gradient noise, Gaussian with
    covariance :math:`4 (k R^{2k-2} I + k (k-1) R^{2k-4} x x^T)`.
    """

    rtol = 1e-8
    atol = 1e-10
    settling_time = 0.0  # stiff, and in two dimensions the starts themselves find everything

    def __init__(
        self, *, order: int, snr: float | Tensor, dim: int, geometry: SpikedGeometry
    ) -> None:
        super().__init__(NAMES, dim)
        self.order, self.snr, self.geometry = order, snr, geometry

    def terms(
        self, u: Float[Tensor, "*batch 2"]
    ) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch 2"]]:
        """-f and g; see `VectorField.terms`."""
        k = self.order
        m, r2 = u.unbind(-1)
        power = (m**2 + r2) ** (k - 1)
        pull, shrink = 2 * k * (self.snr * m ** (k - 1) - m * power), -4 * k * power * r2
        kick = 4 * k * power
        return torch.stack([pull, shrink], dim=-1), torch.stack([torch.zeros_like(m), kick], dim=-1)

    def decay(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """m and 2 r2."""
        return torch.stack([u[..., 0], 2 * u[..., 1]], dim=-1)

    def gradient_length(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        r""":math:`2 \sqrt k R^{k-1}`, the length of the noise; not quite 0 at R = 0."""
        k = self.order
        square = u[..., 0] ** 2 + u[..., 1]
        safe = square.clamp_min(torch.finfo(u.dtype).tiny ** (1 / k))
        return 2 * k**0.5 * safe ** ((k - 1) / 2)

    def mean_square_gradient(
        self, u: Float[Tensor, "*batch 2"], trained: Collection[str] | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        r"""The trace of the noise's covariance and the squared mean, at n as it is, over n.

        They are :math:`4 k R^{2k-2} (1 + (k-1)/n)`, to which the second adds, and
        :math:`4 k^2 (R^{4k-2} - 2 \lambda m^k R^{2k-2} + \lambda^2 m^{2k-2}) / n`.
        """
        k, m, r2 = self.order, u[..., 0], u[..., 1]
        square = m**2 + r2
        power = square ** (k - 1)
        signal = self.snr * m ** (k - 1)
        mean = 4 * k**2 * (square * power**2 - 2 * signal * m * power + signal**2) / self.dim
        return 4 * k * power * (1 + (k - 1) / self.dim) + mean, mean

    def normalized_corrector(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """0 and 1, at R = 0 too."""
        return torch.stack([torch.zeros_like(u[..., 0]), torch.ones_like(u[..., 1])], dim=-1)

    def increment_covariance(
        self, u: Float[Tensor, "*batch 2"], step_size: float
    ) -> Float[Tensor, "*batch 2 2"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        # the increment's second order, delta |grad H|^2 in r2, fluctuates by n^(-1/2) only
        k = self.order
        m, r2 = u.unbind(-1)
        square = m**2 + r2
        isotropic, radial = 4 * k * square ** (k - 1), 4 * k * (k - 1) * square ** (k - 2)
        rows = [
            torch.stack([isotropic + radial * m**2, 2 * radial * m * r2], -1),
            torch.stack([2 * radial * m * r2, 4 * r2 * (isotropic + radial * r2)], -1),
        ]
        return torch.stack(rows, -2)

    def check_start(self, u0: Float[Tensor, "*batch 2"]) -> None:
        """Raise ValueError unless r2 >= 0."""
        smallest = float(u0[..., 1].detach().min())
        if smallest < -1e-6:
            raise ValueError(f"expected r2 >= 0 (it is a squared length), got {smallest:g}")

    def describe(self) -> dict[str, Any]:
        """Order and snr."""
        return {"order": self.order, "snr": _checks.plain(self.snr)}

    def equation(self, corrector: bool = True) -> str:
        """The equation; see `VectorField.equation`."""
        radius = "(r2 - c)" if corrector else "r2"
        return (
            "Effective dynamics (Proposition 3.1 of arXiv 2206.04030), R^2 = m^2 + r2:\n\n"
            "    dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) - alpha m\n"
            f"    dr2/dt = -4 k R^(2k-2) {radius} - 2 alpha r2"
        )

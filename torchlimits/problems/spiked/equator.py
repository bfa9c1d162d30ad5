"""`EquatorDynamics`: the diffusive limit of spiked matrix and tensor PCA at the equator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.diffusive import DiffusiveDynamics
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.spiked.field import NAMES


class EquatorDynamics(DiffusiveDynamics):
    r"""The diffusive limit of :math:`\tilde u = (\sqrt n\, m, r_2)` around the equator m = 0,

    .. math::
        d\tilde u_1 &= 2 \tilde u_1 (k \Lambda \tilde u_1^{k-2} - k \tilde u_2^{k-1}) dt
            + 2 \sqrt{c_\delta k \tilde u_2^{k-1}}\, dB \\
        d\tilde u_2 &= -4 k \tilde u_2^{k-1} (\tilde u_2 - c_\delta) dt

    with :math:`\Lambda = \lambda n^{-(k-2)/2}`: for k = 2 it is lambda; for k >= 3 and a fixed
    lambda it tends to 0 as n grows, and recovery from a random start needs
    :math:`\lambda_n = \Lambda n^{(k-2)/2}`. r2 is not rescaled.

    Source: Proposition 3.3 of arXiv 2206.04030 for c_delta = 1. (Its first version prints
    k Lambda for k >= 3 without the power; put m = u1/sqrt(n) into the equation of m.)

    Args:
        order: k.
        scaled_snr: Lambda.
        dim: n.
        settings: what the optimizer does, without weight decay.

    Raises:
        ValueError: for `NormalizedSGD`.
    """

    def __init__(self, *, order: int, scaled_snr: float, dim: int, settings: SGDSettings) -> None:
        if settings.normalized:
            raise ValueError(
                "expected torch.optim.SGD for the equator, got normalised gradients: use dynamics("
                "optimizer), from a measured start"
            )
        centre = torch.zeros(2, dtype=torch.float64, device="cpu")
        scale = centre.new_tensor([dim**0.5, 1.0])
        super().__init__(NAMES, dim, SGDLimit.of(settings), centre, scale)
        self.settings = settings
        self.order, self.scaled_snr = order, scaled_snr

    def drift(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
        """The drift at (sqrt(n) m, r2)."""
        k, alpha = self.order, self.settings.weight_decay
        u1, r2 = u.unbind(-1)
        power = r2 ** (k - 1)
        c, sign = self.settings.effective_step_size, self.settings.sign
        pull = torch.stack(
            [
                sign * 2 * k * (self.scaled_snr * u1 ** (k - 1) - u1 * power) - alpha * u1,
                -4 * k * power * (sign * r2 - c) - 2 * alpha * r2,
            ],
            dim=-1,
        )
        return self.settings.drift_factor * pull

    def diffusion(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2 2"]:
        """4 c k r2^(k-1) for sqrt(n) m, 0 for r2: rank 1."""
        strength = self.settings.corrector_factor * 4 * self.order * u[..., 1] ** (self.order - 1)
        zero = torch.zeros_like(strength)
        return torch.stack([strength, zero, zero, zero], dim=-1).unflatten(-1, (2, 2))

    def _noise_factor(self, u: Tensor) -> Tensor:
        return self.diffusion(u).clamp_min(0).sqrt()

    @property
    def rate(self) -> float:
        """The rate of r2 and of sqrt(n) m, at starts of order 1."""
        c = max(1.0, float(self.settings.effective_step_size))
        k = self.order
        return (
            float(self.settings.drift_factor)
            * 2
            * k
            * (2 * c ** (k - 1) + (k - 1) * self.scaled_snr)
        )

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return (
            "Diffusive limit at the equator (Proposition 3.3 of arXiv 2206.04030), "
            "u1 = sqrt(n) m:\n\n"
            "    du1 = 2 u1 (k Lambda u1^(k-2) - k r2^(k-1)) dt + 2 sqrt(c k r2^(k-1)) dB\n"
            "    dr2 = -4 k r2^(k-1) (r2 - c) dt"
        )

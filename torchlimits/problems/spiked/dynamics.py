"""Effective dynamics of spiked matrix and tensor PCA: ballistic, and diffusive at the equator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.diffusive import DiffusiveDynamics
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.fixed_points import FixedPoint, classify
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings

NAMES = ["m", "r2"]


class SpikedDynamics(EffectiveDynamics):
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
        settings: what the optimizer does; its weight decay is alpha.

    u is ``(..., 2)``: m, r2. The diffusion matrix is that of the gradient noise, Gaussian with
    covariance :math:`4 (k R^{2k-2} I + k (k-1) R^{2k-4} x x^T)`.

    **Normalised gradients** (`torchlimits.NormalizedSGD`): by that covariance
    :math:`\|\nabla L\| / \sqrt n \to 2 \sqrt{k/B} R^{k-1}`, B the batch size, so that the loss's
    part of the drift gets a factor :math:`\eta = \sqrt B / (2 \sqrt k R^{k-1})`, corrector and
    diffusion matrix one of :math:`\eta^2`; the ridge, which comes after the scaling, none. The
    corrector of r2 is then the constant c_delta, and fixed points have :math:`r_2 = c_\delta \eta`
    (B = 1). For k = 2 those with m != 0 have :math:`m^2 = \lambda - c / (2 \sqrt{2 \lambda})` and
    exist for :math:`\lambda > c^{2/3} / 2`: normalising lowers the threshold c if c > 1/8.
    """

    rtol = 1e-8
    atol = 1e-10
    settling_time = 0.0  # stiff, and in two dimensions the starts themselves find everything

    def __init__(
        self,
        *,
        order: int,
        snr: float,
        dim: int,
        settings: SGDSettings,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(NAMES, dim, settings, schedule)
        self.order, self.snr = order, snr

    def _terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        k, alpha, sign = self.order, self.settings.weight_decay, self.settings.sign
        m, r2 = u.unbind(-1)
        square = m**2 + r2
        power = square ** (k - 1)
        pull, shrink = 2 * k * (self.snr * m ** (k - 1) - m * power), -4 * k * power * r2
        kick = 4 * k * power
        if self.settings.normalized:
            eta = self._eta(square)
            pull, shrink = eta * pull, eta * shrink
            kick = torch.full_like(kick, self.settings.batch_size)  # eta^2 times it, at R = 0 too
        drift = torch.stack([sign * pull - alpha * m, sign * shrink - 2 * alpha * r2], dim=-1)
        return drift, torch.stack([torch.zeros_like(m), kick], dim=-1)

    def _eta(self, square: Tensor) -> Tensor:
        """sqrt(n) over the length of the gradient, at R^2 = square."""
        k, B = self.order, self.settings.batch_size
        safe = square.clamp_min(torch.finfo(square.dtype).tiny ** (1 / k))
        return (B / (4 * k)) ** 0.5 * safe ** (-(k - 1) / 2)

    def _increment_covariance(self, u: Tensor, step_size: float) -> Tensor:
        # the increment's second order, delta |grad H|^2 in r2, fluctuates by n^(-1/2) only
        k = self.order
        m, r2 = u.unbind(-1)
        square = m**2 + r2
        isotropic, radial = 4 * k * square ** (k - 1), 4 * k * (k - 1) * square ** (k - 2)
        rows = [
            torch.stack([isotropic + radial * m**2, 2 * radial * m * r2], -1),
            torch.stack([2 * radial * m * r2, 4 * r2 * (isotropic + radial * r2)], -1),
        ]
        covariance = torch.stack(rows, -2)
        if self.settings.normalized:
            covariance = self._eta(square)[..., None, None] ** 2 * covariance
        return covariance

    # --- fixed points in closed form --------------------------------------------------------------

    @property
    def critical_snr(self) -> float:
        r"""lambda_c: fixed points with m != 0 exist from here on,

        .. math:: \lambda_c(k) = c^{k/2} \Big(\frac{2(k-1)}{k}\Big)^{k-1}
            \Big(\frac{k}{k-2}\Big)^{(k-2)/2}, \quad \lambda_c(2) = c,

        with c = c_delta, and the optimizer's factors in it (`SGDSettings.effective_step_size`).
        With normalised gradients and k = 2 it is :math:`c^{2/3} / 2`.

        Raises:
            ValueError: where no closed form is known, see `exact_fixed_points`.
        """
        k, c = self.order, self._c()
        if self.settings.normalized:
            return c ** (2 / 3) / 2
        if k == 2:
            return c
        return c ** (k / 2) * (2 * (k - 1) / k) ** (k - 1) * (k / (k - 2)) ** ((k - 2) / 2)

    def m_star(self, sign: Literal[1, -1] = 1) -> float:
        r"""The overlap of the warm fixed point (m_star, c), the larger root of

        .. math:: \lambda m^{k-2} = (m^2 + c)^{k-1};

        for k = 2 it is :math:`\sqrt{\lambda - c}`, and stable above threshold like all of them
        (with normalised gradients :math:`\sqrt{\lambda - c / (2 \sqrt{2 \lambda})}`).

        Args:
            sign: -1 for its mirror image, which exists for even k only.

        Raises:
            ValueError: below `critical_snr`, or if sign is -1 and k is odd.
        """
        return self._root(sign, smaller=False)

    def m_dagger(self, sign: Literal[1, -1] = 1) -> float:
        """The overlap of the unstable fixed point between (0, c) and (m_star, c), for k >= 3.

        The smaller root of the equation of `m_star`; a start needs a larger overlap than about
        this to be warm. It tends to 0 with c_delta: the barrier is the corrector's doing.

        Raises:
            ValueError: for k = 2, below `critical_snr`, or if sign is -1 and k is odd.
        """
        if self.order == 2:
            raise ValueError("expected order >= 3: for k = 2 there is no m_dagger")
        return self._root(sign, smaller=True)

    def exact_fixed_points(self) -> list[FixedPoint]:
        """All fixed points, in closed form up to one scalar root: (0, 0), (0, c), (+-m, c).

        Source: Proposition 3.2 of arXiv 2206.04030, for any c_delta; the pairs with a minus sign
        for even k only. Same order as `fixed_points`.

        With normalised gradients and k = 2: (0, c^(2/3)/2) and (+-m, c / (2 sqrt(2 lambda))).

        Raises:
            ValueError: where the closed form does not hold: with a weight decay, ``maximize``, a
                schedule, or normalised gradients and k >= 3.
        """
        c = self._c()
        if self.settings.normalized:
            points = {(0.0, self.critical_snr)}
            if self.snr > self.critical_snr:
                m = self.m_star()
                points |= {(sign * m, c / (8 * self.snr) ** 0.5) for sign in (1, -1)}
            return self._in_order(points)
        overlaps = [0.0]
        if self.snr > self.critical_snr or (self.order > 2 and self.snr == self.critical_snr):
            roots = {self.m_star()} | ({self.m_dagger()} if self.order > 2 else set())
            signs = (1, -1) if self.order % 2 == 0 else (1,)
            overlaps += [sign * m for m in sorted(roots) if m > 0 for sign in signs]
        return self._in_order({(0.0, 0.0), *((m, c) for m in overlaps)})

    def _in_order(self, points: set[tuple[float, float]]) -> list[FixedPoint]:
        found = [self._fixed_point(*point) for point in points]
        order = {"stable": 0, "marginal": 1, "unstable": 2}
        return sorted(found, key=lambda p: (order[p.kind], *(round(x, 6) for x in p.u.tolist())))

    def _fixed_point(self, m: float, r2: float) -> FixedPoint:
        u = torch.tensor([m, r2], dtype=torch.float64, device="cpu")
        residual = float(self(0.0, u).abs().max())
        return FixedPoint(u, *classify(self, u), residual, u[None])

    def _c(self) -> float:
        if self.settings.weight_decay:
            raise ValueError(
                f"expected weight_decay 0 for the closed form, got {self.settings.weight_decay}: "
                "use fixed_points(), which finds them numerically"
            )
        self._check_autonomous("fixed points")
        settings = self.settings
        if settings.maximize or (settings.normalized and self.order > 2):
            what = "maximize=True" if settings.maximize else f"order {self.order}, normalized"
            raise ValueError(
                f"expected SGD that minimises (normalised: at order 2) for the closed form, got "
                f"{what}: use fixed_points(), which finds them numerically"
            )
        if settings.normalized:  # batches: sqrt(B) in the drift, B/B in the corrector
            return settings.step_size * settings.drift_factor / settings.batch_size**0.5
        return settings.effective_step_size

    def _root(self, sign: int, *, smaller: bool) -> float:
        k, c = self.order, self._c()
        if sign not in (1, -1):
            raise ValueError(f"expected sign to be 1 or -1, got {sign!r}")
        if sign < 0 and k % 2:
            raise ValueError(
                f"expected sign=1 for the odd order k={k}, got -1: for odd k there is no fixed "
                "point of negative overlap, since lambda m^(k-2) is then negative"
            )
        if self.snr < self.critical_snr:
            raise ValueError(
                f"expected snr >= lambda_c = {self.critical_snr:.6g} for a fixed point with m != 0 "
                f"at order {k} and c_delta={c:g}, got snr={self.snr:g}: there is none below"
            )
        if k == 2:
            r2 = c / (8 * self.snr) ** 0.5 if self.settings.normalized else c
            return sign * math.sqrt(self.snr - r2)
        if c == 0:
            return 0.0 if smaller else sign * self.snr ** (1 / k)

        def excess(log_m: float) -> float:
            """log of lambda m^(k-2) / (m^2 + c)^(k-1): rises to log(lambda/lambda_c), falls."""
            return (
                math.log(self.snr) + (k - 2) * log_m - (k - 1) * math.log(math.exp(2 * log_m) + c)
            )

        top = math.log(c * (k - 2) / k) / 2
        if excess(top) <= 0:  # snr == critical_snr up to rounding: the roots have met
            return sign * math.exp(top)
        # |excess| grows at least linearly in log m on either side
        reach = (excess(top) + 2 * k) * (1 if not smaller else -1)
        return sign * math.exp(_bisect(excess, top, top + reach))

    # --- starts for the numerical ones ------------------------------------------------------------

    def _random_starts(self, count: int, generator: torch.Generator) -> Float[Tensor, "S 2"]:
        # fixed points have |m| <= lambda^(1/k) and r2 = 0 or c
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64, device="cpu")
        reach = 1.2 * self.snr ** (1 / self.order)
        k, settings = self.order, self.settings
        radius = 2 * settings.effective_step_size
        if settings.normalized:
            c = settings.step_size * settings.drift_factor / settings.batch_size**0.5
            radius = 2 * (c / (4 * k) ** 0.5) ** (2 / (k + 1))
        starts = torch.stack([reach * (2 * uniform[:, 0] - 1), radius * uniform[:, 1]], dim=-1)
        if settings.normalized:  # the origin is no fixed point
            return starts
        # the degenerate origin is where everything that is in doubt slowly converges to
        return torch.cat([starts.new_zeros(1, 2), starts])

    def _project(self, u: Tensor) -> Tensor:
        return torch.stack([u[..., 0], u[..., 1].clamp_min(0)], dim=-1)

    def _check_start(self, u0: Tensor) -> None:
        if float(u0[..., 1].min()) < -1e-6:
            raise ValueError(
                f"expected r2 >= 0 (it is a squared length), got {float(u0[..., 1].min()):g}"
            )

    def describe(self) -> dict[str, Any]:
        """Parameters of the prediction."""
        return {"order": self.order, "snr": self.snr, **super().describe()}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        radius = "(r2 - c)" if corrector else "r2"
        if self.settings.normalized:
            noise = " + c" if corrector else ""
            return "\n".join(
                [
                    "Effective dynamics (Proposition 3.1 of arXiv 2206.04030) for normalised "
                    "gradients, R^2 = m^2 + r2, eta = 1/(2 k^(1/2) R^(k-1)):",
                    "",
                    "    dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) eta - alpha m",
                    f"    dr2/dt = -4 k R^(2k-2) r2 eta{noise} - 2 alpha r2",
                ]
            )
        return "\n".join(
            [
                "Effective dynamics (Proposition 3.1 of arXiv 2206.04030), R^2 = m^2 + r2:",
                "",
                "    dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) - alpha m",
                f"    dr2/dt = -4 k R^(2k-2) {radius} - 2 alpha r2",
            ]
        )


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
        dim, settings: n and what the optimizer does; without weight decay.

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
        super().__init__(NAMES, dim, settings, centre, scale)
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
        """That of r2 and of sqrt(n) m, at starts of order 1."""
        c = max(1.0, self.settings.effective_step_size)
        k = self.order
        return self.settings.drift_factor * 2 * k * (2 * c ** (k - 1) + (k - 1) * self.scaled_snr)

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return "\n".join(
            [
                "Diffusive limit at the equator (Proposition 3.3 of arXiv 2206.04030), "
                "u1 = sqrt(n) m:",
                "",
                "    du1 = 2 u1 (k Lambda u1^(k-2) - k r2^(k-1)) dt + 2 sqrt(c k r2^(k-1)) dB",
                "    dr2 = -4 k r2^(k-1) (r2 - c) dt",
            ]
        )


def _bisect(function: Callable[[float], float], inside: float, outside: float) -> float:
    """The root between inside, where the function is positive, and outside, where it is not."""
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if function(middle) > 0 else (inside, middle)
    return (inside + outside) / 2

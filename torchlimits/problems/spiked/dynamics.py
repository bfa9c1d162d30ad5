"""`SpikedDynamics`: effective dynamics of spiked matrix and tensor PCA."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.fixed_points import FixedPoint, FixedPoints, in_order
from torchlimits.dynamics.stability import classify
from torchlimits.optim.adagrad_norm_limit import AdaGradNormLimit
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.spiked.chain import SpikedChain
from torchlimits.problems.spiked.field import SpikedField, SpikedGeometry
from torchlimits.statistics.summary import SummaryStatistics


class SpikedDynamics(EffectiveDynamics):
    r"""Effective dynamics of m = <x, v> and r2 = \|x\|^2 - m^2, see `SpikedField`.

    **Normalised gradients** (`torchlimits.NormalizedSGD`): by the covariance given there
    :math:`\|\nabla L\| / \sqrt n \to 2 \sqrt{k/B} R^{k-1}`, B the batch size, so that the loss's
    part of the drift gets a factor :math:`\eta = \sqrt B / (2 \sqrt k R^{k-1})`, corrector and
    diffusion matrix one of :math:`\eta^2`; the ridge, which comes after the scaling, gets none. The
    corrector of r2 is then the constant c_delta, and fixed points have :math:`r_2 = c_\delta \eta`
    (B = 1). For k = 2 those with m != 0 have :math:`m^2 = \lambda - c / (2 \sqrt{2 \lambda})` and
    exist for :math:`\lambda > c^{2/3} / 2`: normalising lowers the threshold c if c > 1/8.

    Args:
        order: k >= 2; 2 is matrix PCA.
        snr: lambda.
        dim: n.
        settings: what the optimizer does; its weight decay is alpha.
        schedule: c_delta(t).
        limit: that of `torchlimits.AdaGradNorm`, whose gradients the settings are of; None for SGD.
    """

    limit: SGDLimit | AdaGradNormLimit
    #: the problem's statistics, with the optimizer's state where it counts
    statistics: SummaryStatistics

    def __init__(
        self, *, order: int, snr: float | Tensor, dim: int, settings: SGDSettings,
        schedule: Schedule | None = None, limit: AdaGradNormLimit | None = None,
    ) -> None:  # fmt: skip
        # fixed points have |m| <= lambda^(1/k) and r2 = 0 or c
        number, plain = _checks.plain(snr), settings.plain()
        reach, radius2 = 1.2 * number ** (1 / order), 2 * float(plain.effective_step_size)
        if settings.normalized:
            c = float(plain.step_size) * float(plain.drift_factor) / settings.batch_size**0.5
            radius2 = 2 * (c / (4 * order) ** 0.5) ** (2 / (order + 1))
        geometry = SpikedGeometry(reach, radius2, origin=not settings.normalized)
        field = SpikedField(order=order, snr=snr, dim=dim, geometry=geometry)
        super().__init__(field, limit or SGDLimit.of(settings), schedule=schedule)
        self.order, self.snr = order, number

    @property
    def settings(self) -> SGDSettings:
        """What the optimizer does, in numbers."""
        return self._plain.settings.plain()

    @property
    def _plain(self) -> SGDLimit:
        """SGD, whatever divides its steps."""
        return self.limit.plain if isinstance(self.limit, AdaGradNormLimit) else self.limit

    def reduced_chain(self) -> SpikedChain:
        """The exact chain of the same problem and optimizer."""
        limit = self.limit.at_finite_n()
        return SpikedChain(
            order=self.order, snr=self.snr, dim=self.dim, limit=limit, schedule=self.schedule
        )

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

        for k = 2 it is :math:`\sqrt{\lambda - c}`, and it is stable above threshold, as for every k
        (with normalised gradients :math:`\sqrt{\lambda - c / (2 \sqrt{2 \lambda})}`).

        Args:
            sign: -1 stands for the mirror image, which exists for even k only.

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

    def exact_fixed_points(self) -> FixedPoints:
        """All fixed points, in closed form up to one scalar root: (0, 0), (0, c), (+-m, c).

        Source: Proposition 3.2 of arXiv 2206.04030, for any c_delta; the pairs with a minus sign
        exist for even k only. The order is that of `fixed_points`.

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

    def _in_order(self, points: set[tuple[float, float]]) -> FixedPoints:
        return in_order([self._fixed_point(*point) for point in points], self.names)

    def _fixed_point(self, m: float, r2: float) -> FixedPoint:
        u = torch.tensor([m, r2], dtype=torch.float64, device="cpu")
        residual = float(self(0.0, u).abs().max())
        values, kind, dimension, bifurcation = classify(self, u)
        return FixedPoint(u, values, kind, dimension, residual, u[None], bifurcation)

    def _c(self) -> float:
        if self.settings.weight_decay:
            raise ValueError(
                f"expected weight_decay 0 for the closed form, got {self.settings.weight_decay}: "
                "use fixed_points(), which finds them numerically"
            )
        self.check_autonomous("fixed points")
        self.limit.check_at_rest("fixed points")
        settings = self.settings
        if settings.maximize or (settings.normalized and self.order > 2):
            what = "maximize=True" if settings.maximize else f"order {self.order}, normalized"
            raise ValueError(
                f"expected SGD that minimises (normalised: at order 2) for the closed form, got "
                f"{what}: use fixed_points(), which finds them numerically"
            )
        if settings.normalized:  # batches: sqrt(B) in the drift, B/B in the corrector
            return float(settings.step_size * settings.drift_factor) / settings.batch_size**0.5
        return float(settings.effective_step_size)

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
        # snr == critical_snr up to the rounding of the logarithms: the roots have met
        if excess(top) <= 1e-14:
            return sign * math.exp(top)
        # |excess| grows at least linearly in log m on either side
        reach = (excess(top) + 2 * k) * (1 if not smaller else -1)
        return sign * math.exp(_root_of(excess, *sorted((top, top + reach))))

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, as `Flow.equation`."""
        if not self.settings.normalized:
            return super().equation(corrector)
        noise = " + c" if corrector else ""
        return (
            "Effective dynamics (Proposition 3.1 of arXiv 2206.04030) for normalised "
            "gradients, R^2 = m^2 + r2, eta = 1/(2 k^(1/2) R^(k-1)):\n\n"
            "    dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) eta - alpha m\n"
            f"    dr2/dt = -4 k R^(2k-2) r2 eta{noise} - 2 alpha r2"
        )


def _root_of(function: Callable[[float], float], low: float, high: float) -> float:
    # imported here: scipy takes a second
    from scipy.optimize import brentq

    root: Any = brentq(function, low, high, xtol=1e-15)
    return float(root)

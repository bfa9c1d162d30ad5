"""`AdaGradNormField`: the statistics of a problem and the b of AdaGrad-Norm beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.vector_field import VectorField, matrices_of_each
from torchlimits.optim.adagrad_norm_geometry import AdaGradNormGeometry
from torchlimits.optim.sgd_limit import SGDLimit

#: the statistic v = (b/n)^2
NAME = "accumulator"
#: b^2 that changes by more than this part in the first step is small
_LARGEST_STEP = 0.05


class AdaGradNormField(VectorField):
    r"""Drift and corrector of statistics u and of v = (b/n)^2 under `AdaGradNorm`.

    A step of size eta/b has :math:`c_\delta = \gamma = \eta/\sqrt v`. In the time s = steps/n,

    .. math:: \frac{du}{ds} = \gamma\,(-f + \tfrac{\gamma}{B} g), \qquad
        \frac{dv}{ds} = \frac{1}{n} E\|\nabla L_{batch}\|^2,

    and limit time, the sum of the eta, is :math:`t = \eta n s`. The squared gradient of a batch is
    1/B of that of a sample, of order 1, and terms of order 1/n that
    `VectorField.mean_square_gradient` knows. A step divides by the b that has its own gradient in
    it: v is taken half a step later.

    Source: the increments of `AdaGradNorm` in the scaling of Theorem 2.2 of arXiv 2206.04030: v
    moves by O(1/n) a step, as the statistics do, so it is one of them.

    Args:
        base: the field of the statistics.
        plain: what is done to gradients besides the division by b: learning rates, weight decay,
            batches.
        initial: b_0.
    """

    def __init__(self, base: VectorField, plain: SGDLimit, initial: float) -> None:
        super().__init__([*base.names, NAME], base.dim)
        self.base, self.plain, self.initial = base, plain, initial
        self.geometry = AdaGradNormGeometry(base.geometry)
        self.rtol, self.atol, self.error = base.rtol, base.atol, base.error
        self.settling_time = base.settling_time
        self.trained = None
        if plain.layers is not None:
            self.trained = [name for name, s in plain.layers.settings.items() if s is not None]

    # --- the state --------------------------------------------------------------------------------

    def split(self, u: Float[Tensor, "*batch k"]) -> tuple[Tensor, Tensor]:
        """The statistics of the problem, and v ``(..., 1)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return u[..., :-1], u[..., -1:]

    def completed(self, u: Any) -> Any:
        """u with the v of a fresh optimizer, if it has the problem's statistics only.

        Args:
            u: shape ``(..., k)`` or one less.
        """
        if not isinstance(u, Tensor) or u.ndim == 0 or u.shape[-1] != len(self.base.names):
            return u
        v = u.new_full((*u.shape[:-1], 1), (self.initial / self.dim) ** 2)
        return torch.cat([u, v], dim=-1)

    @property
    def start_names(self) -> list[str]:
        """The problem's statistics: with these alone, a fresh optimizer starts."""
        return self.base.names

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless b can have this value; warn where its first steps are large."""
        base, v = self.split(u0)
        self.base.check_start(base)
        if bool((v <= 0).any()):
            raise ValueError(
                f"expected {NAME} = (b/n)^2 > 0 in u0, got {float(v.min()):.3g}: leave it out for "
                "a fresh optimizer, or start from a recorded one"
            )
        with torch.no_grad():
            gain = float((self.square(base) / (self.dim * v)).max())
        if gain > _LARGEST_STEP:
            _checks.warn_user(
                f"b^2 = {float(v.min()) * self.dim**2:.3g} grows by {gain:.2g} of itself in the "
                "first step: the limit needs b of the order of n at the start, as with less the "
                "first steps are each of a size of its own; set initial= of AdaGradNorm to a part "
                f"of n = {self.dim}"
            )

    # --- drift and corrector ----------------------------------------------------------------------

    def square(self, base: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch 1"]:
        """The mean square of a batch's gradient, over n.

        Args:
            base: statistics of the problem.
        """
        one, common = self.base.mean_square_gradient(base, self.trained)
        B = self.plain.settings.batch_size
        return (one / B + (1 - 1 / B) * common)[..., None]

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector at the optimizer's own eta."""
        return self.rates(u, self.plain.step_size)

    def rates(
        self, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector, per unit of limit time.

        Args:
            u: statistics, shape ``(..., k)``.
            step_size: n eta at that time.

        Raises:
            ValueError: if eta is 0, as b grows while limit time stands still.
        """
        if not _checks.plain(step_size) > 0:
            raise ValueError(
                "expected learning rates > 0 with AdaGradNorm, got 0: b grows in steps of size 0, "
                "too, while limit time, the sum of the learning rates, stands still; let the "
                "schedule start above 0"
            )
        base, v = self.split(u)
        Q = self.square(base)
        gamma = self._gamma(v + Q / (2 * self.dim), step_size)
        drift, corrector = self.plain.rates(self.base, base, gamma)
        pace = gamma / step_size
        return (
            torch.cat([pace * drift, Q / step_size], dim=-1),
            torch.cat([pace * corrector, torch.zeros_like(v)], dim=-1),
        )

    def _gamma(self, v: Tensor, step_size: float | Tensor) -> Tensor:
        """c_delta of a step, eta/sqrt(v)."""
        return step_size / (self.dim * v.clamp_min(torch.finfo(v.dtype).tiny).sqrt())

    # --- noise ------------------------------------------------------------------------------------

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """n times the covariance gained in a unit of limit time, over n eta; v's noise included.

        A batch's squared gradient fluctuates as a step does: by a part of order 1, in steps of v
        of order 1/n.
        """
        with torch.no_grad():
            return matrices_of_each(u, lambda point: self._increments(point, step_size))

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        base, v = self.split(u)
        B = self.plain.settings.batch_size
        gamma = float(self._gamma(v, step_size))
        own = gamma * self.plain.diffusion(self.base, base, gamma)
        speed, second = self.plain.signed_speed(self.base, base, gamma)
        cross, square = self.base.square_covariance(base, second, self.trained)
        side = gamma * speed * cross / B**2
        whole = u.new_zeros(len(u), len(u))
        whole[:-1, :-1], whole[:-1, -1], whole[-1, :-1] = own, side, side
        whole[-1, -1] = square / B**3
        return whole / step_size**2

    # --- the rest of the contract -----------------------------------------------------------------

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives as the base computes them; see `VectorField.jacobian`."""
        return self.base.jacobian(velocity, u)

    def pace(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The pace of the base."""
        return self.base.pace(self.split(u)[0])

    def for_band(self) -> AdaGradNormField:
        """The same field on what the base takes for bands."""
        return AdaGradNormField(self.base.for_band(), self.plain, self.initial)

    def describe(self) -> dict[str, Any]:
        """What the base describes."""
        return self.base.describe()

    def equation(self, corrector: bool = True) -> str:
        """The equations solved, in markdown.

        Args:
            corrector: False leaves the corrector out.
        """
        return (
            f"{self.base.equation(corrector)}\n\n"
            "with c = gamma = eta/sqrt(v), v = (b/n)^2 of AdaGradNorm. In the time s = steps/n, "
            "du/ds is gamma times that, and\n\n"
            "    dv/ds = (1/n) E|grad L|^2 of a batch.\n\n"
            "Limit time, the sum of the eta, is eta n s."
        )

"""`AdaptiveField`: the statistics of a network and the second moments of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._once import without_derivatives
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.contracts.vector_field import VectorField, matrices_of_each
from torchlimits.optim import adaptive_equation
from torchlimits.optim.adaptive_geometry import AdaptiveGeometry
from torchlimits.optim.batch_averages import BatchAverages, averages_of
from torchlimits.optim.differences import central_differences
from torchlimits.optim.gradient_map import GradientMap
from torchlimits.optim.moment_layout import Entries, MomentLayout, Settings
from torchlimits.optim.moment_noise import MomentNoise, Step
from torchlimits.optim.muon_averages import MuonAverages
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.step_noise import StepNoise

#: steps of central differences by second moments, relative to them
_STEP = 1e-4


class _Gradient(NamedTuple):
    """Mean gradients of the parts of the parameters, weight decay included."""

    theta: Tensor
    bias: Tensor
    signal: Tensor
    across: Tensor


class _Point(NamedTuple):
    """What the rates at one u consist of."""

    parts: tuple[Tensor, Tensor, Tensor, Tensor]
    gradient: _Gradient
    pair: Tensor
    second: Tensor
    expected: Tensor
    scale: Entries


class AdaptiveField(VectorField):
    r"""Drift and corrector of (theta, b, m, R) and of second moments v, at any snr and batch.

    With :math:`D = 1/(\sqrt{\hat v} + \epsilon)` for each row of W, each bias and each of the
    head's entries, :math:`\hat v` what the optimizer divides by (`SecondMoment.used`), Q the mean
    of a batch's squared gradient, weight decay lambda (coupled) or omega (decoupled),

    .. math::
        \dot\theta &= -D (E[\partial_\theta l] + \lambda\theta) - \omega\theta, \qquad
            \dot m = -D (E[g x_\parallel^T] + \lambda m) - \omega m \\
        \dot R &= -D (E[g P^T] + \lambda R) - h.c. - 2\omega R
            + \frac{c_\delta \sigma^2}{B} D E[g g^T] D, \qquad
            \dot v = \frac{N}{c_\delta} \log(1/\beta_2) (Q - v).

    Q is :math:`\sigma^2 E[g_k^2]/B` for a row of W, whose coordinates each have next to nothing of
    the mean gradient, and :math:`Var(G)/B + (E G + \lambda\theta)^2` for the others, among them
    the coordinates of x that lie in the span of the directions, each with a v of its own.

    Where gradients are mapped by f before they are squared, the averages are those of f(G), over
    batches: :math:`E[C_{kl}]` instead of :math:`\sigma^2 E[g_k g_l]/B`, and :math:`Var f(G)`
    (`BatchAverages`). Weight decay comes after f.

    Source: the increments of `torch.optim.Adam` in the scaling of Theorem 2.2 of arXiv 2206.04030:
    v moves by O(1/N) a step, as the statistics do, so it is one of them.

    Args:
        base: the field of (theta, b, m, R).
        kind, reference, settings: as in `MomentLayout`.
        axes: the coordinates of x that have second moments of their own, ``(d, J)``.
        map: f, what is done to a batch's gradient before all this; None if nothing.
    """

    def __init__(
        self, base: GradientField, *, kind: str, reference: Settings,
        settings: Mapping[str, Settings | None], axes: Float[Tensor, "d J"],
        map: GradientMap | None = None,
    ) -> None:  # fmt: skip
        self._arguments: dict[str, Any] = {
            "kind": kind, "reference": reference, "settings": settings, "axes": axes, "map": map,
        }  # fmt: skip
        layout = MomentLayout(kind, reference, settings, base, axes.shape[1])
        super().__init__([*base.names, *layout.names], base.dim)
        self.base, self.moments, self.axes = base, layout, axes
        self.reference, self.map = reference, map
        self.averages: BatchAverages = averages_of(base, map, reference.batch_size, axes)
        own = settings.get(base.weight)
        if isinstance(own, MuonSettings):
            self.averages = MuonAverages(self.averages, own)
        self.rtol, self.atol = self.averages.tolerances
        self.settling_time = base.settling_time
        *second, corrected = layout.sizes
        sizes = (len(base.names), sum(second), corrected)
        self.geometry = AdaptiveGeometry(
            base.geometry, sizes, self.settled, self._option("eps", axes.double())
        )

    # --- the state --------------------------------------------------------------------------------

    def split(self, u: Float[Tensor, "*batch k"]) -> tuple[Tensor, Tensor, Tensor]:
        """The statistics of the network, the second moments and w ``(..., 1)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        own = len(self.base.names)
        *sizes, corrected = self.moments.sizes
        base, v, w = u.split([own, sum(sizes), corrected], dim=-1)
        return base, v, w if corrected else torch.ones_like(u[..., :1])

    def completed(self, u: Tensor) -> Tensor:
        """u with the second moments of a fresh optimizer, if it has the network's statistics only.

        Args:
            u: shape ``(..., k)`` or less.
        """
        if u.ndim == 0 or u.shape[-1] != len(self.base.names):
            return u
        names = self.moments.names
        initial = self._option("initial", u)
        rest = u.new_zeros(len(names) - len(initial))
        fresh = torch.cat([initial, rest]).expand(*u.shape[:-1], -1)
        return torch.cat([u, fresh], dim=-1)

    def settled(self, u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch k"]:
        """u with the second moments that an average has after many steps at one place.

        Args:
            u: the statistics of the network; with second moments it is returned as it is.
        """
        base, u = u, self.completed(u)
        if u is base:  # with second moments, or nothing that has some
            return u
        v = self._at(u.double()).expected.to(u)
        corrected = torch.ones_like(u[..., : self.moments.sizes[-1]])
        return torch.cat([base, v, corrected], dim=-1)

    @property
    def start_names(self) -> list[str]:
        """The network's statistics: with these alone, a fresh optimizer starts."""
        return self.base.names

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless an optimizer can have these second moments."""
        base, v, w = self.split(u0)
        self.base.check_start(base)
        if bool((v < 0).any()) or bool(((w < 0) | (w > 1)).any()):
            raise ValueError(
                "expected second moments >= 0 and bias_correction2 in [0, 1] in u0, got others: "
                "leave them out for a fresh optimizer, or start from recorded ones"
            )

    # --- drift and corrector ----------------------------------------------------------------------

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector at the reference's c_delta."""
        return self.rates(u, float(self.reference.step_size))

    def rates(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector.

        Args:
            u: statistics, shape ``(..., k)``.
            step_size: c_delta at that time.

        Raises:
            ValueError: if c_delta is 0, as second moments change while limit time stands still.
        """
        if step_size <= 0:
            raise ValueError(
                "expected learning rates > 0 with an optimizer that keeps second moments, got 0: "
                "these change in steps of size 0, too, while limit time, the sum of the learning "
                "rates, stands still; let the schedule start above 0"
            )
        u = without_derivatives(u, f"the dynamics of {self.moments.kind or 'Muon'}")
        point = self._at(u.double())
        (theta, b, m, R), gradient, pair, v, Q, D = point
        W, bias, head = self.moments.options(u.double())
        D_W = D.rows[..., None]
        dm = -D_W * gradient.signal - W.speed * W.decay * m
        if self.moments.axes:
            axes = self.axes.to(m)
            dm = dm - ((D.axes - D_W) * (gradient.signal @ axes)) @ axes.mT
        half = -D_W * gradient.across - W.speed * W.decay * R
        drift = self.base.of_parts(
            -D.theta * gradient.theta - head.speed * head.decay * theta,
            -D.bias * gradient.bias - bias.speed * bias.decay * b, dm, half + half.mT,
        )  # fmt: skip
        kick = step_size * D_W * pair * D.rows[..., None, :]
        still = [torch.zeros_like(x) for x in (theta, b, m)]
        corrector = self.base.of_parts(still[0], still[1], still[2], kick)
        return self._with_memory(u, drift, v, Q, step_size), _padded(corrector, u)

    def _with_memory(
        self, u: Tensor, drift: Tensor, v: Tensor, Q: Tensor, step_size: float
    ) -> Tensor:
        steps = self.dim / step_size  # in a unit of limit time
        change = steps * self.moments.rule.change(v, Q, self._option("memory", v))
        parts = [drift, change]
        if self._corrected:
            w = self.split(u)[2].double()
            parts.append(-steps * _log(self.moments.memory, w) * (1 - w))
        return torch.cat(parts, dim=-1).to(u.dtype)

    def _at(self, u: Float[Tensor, "*batch k"]) -> _Point:
        base, v, w = self.split(u)
        parts = theta, b, m, R = self.base.parts(base)
        means, variances = self.averages(base)
        W, bias, head = self.moments.options(u)
        gradient = _Gradient(
            head.sign * means.theta + head.ridge * theta,
            bias.sign * means.bias + bias.ridge * b,
            W.sign * means.signal + W.ridge * m,
            W.sign * means.across + W.ridge * R,
        )
        Q = self.moments.gather(
            Entries(
                means.pair.diagonal(dim1=-2, dim2=-1),
                variances.axes + (gradient.signal @ self.axes.to(m)).square(),
                variances.bias + gradient.bias.square(),
                variances.theta + gradient.theta.square(),
            )
        )
        return _Point(parts, gradient, means.pair, v, Q, self._scales(v, w, Q))

    def _scales(self, v: Tensor, w: Tensor, Q: Tensor) -> Entries:
        """rho D of every parameter."""
        memory = self._option("memory", v)
        if self._corrected:
            # groups may have different memories; all have made s steps
            passed = torch.log1p(-w.clamp_max(1 - 1e-15)) / _log(self.moments.memory, v)
            w = -torch.expm1(passed * memory.log())
        used = self.moments.rule.used(v, w, Q, memory).clamp_min(0)
        speed, eps = self._option("speed", v), self._option("eps", v)
        return self.moments.scales(speed / (used.sqrt() + eps))

    @property
    def _corrected(self) -> bool:
        """Whether w is a part of the state."""
        return bool(self.moments.sizes[-1])

    def _option(self, name: str, like: Tensor) -> Tensor:
        return self.moments.option(name, like)

    # --- noise ------------------------------------------------------------------------------------

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step in units of c_delta / N, second moments among it."""
        with torch.no_grad():
            return matrices_of_each(u, lambda point: self._increments(point, step_size))

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        point = self._at(u)
        G, D = point.gradient, point.scale
        W, bias, head = self.moments.options(u)
        scales = Entries(D.rows * W.sign, D.axes * W.sign, D.bias * bias.sign, D.theta * head.sign)
        mean = self.moments.gather(
            Entries(torch.zeros_like(G.bias), G.signal @ self.axes.to(u), G.bias, G.theta)
        )
        step = Step(scales, mean, self._rate(point.second, step_size), step_size)
        noise = MomentNoise(StepNoise(self.base, self.axes), self.moments)
        return noise.covariance(self.averages.draws(self.split(u)[0]), step)

    def _rate(self, v: Float[Tensor, " V"], step_size: float) -> Float[Tensor, " V"]:
        """How much v takes up of a squared gradient in a unit of limit time."""
        rule, memory = self.moments.rule, self._option("memory", v)
        return self.dim / step_size * (rule.change(v, v + 1, memory) - rule.change(v, v, memory))

    # --- derivatives and the rest of the contract -------------------------------------------------

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives by central differences, of nodes that stay the same."""
        u = u.detach().double()
        with torch.no_grad():
            steps = self._differences(u)
        return central_differences(velocity, u, steps)

    def _differences(self, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k"]:
        base, v, w = self.split(u)
        Q, memory = self._at(u).expected, self._option("memory", v)
        parts = [
            torch.full_like(base, self.averages.difference),
            _STEP * (v.abs() + (1 - memory) * Q + 1e-30),
        ]
        if self._corrected:
            parts.append(_STEP * (w + 1 - self.moments.memory))
        return torch.cat(parts, dim=-1)

    def pace(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The logarithm of 1 - beta_2^s: at step s a second moment changes by a part of 1/s."""
        if not self._corrected:
            return super().pace(u)
        return torch.log(self.split(u)[2][..., 0] + 1 - self.moments.memory)

    def for_band(self) -> AdaptiveField:
        """The same field on what the base takes for bands."""
        base = self.base.for_band()
        assert isinstance(base, GradientField)
        return AdaptiveField(base, **self._arguments)

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of the averages."""
        return self.averages.error

    def describe(self) -> dict[str, Any]:
        """What the base describes, and the map."""
        return {**self.base.describe(), **({} if self.map is None else self.map.describe())}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        return adaptive_equation.equation(self.moments, self.map, corrector)


def _log(memory: float, like: Tensor) -> Tensor:
    return torch.tensor(memory, dtype=like.dtype, device=like.device).log()


def _padded(base: Tensor, u: Tensor) -> Tensor:
    """The corrector of the statistics, and 0 for second moments, which have none."""
    still = base.new_zeros(*base.shape[:-1], u.shape[-1] - base.shape[-1])
    return torch.cat([base, still], dim=-1).to(u.dtype)

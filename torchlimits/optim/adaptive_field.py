"""`AdaptiveField`: the statistics of a network and the second moments of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits._once import without_derivatives
from torchlimits.contracts.gradient_field import Averages, GradientField, Samples, Squares
from torchlimits.contracts.vector_field import VectorField, matrices_of_each
from torchlimits.optim.adaptive_geometry import AdaptiveGeometry
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.differences import central_differences
from torchlimits.optim.moment_layout import Entries, MomentLayout, Options

#: steps of central differences where terms are smooth, and where nodes cross kinks
_STEP, _STEP_AT_KINKS = 1e-4, 2e-2


class _Gradient(NamedTuple):
    """Mean gradients of the parts of the parameters, weight decay included."""

    theta: Tensor
    bias: Tensor
    signal: Tensor
    across: Tensor


class _Point(NamedTuple):
    """What the rates at one u consist of."""

    parts: tuple[Tensor, Tensor, Tensor, Tensor]
    averages: Averages
    gradient: _Gradient
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

    Source: the increments of `torch.optim.Adam` in the scaling of Theorem 2.2 of arXiv 2206.04030:
    v moves by O(1/N) a step, as the statistics do, so it is one of them.

    Args:
        base: the field of (theta, b, m, R).
        kind, reference, settings: as in `MomentLayout`.
        axes: the coordinates of x that have second moments of their own, ``(d, J)``.
    """

    def __init__(
        self, base: GradientField, *, kind: str, reference: AdaptiveSettings,
        settings: Mapping[str, AdaptiveSettings | None], axes: Float[Tensor, "d J"],
    ) -> None:  # fmt: skip
        self._arguments: dict[str, Any] = {
            "kind": kind, "reference": reference, "settings": settings, "axes": axes,
        }  # fmt: skip
        layout = MomentLayout(kind, reference, settings, base, axes.shape[1])
        super().__init__([*base.names, *layout.names], base.dim)
        self.base, self.moments, self.axes = base, layout, axes
        self.reference = reference
        self.rtol, self.atol, self.settling_time = base.rtol, base.atol, base.settling_time
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
        fresh = u.new_full((*u.shape[:-1], len(names)), self.reference.initial)
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
        return self.rates(u, self.reference.step_size)

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
        u = without_derivatives(u, f"the dynamics of {self.moments.kind}")
        point = self._at(u.double())
        (theta, b, m, R), averages, gradient, v, Q, D = point
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
        kick = D_W * averages.gram * D.rows[..., None, :]
        factor = step_size / (_checks.plain(self.base.snr) * self.reference.batch_size)
        still = [torch.zeros_like(x) for x in (theta, b, m)]
        corrector = self.base.of_parts(still[0], still[1], still[2], factor * kick)
        return self._with_memory(u, drift, v, Q, step_size), _padded(corrector, u)

    def _with_memory(
        self, u: Tensor, drift: Tensor, v: Tensor, Q: Tensor, step_size: float
    ) -> Tensor:
        steps = self.dim / step_size  # in a unit of limit time
        change = steps * self.moments.rule.change(v, Q, self._option("memory", v))
        parts = [drift, change]
        if self.moments.rule.corrected:
            w = self.split(u)[2].double()
            parts.append(-steps * _log(self.reference.memory, w) * (1 - w))
        return torch.cat(parts, dim=-1).to(u.dtype)

    def _at(self, u: Float[Tensor, "*batch k"]) -> _Point:
        base, v, w = self.split(u)
        parts = theta, b, m, R = self.base.parts(base)
        averages, squares = self._averages(base)
        W, bias, head = self.moments.options(u)
        gradient = _Gradient(
            head.sign * averages.theta + head.ridge * theta,
            bias.sign * averages.bias + bias.ridge * b,
            W.sign * averages.signal + W.ridge * m,
            W.sign * averages.across + W.ridge * R,
        )
        B, axes = self.reference.batch_size, self.axes.to(m)
        g2 = averages.gram.diagonal(dim1=-2, dim2=-1)
        on_axes = averages.signal @ axes

        def expected(square: Tensor, mean: Tensor, whole: Tensor) -> Tensor:
            return (square - mean.square()).clamp_min(0) / B + whole.square()

        Q = self.moments.gather(
            Entries(
                g2 / (_checks.plain(self.base.snr) * B),
                expected(squares.axes, on_axes, gradient.signal @ axes),
                expected(g2, averages.bias, gradient.bias),
                expected(squares.theta, averages.theta, gradient.theta),
            )
        )
        D = self._scales(v, w, Q)
        return _Point(parts, averages, gradient, v, Q, D)

    def _averages(self, base: Float[Tensor, "*batch k"]) -> tuple[Averages, Squares]:
        """Averages at each point once: differences by second moments leave the network alone."""
        flat = base.reshape(-1, base.shape[-1])
        points, place = flat.unique(dim=0, return_inverse=True) if len(flat) > 1 else (flat, None)
        found = self.base.gradients(points, self.axes)
        if place is None:
            place = torch.zeros(len(flat), dtype=torch.long, device=flat.device)

        def spread(x: Tensor) -> Tensor:
            return x[place].reshape(*base.shape[:-1], *x.shape[1:])

        return Averages(*map(spread, found[0])), Squares(*map(spread, found[1]))

    def _scales(self, v: Tensor, w: Tensor, Q: Tensor) -> Entries:
        """rho D of every parameter."""
        memory = self._option("memory", v)
        if self.moments.rule.corrected:
            # groups may have different memories; all have made s steps
            passed = torch.log1p(-w.clamp_max(1 - 1e-15)) / _log(self.reference.memory, v)
            w = -torch.expm1(passed * memory.log())
        used = self.moments.rule.used(v, w, Q, memory).clamp_min(0)
        speed, eps = self._option("speed", v), self._option("eps", v)
        return self.moments.spread(speed / (used.sqrt() + eps))

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
        point, samples = self._at(u), self.base.samples(self.split(u)[0])
        B, weight = self.reference.batch_size, samples.weight
        variance = 1 / _checks.plain(self.base.snr)
        W, bias, head = self.moments.options(u)
        D, g = point.scale, W.sign * samples.gradient
        pull = D.rows * g
        kick = step_size * variance / B * pull[:, :, None] * pull[:, None, :]
        moves = self._moves(
            -D.theta * head.sign * samples.theta, -D.bias * bias.sign * samples.gradient,
            *self._first_layer(g, samples.along, D), kick,
        )  # fmt: skip
        # squares of a batch's mean: linear in the deviations, and their own products
        x = samples.along[:, : self.axes.shape[0]] @ self.axes.to(u)
        deviations = Entries(
            torch.zeros_like(g), g[:, :, None] * x[:, None, :], bias.sign * samples.gradient,
            head.sign * samples.theta,
        )  # fmt: skip
        deviation = self.moments.gather(deviations)
        deviation = deviation - weight @ deviation
        G = point.gradient
        mean = self.moments.gather(
            Entries(torch.zeros_like(G.bias), G.signal @ self.axes.to(u), G.bias, G.theta)
        )
        rows = self.moments.gather(
            Entries(*(torch.zeros_like(x) for x in deviations))._replace(rows=variance / B * g**2)
        )
        rate = self._rate(point.second, step_size)
        squares = rate * (rows + 2 * mean * deviation + deviation**2 / B)
        together = torch.cat([moves, squares, u.new_zeros(len(moves), len(u) - moves.shape[1]
                                                          - squares.shape[1])], dim=-1)  # fmt: skip
        together = together - weight @ together
        covariance = together.mT @ (weight[:, None] * together)
        covariance = covariance + self._rest(samples, D, W, len(u))
        own = deviation.mT @ (weight[:, None] * deviation)
        products = 2 * (B - 1) / B**2 * torch.outer(rate, rate) * own**2
        first = moves.shape[1]
        covariance[first : first + len(rate), first : first + len(rate)] += products
        return covariance / B

    def _rest(self, samples: Samples, D: Entries, W: Options, k: int) -> Float[Tensor, "k k"]:
        """What the part of w adds that is independent of pre-activations and labels."""
        g, K = samples.gradient, self.base.width
        GG = g.mT @ (samples.weight[:, None] * g)
        eye = torch.eye(K, dtype=g.dtype, device=g.device)
        e = len(samples.rest)
        each = W.sign * eye.expand(e, K, K)
        m, R = self._first_layer(each, samples.rest[:, None, :].expand(-1, K, -1), D)
        still = g.new_zeros(e, K, len(self.base.head))
        linear = self._moves(still, torch.zeros_like(each), m, R, None)
        whole = g.new_zeros(k, k)
        size = linear.shape[-1]
        whole[:size, :size] = torch.einsum("eik,ij,ejl->kl", linear, GG, linear)
        return whole

    def _first_layer(self, g: Tensor, w: Tensor, D: Entries) -> tuple[Tensor, Tensor]:
        """The moves of m, and half of those of R, for gradients g along w."""
        d = self.axes.shape[0]
        pull = -D.rows * g
        dm = pull[..., :, None] * w[..., None, :d]
        if self.moments.axes:
            axes = self.axes.to(w)
            own = (D.axes - D.rows[..., None]) * (g[..., :, None] * (w[..., None, :d] @ axes))
            dm = dm - own @ axes.mT
        return dm, pull[..., :, None] * w[..., None, d:]

    def _moves(
        self, theta: Tensor, b: Tensor, m: Tensor, half: Tensor, kick: Tensor | None
    ) -> Tensor:
        R = half + half.mT
        return self.base.of_parts(theta, b, m, R if kick is None else R + kick)

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
            torch.full_like(base, _STEP if self.base.smooth else _STEP_AT_KINKS),
            _STEP * (v.abs() + (1 - memory) * Q + 1e-30),
        ]
        if self.moments.rule.corrected:
            parts.append(_STEP * (w + 1 - self.reference.memory))
        return torch.cat(parts, dim=-1)

    def pace(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The logarithm of 1 - beta_2^s: at step s a second moment changes by a part of 1/s."""
        if not self.moments.rule.corrected:
            return super().pace(u)
        return torch.log(self.split(u)[2][..., 0] + 1 - self.reference.memory)

    def for_band(self) -> AdaptiveField:
        """The same field on what the base takes for bands."""
        base = self.base.for_band()
        assert isinstance(base, GradientField)
        return AdaptiveField(base, **self._arguments)

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of the base."""
        return self.base.error

    def describe(self) -> dict[str, Any]:
        """What the base describes."""
        return self.base.describe()

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        kick = " + (c/(snr B)) D_i E[g_i g_j] D_j" if corrector else ""
        clock = {
            "Adam": "log(1/beta2) (N/c) (Q - v)", "RMSprop": "log(1/alpha) (N/c) (Q - v)",
            "Adagrad": "(N/c) Q",
        }[self.moments.kind]  # fmt: skip
        return "\n".join(
            [
                f"Effective dynamics of h = W x + b, output = head(h) under {self.moments.kind}, "
                "with g = dl/dh of one sample, P = W_perp x, D = 1/(sqrt(v^) + eps) for each "
                "parameter (each row of W), Q the mean of a batch's squared gradient:",
                "",
                "    dtheta/dt = - D (E[dl/dtheta] + lambda theta) - omega theta",
                "    db_i/dt   = - D (E[g_i] + lambda b_i) - omega b_i",
                "    dm_ij/dt  = - D_i (E[g_i x_j] + lambda m_ij) - omega m_ij",
                "    dR_ij/dt  = - D_i (E[g_i P_j] + lambda R_ij) - D_j (E[g_j P_i] + lambda R_ij)"
                f" - 2 omega R_ij{kick}",
                f"    dv/dt     = {clock}",
            ]
        )


def _log(memory: float, like: Tensor) -> Tensor:
    return torch.tensor(memory, dtype=like.dtype, device=like.device).log()


def _padded(base: Tensor, u: Tensor) -> Tensor:
    """The corrector of the statistics, and 0 for second moments, which have none."""
    still = base.new_zeros(*base.shape[:-1], u.shape[-1] - base.shape[-1])
    return torch.cat([base, still], dim=-1).to(u.dtype)

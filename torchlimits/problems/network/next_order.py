"""`NextOrder`: what momentum does to a network's statistics at finite N, beyond the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import Averages
from torchlimits.dynamics import solver
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.start import begun
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.first_layer_field import FirstLayerField
from torchlimits.trajectory import Trajectory

#: eigenvalues of R below this, relative to the largest, count as 0
_NOTHING = 1e-10


class NextOrder:
    r"""The dynamics of a network's statistics under momentum at finite N, with the buffer's own.

    The parameters w and the slow variable y (`torchlimits.statistics.slow_variable`) differ by
    :math:`d = w - y`, the momentum buffer times a lag :math:`l = \frac{\beta}{1-\beta}\frac{c}{N}`
    in limit time (Nesterov's momentum: :math:`\beta^2` above the line). The limit has d = 0. Here
    d is a state that forgets at the rate :math:`r = \frac{N}{c} \log\frac1\beta`, with products
    :math:`R^{yd}` and :math:`R^{dd}` of its rows with those of y and with themselves:

    .. math::
        \dot\theta_y &= -q E\,\partial_\theta, \quad
            \dot\theta_d = r (l q E\,\partial_\theta - \theta_d) \\
        \dot R^{yy} &= -q (A_y + A_y^T) + C, \quad
            \dot R^{yd} = -q A_d + r (l q A_y^T - R^{yd} - l C) \\
        \dot R^{dd} &= r (l q (A_d + A_d^T) - 2 R^{dd} + 2 l \nu C)

    b and m like theta. Averages are at w: with A = E[g P^T], :math:`A_y = A (R^{ww})^{-1} R^{wy}`
    and :math:`A_d = A (R^{ww})^{-1} R^{wd}` are the products of gradients with y and with d
    (Stein's lemma), :math:`C = q^2 \frac{c}{\lambda B} E[g g^T]`, :math:`q = (1-\tau)/(1-\beta)`,
    and :math:`\nu = \beta/(1+\beta)` (Nesterov: :math:`\beta^2/(1+\beta)`); weight decay comes with
    its gradient. This holds to all orders in :math:`l`, from the empty buffer on. Corrections of
    order 1/N that plain SGD has as well are left out, and, with dampening, that torch's first
    buffer is the whole gradient.

    Args:
        dynamics: those of a `GaussianMixture` or `NetworkProblem`.

    Raises:
        TypeError: if they are of another kind.
        ValueError: if there is a schedule, parameters have settings of their own, the loss is
            maximised, or c_delta is 0.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=250, snr=2.0)
        >>> dynamics = problem.dynamics(step_size=0.05, momentum=0.97)
        >>> u0 = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
        >>> ahead = dynamics.next_order()  # or tl.NextOrder(dynamics)
        >>> w, first = (x.solve(u0, [0.0, 0.02]) for x in (ahead, dynamics))
        >>> round(float((w.final - first.final).abs().max()), 2)
        0.04
    """

    def __init__(self, dynamics: EffectiveDynamics) -> None:
        field, limit = dynamics.field, dynamics.limit
        if not isinstance(field, FirstLayerField) or type(limit) is not SGDLimit:
            raise TypeError(
                "expected the dynamics of a tl.GaussianMixture or tl.NetworkProblem under SGD, got "
                f"{type(dynamics).__name__}: the next order in 1/N is known for these; any "
                "statistics can be recorded of the slow variable, tl.statistics.slow_variable"
            )
        field.check_isotropic("the next order in 1/N")
        dynamics.check_autonomous("the next order in 1/N")
        limit.settings.check_plain("the next order in 1/N")
        if limit.layers is not None or field.layout.scale != 1:
            raise ValueError(
                "expected one learning rate, momentum and weight decay for all parameters, got "
                "some that have their own: the next order in 1/N is not known for them"
            )
        self.dynamics, self.field, self.settings = dynamics, field, limit.settings.plain()
        c = float(self.settings.step_size)
        _checks.positive("step_size", c, "gradient flow has no momentum")
        beta, nesterov = float(self.settings.momentum), self.settings.nesterov
        self.lag = beta ** (1 + nesterov) / (1 - beta) * c / field.dim
        self.noise = beta ** (1 + nesterov) / (1 + beta)
        # a memory that is shorter than a step makes no difference
        self.rate = (min(-math.log(beta), 1.0) if beta else 1.0) * field.dim / c

    def solve(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *, slow: bool = False,
        rtol: float | None = None, atol: float | None = None,
    ) -> Trajectory:  # fmt: skip
        """Integrate from u0, where the optimizer has taken no step; starts one after the other.

        Args:
            u0, times: as in `EffectiveDynamics.solve`.
            slow: predict the statistics of the slow variable, which
                `torchlimits.statistics.slow_variable` records, instead of those of the parameters.
            rtol, atol: tolerances of a step; by default a tenth of those of the dynamics.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` in float64.

        Raises:
            ValueError, TypeError, RuntimeError: as `EffectiveDynamics.solve`.
        """
        dynamics = self.dynamics
        given, times = begun(u0, times, dynamics.names)
        instants = _checks.ordered_times(times)
        start = dynamics.started(given)
        # d is fast: an implicit method's steps are not limited by its memory
        fine = dynamics.rtol / 10 if rtol is None else _checks.positive("rtol", rtol)
        finest = dynamics.atol / 10 if atol is None else _checks.positive("atol", atol)
        found = solver.integrate(self._velocity, self._fresh(start), instants, fine, finest, "BDF")
        state = self._state(found)
        values = state.y if slow else self._sum(state)
        of = "the slow variable" if slow else "the parameters"
        facts: dict[str, Any] = {
            "equation": f"{dynamics.equation()}\n\nwith momentum's buffer at finite N, of {of}",
            "parameters": {**dynamics.describe(), "corrector": True, "slow": slow},
        }
        return Trajectory(
            instants, dynamics.steps(instants), values, dynamics.names, metadata=facts
        )

    def _fresh(self, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch all"]:
        """The state in which y is, and the buffer is empty."""
        *_, R = self.field.layout.split(y)
        return torch.cat([y, torch.zeros_like(y), torch.zeros_like(R).flatten(-2)], dim=-1)

    def _state(self, packed: Float[Tensor, "*batch all"]) -> _State:
        """Statistics of y and of d, and their products."""
        k, K = len(self.field.names), self.field.width
        y, d, mixed = packed.split([k, k, K * K], dim=-1)
        return _State(y, d, mixed.unflatten(-1, (K, K)))

    def _sum(self, state: _State) -> Float[Tensor, "*batch k"]:
        """The statistics of w = y + d."""
        of_y, of_d = (self.field.layout.split(u) for u in (state.y, state.d))
        theta, b, m, R = (y + d for y, d in zip(of_y, of_d, strict=True))
        return self.field.layout.join(theta, b, m, R + state.mixed + state.mixed.mT)

    def _forces(self, u: Float[Tensor, "*batch k"]) -> tuple[Averages, Tensor]:
        """The averages of gradients at u, weight decay included, and C."""
        s, (theta, b, m, R) = self.settings, self.field.layout.split(u)
        found = self.field.averages(u)
        if s.weight_decay:
            decay = s.weight_decay
            found = Averages(
                found.theta + decay * theta, found.bias + decay * b,
                found.signal + decay * m, found.across + decay * R, found.gram,
            )  # fmt: skip
        return found, s.corrector_factor / self.field.snr * found.gram

    def _velocity(self, _: Any, packed: Float[Tensor, "*batch all"]) -> Float[Tensor, "*batch all"]:
        state, join, split = self._state(packed), self.field.layout.join, self.field.layout.split
        q, r, lag = self.settings.drift_factor, self.rate, self.lag
        w = self._sum(state)
        pull, C = self._forces(w)
        theta, b, m, Rdd = split(state.d)
        Ryy, Ryd = split(state.y)[3], state.mixed
        along = pull.across @ _inverse(split(w)[3])
        Ay, Ad = along @ (Ryy + Ryd.mT), along @ (Ryd + Rdd)
        y = join(-q * pull.theta, -q * pull.bias, -q * pull.signal, C - q * (Ay + Ay.mT))
        force = lag * q
        d = join(
            r * (force * pull.theta - theta),
            r * (force * pull.bias - b),
            r * (force * pull.signal - m),
            r * (force * (Ad + Ad.mT) - 2 * Rdd + 2 * lag * self.noise * C),
        )
        mixed = r * (force * Ay.mT - Ryd - lag * C) - q * Ad
        return torch.cat([y, d, mixed.flatten(-2)], dim=-1)


class _State(NamedTuple):
    """The statistics of y, those of d, and the products of y's rows with d's across directions."""

    y: Float[Tensor, "*batch k"]
    d: Float[Tensor, "*batch k"]
    mixed: Float[Tensor, "*batch K K"]


def _inverse(R: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch K K"]:
    """The inverse where R has one; nearly parallel neurons leave eigenvalues of any sign near 0."""
    values, vectors = torch.linalg.eigh(R)
    kept = values > _NOTHING * values.amax(-1, keepdim=True)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return (vectors * inverse[..., None, :]) @ vectors.mT

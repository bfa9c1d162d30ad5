"""`NextOrder`: what momentum does to a network's statistics at finite N, to first order in 1/N."""

from __future__ import annotations

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
    r"""The dynamics of a network's statistics under momentum, with what is of order 1/(N(1-beta)).

    The parameters w and the slow variable y (`torchlimits.statistics.slow_variable`) are a lag
    :math:`l = \frac{\beta}{1-\beta}\frac{c}{N}` apart in limit time (Nesterov's momentum:
    :math:`\beta^2` above the line). The ODE is that of y, with the averages at w:

    .. math::
        \theta_w &= \theta + l q E\,\partial_\theta, \quad
            R_w = R + l q (A + A^T) - l \kappa\, C, \quad R_{wy} = R + l q A - l C \\
        \dot\theta &= -q E\,\partial_\theta, \quad
            \dot R = -q (A R_w^{-1} R_{wy} + h.c.) + C

    b and m like theta, with A = E[g P^T], :math:`C = q^2 \frac{c}{\lambda B} E[g g^T]`,
    :math:`q = (1-\tau)/(1-\beta)`, and :math:`\kappa = (2+\beta)/(1+\beta)` (Nesterov:
    :math:`(2 + 2\beta - \beta^2)/(1+\beta)`); weight decay comes with its gradient. Corrections of
    order 1/N that plain SGD has as well are left out, and so is the buffer's beginning, the first
    :math:`1/(1-\beta)` steps or so.

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
        >>> w, y = (ahead.solve(u0, [0.0, 0.1], slow=slow) for slow in (False, True))
        >>> first = dynamics.solve(u0, [0.0, 0.1])
        >>> [round(float((x.final - first.final).abs().max()), 2) for x in (w, y)]
        [0.03, 0.02]
    """

    def __init__(self, dynamics: EffectiveDynamics) -> None:
        field, limit = dynamics.field, dynamics.limit
        if not isinstance(field, FirstLayerField) or type(limit) is not SGDLimit:
            raise TypeError(
                "expected the dynamics of a tl.GaussianMixture or tl.NetworkProblem under SGD, got "
                f"{type(dynamics).__name__}: the next order in 1/N is known for these; any "
                "statistics can be recorded of the slow variable, tl.statistics.slow_variable"
            )
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
        self.kappa = (2 + (2 * beta - beta**2 if nesterov else beta)) / (1 + beta)

    def solve(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *, slow: bool = False,
    ) -> Trajectory:  # fmt: skip
        """Integrate from u0, where the optimizer has taken no step.

        Args:
            u0, times: as in `EffectiveDynamics.solve`.
            slow: predict the statistics of the slow variable, which
                `torchlimits.statistics.slow_variable` records, instead of those of the parameters.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` in float64.

        Raises:
            ValueError, TypeError, RuntimeError: as `EffectiveDynamics.solve`.
        """
        dynamics = self.dynamics
        given, times = begun(u0, times, dynamics.names)
        instants = _checks.ordered_times(times)
        start = dynamics.started(given)
        y = solver.integrate(self._velocity, start, instants, dynamics.rtol, dynamics.atol)
        shown = y if slow else self._at(y).u
        # the buffer is empty at first, so that w is y
        begins = (instants == instants[0])[:, None]
        values = torch.where(begins, y, shown)
        of = "the slow variable" if slow else "the parameters"
        facts: dict[str, Any] = {
            "equation": f"{dynamics.equation()}\n\nwith the next order of momentum in 1/N, of {of}",
            "parameters": {**dynamics.describe(), "corrector": True, "slow": slow},
        }
        return Trajectory(
            instants, dynamics.steps(instants), values, dynamics.names, metadata=facts
        )

    def _at(self, y: Float[Tensor, "*batch k"]) -> _Place:
        """w and the products of w and y, from the averages at y."""
        split, lag = self.field.layout.split, self.lag
        pull, noise = self._forces(y)
        force = lag * self.settings.drift_factor
        theta, b, m, R = split(y)
        A = pull.across
        w = self.field.layout.join(
            theta + force * pull.theta,
            b + force * pull.bias,
            m + force * pull.signal,
            R + force * (A + A.mT) - lag * self.kappa * noise,
        )
        return _Place(w, R + force * A - lag * noise)

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

    def _velocity(self, _: Any, y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        place = self._at(y)
        pull, noise = self._forces(place.u)
        q, (_, _, _, R) = self.settings.drift_factor, self.field.layout.split(place.u)
        values, vectors = torch.linalg.eigh(R)
        # nearly parallel neurons make R_w indefinite
        kept = values > _NOTHING * values.amax(-1, keepdim=True)
        inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
        across = pull.across @ (vectors * inverse[..., None, :]) @ vectors.mT @ place.mixed
        return self.field.layout.join(
            -q * pull.theta, -q * pull.bias, -q * pull.signal, -q * (across + across.mT) + noise
        )


class _Place(NamedTuple):
    """The statistics at w, and the product of W_w and W_y across the directions."""

    u: Float[Tensor, "*batch k"]
    mixed: Float[Tensor, "*batch K K"]

"""`basins`: to which means the effective dynamics of a network take the neurons of starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.own_steps import follow
from torchlimits.problems.mixture.dynamics import MixtureDynamics
from torchlimits.problems.network.dynamics import NetworkDynamics

#: how often to look which neurons have turned to a mean
_LOOKS = 10
#: the least cosine to its mean of a neuron that has turned to it
_TURNED = 0.95
#: the largest length, relative to the longest neuron's, of a neuron that has died out
_DIED = 1e-2


@dataclass(frozen=True, eq=False)
class Basins:
    """Where starts went, as `basins` found it.

    Attributes:
        classes: for each neuron the number a of the mean that it has turned to, or -1 if it died
            out before, or had not turned by the end; shape ``(..., K)``. At snr = infinity these
            numbers name the component of fixed points, `FixedPointComponent.classes`. A neuron has
            turned to the mean that it was last seen within acos(0.95) of. It has died out when its
            length, the root of |m_i|^2 + R_ii, is less than 1 % of the longest one's.
        final: the statistics at the end, shape ``(..., k)``, float64.
        times: the limit time at the end, shape ``(...)``.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=1000, snr=100.0, ridge=0.1)
        >>> u0 = problem.starts(3, generator=torch.Generator().manual_seed(0))
        >>> tl.basins(problem.dynamics(step_size=1.0, level=-1), u0)
        Basins(3 starts, 3 with a mean for every neuron)
    """

    classes: Int[Tensor, "*batch K"]
    final: Float[Tensor, "*batch k"]
    times: Float[Tensor, "*batch"]

    def __repr__(self) -> str:
        turned = int((self.classes >= 0).all(-1).sum())
        return f"Basins({self.times.numel()} starts, {turned} with a mean for every neuron)"


def basins(
    dynamics: MixtureDynamics | NetworkDynamics, u0: Float[Tensor, "*batch k"], *,
    time: float = 100.0, rtol: float = 5e-3,
) -> Basins:  # fmt: skip
    """Follow starts until every neuron has turned to one of the means or died out (see `Basins`).

    For thousands of starts take dynamics of a coarse level (``problem.dynamics(level=-3)`` for
    K > 2); levels -2 and -3 are taken in single precision and with fewer nodes
    (``ReluField.for_classes``). A start goes one way or another by instabilities, which grow from
    differences that symmetric quadrature keeps; only starts on an edge go elsewhere than with a
    fine level and a smaller tolerance: 3 in 1,000 for XOR with K = 4, see the figures in
    ``docs/performance.md``.

    Each start has steps of its own (``dynamics.own_steps.follow``), and is looked at ten times,
    every tenth of the time. Starts that have arrived are no longer followed: a neuron that has died
    out by then may grow back later where a mean is left that no other neuron has turned to.

    Args:
        dynamics: the effective dynamics of a `GaussianMixture`, or of a `NetworkProblem` with
            means that are not all 0.
        u0: starts, shape ``(..., k)``.
        time: the limit time at which to stop, whatever has happened.
        rtol: the relative tolerance of a step; the absolute one is a hundredth of it, as overlaps
            with the means, which decide where a neuron turns, begin at N^{-1/2}.

    Raises:
        TypeError: if the dynamics are not those of a network on a mixture, whose neurons turn to
            its means.
        ValueError, RuntimeError: as ``dynamics.solve``; if all means are 0.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=1000, snr=100.0, ridge=0.1)
        >>> u0 = problem.starts(3, generator=torch.Generator().manual_seed(0))
        >>> found = tl.basins(problem.dynamics(step_size=1.0, level=-1), u0)
        >>> found.classes
        tensor([[0, 1],
                [1, 1],
                [0, 0]])
        >>> problem.is_optimal(found.final)
        tensor([ True, False, False])
    """
    if not isinstance(dynamics, (MixtureDynamics, NetworkDynamics)):
        raise TypeError(
            "expected the dynamics of a tl.GaussianMixture or tl.NetworkProblem, got "
            f"{type(dynamics).__name__}: basins says which mean each neuron turns to; for other "
            "dynamics compare the ends of dynamics.solve(u0, [0.0, 100.0]) with "
            "dynamics.fixed_points()"
        )
    time = _checks.positive("time", time)
    _checks.positive("rtol", rtol)
    start = dynamics.started(u0)
    rows = start.reshape(-1, start.shape[-1])
    classes = torch.full((len(rows), dynamics.width), -1, device=rows.device)

    def arrived(some: Tensor, u: Tensor) -> Tensor:
        length, turned = dynamics.lengths(u), dynamics.classes(u, _TURNED)
        alive = length > _DIED * length.amax(-1, keepdim=True)
        classes[some] = torch.where(alive & (turned >= 0), turned, classes[some])
        return ~(alive & (turned < 0)).any(-1)

    looks = [time * (i + 1) / _LOOKS for i in range(_LOOKS)]
    flow = dynamics.on(dynamics.field.for_classes())
    u, times = follow(
        flow, rows, looks, rtol, rtol / 100, arrived, autonomous=dynamics.schedule is None
    )
    batch = start.shape[:-1]
    return Basins(classes.reshape(*batch, -1), u.reshape(start.shape), times.reshape(batch))

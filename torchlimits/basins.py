"""`basins`: to which fixed points the effective dynamics of a mixture take starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import checks, solver
from torchlimits.problems.mixture_dynamics import MixtureODE

#: of a step of `basins`, where the way is of no interest
_RTOL = 1e-2
#: between two looks at which starts have arrived
_LOOKS = 10


@dataclass(frozen=True, eq=False)
class Basins:
    """Where starts went.

    Attributes:
        classes: for each neuron the number a of the mean it has turned to, or -1, ``(..., K)``;
            see `MixtureODE.classes`. At snr = infinity that is the component of fixed points,
            `FixedPointComponent.classes`.
        final: the statistics then, ``(..., k)``, float64.
        times: the limit time then: of the look at which all neurons had turned, or the last one.
    """

    classes: Int[Tensor, "*batch K"]
    final: Float[Tensor, "*batch k"]
    times: Float[Tensor, "*batch"]

    def __repr__(self) -> str:
        decided = int((self.classes >= 0).all(-1).sum())
        return f"Basins({self.times.numel()} starts, {decided} with a mean for every neuron)"


def basins(dynamics: MixtureODE, u0: Float[Tensor, "*batch k"], *, time: float = 100.0) -> Basins:
    r"""Follow starts until every neuron has turned to one of the means, or up to a limit time.

    For thousands of starts take dynamics of a coarse level (``problem.dynamics(level=-3)`` for
    K > 2): which way a start goes is decided by instabilities, and symmetric quadrature errs in
    proportion to how far they have grown. Steps are those of Heun's method with a tolerance of
    1e-2, which rounds the way there and not where it leads; starts that have arrived are no longer
    followed. Of 10,000 starts of XOR, K = 4, snr = 100, README says how many go where a fine
    solution takes them, and how long it took.

    Args:
        dynamics: of a `GaussianMixture`.
        u0: starts, shape ``(..., k)``.
        time: the limit time at which to stop; neurons that no mean attracts die out slowly, at
            the rate of the ridge.

    Raises:
        ValueError, TypeError: as ``dynamics.solve``.
        RuntimeError: if the solver cannot reach its tolerance.

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
    looks = torch.linspace(0, checks.positive("time", time), _LOOKS + 1, dtype=torch.float64)
    start = dynamics.started(u0)
    u = start.double().reshape(-1, start.shape[-1]).clone()
    times = torch.zeros(len(u), dtype=u.dtype, device=u.device)
    followed = torch.arange(len(u), device=u.device)
    for piece in looks.unfold(0, 2, 1):
        solved = solver.integrate(
            dynamics, u[followed], piece, _RTOL, _RTOL / 10, method="adaptive_heun"
        )
        u[followed], times[followed] = solved[:, -1], piece[-1].to(times)
        followed = followed[(dynamics.classes(u[followed]) < 0).any(-1)]
        if not len(followed):
            break
    u, times = u.reshape(start.shape), times.reshape(start.shape[:-1])
    return Basins(dynamics.classes(u), u, times)

"""`StepControl`: how long the steps of an SDE may be, from what its paths meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: a step times the fastest rate of the drift, at most
RESOLUTION = 0.1
#: relative change of the diffusion matrix that the noise of one step makes, at most
_CHANGE = 0.4
#: noise below this fraction of the largest among the paths may change by any factor
_NEGLIGIBLE = 1e-2
#: products with the Jacobian before the first step; after that there is one for each look
_FIRST = 12
#: steps that a look ahead is for
_STEPS = 3
#: how much of a random direction the power iteration takes in at each look
_FRESH = 0.3


@dataclass(frozen=True)
class Equation:
    """An SDE, as its solver sees it.

    Args:
        drift: ``(..., k)`` -> ``(..., k)``.
        diffusion: the diffusion matrix, ``(..., k)`` -> ``(..., k, k)``.
        kick: the noise that a Brownian increment gives at u, of u and the increment.
        project: the nearest values that statistics can have.
        distance: over which the drift is differentiated, relative to 1 + \\|u\\|.
    """

    drift: Callable[[Tensor], Tensor]
    diffusion: Callable[[Tensor], Tensor]
    kick: Callable[[Tensor, Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    distance: float


class StepControl:
    r"""Steps that resolve the fastest of many paths, chosen before their noise is drawn.

    A step h is allowed if, at the point that each path is likely to reach in three of them (moved
    by the drift and a kick of typical size), h times the spectral radius of the drift's Jacobian
    is at most `RESOLUTION`, and if noise changes the diffusion matrix by at most 40 % in it.

    The spectral radius comes by power iteration on differences of the drift, which kinks do not
    disturb, with one product at each look: its vectors go along with the paths, and take in some
    of a random direction each time, so that a mode that becomes the fastest is seen.

    As the step depends on the present alone, it does not bias the noise. For a linear drift of rate
    r and constant noise the stationary variance errs by :math:`(h r)^2/4`, at most 0.25 %, and
    second moments under noise proportional to u by at most 2 % in the time that noise takes to
    change u by itself.

    Args:
        equation: the SDE.
        generator: of random directions.
        longest: no step is longer.
    """

    def __init__(
        self, equation: Equation, generator: torch.Generator | None, longest: float
    ) -> None:
        self.equation, self.generator, self.longest = equation, generator, longest
        self.rate = 0.0
        self._vectors: Tensor | None = None
        self._last = float("inf")

    def look(self, u: Float[Tensor, "*batch k"], remaining: float) -> tuple[float, float]:
        """The longest step that all paths at u may take, and for how long that holds.

        `rate` is then the fastest rate met.

        Args:
            u: the present points of the paths, shape ``(..., k)``.
            remaining: the time that is left.
        """
        horizon = min(_STEPS * self.longest, 2 * self._last, remaining)
        if self._vectors is None:
            self._begin(u)
            horizon = min(horizon, _STEPS * self._by_drift())
        slope, kick, noise = self._leaving(u)
        while True:
            ahead = self.equation.project(u + horizon * slope + horizon**0.5 * kick)
            fits = self._fitting(ahead, noise, horizon)
            if horizon <= 1.5 * _STEPS * fits or horizon < 1e-300:
                break
            # too far ahead to tell what is met on the way there
            horizon = max(_STEPS * fits, horizon / 4)
        self._last = horizon
        return min(horizon, fits, self.longest), horizon

    def _begin(self, u: Tensor) -> None:
        self._vectors = self._random(u)
        for _ in range(_FIRST):
            self._iterate(u)

    def _leaving(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Drift, a kick of typical size for a unit of time, and diffusion matrix."""
        signs = self._random(u).sign()
        equation = self.equation
        return equation.drift(u), equation.kick(u, signs), equation.diffusion(u)

    def _fitting(self, ahead: Tensor, noise: Tensor, horizon: float) -> float:
        """The step that would be right at ``ahead``, where paths may be after a time."""
        self._iterate(ahead)
        change = _relative_change(noise, self.equation.diffusion(ahead))
        # noise moves by the root of the time
        by_noise = horizon * (_CHANGE / change) ** 2 if change > 0 else float("inf")
        return min(self._by_drift(), by_noise)

    def _by_drift(self) -> float:
        return RESOLUTION / self.rate if self.rate > 0 else float("inf")

    def _iterate(self, u: Tensor) -> None:
        """One product of the Jacobian at u with the vectors; `rate` is the largest growth."""
        assert self._vectors is not None
        vectors = _unit(self._vectors + _FRESH * self._random(u))
        distance = self.equation.distance * (1 + u.abs().amax(-1, keepdim=True))
        drift = self.equation.drift
        change = (drift(u + distance * vectors) - drift(u)) / distance
        rate = float(change.norm(dim=-1).max())
        self.rate = rate if rate < float("inf") else float("inf")
        self._vectors = _unit(change.nan_to_num(0.0, 0.0, 0.0))

    def _random(self, u: Tensor) -> Tensor:
        normal = torch.randn(u.shape, generator=self.generator, dtype=u.dtype, device=u.device)
        return _unit(normal) if self._vectors is None else normal * u.shape[-1] ** -0.5


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _relative_change(noise: Tensor, ahead: Tensor) -> float:
    """The largest over the paths, beside what noise is of any size."""
    size = torch.linalg.matrix_norm(noise)
    size = size.clamp_min(_NEGLIGIBLE * float(size.max())).clamp_min(1e-300)
    change = torch.linalg.matrix_norm(ahead - noise) / size
    return float(change.max()) if bool(size.max() > 1e-300) else 0.0

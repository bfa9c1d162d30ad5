"""Diffusive limits: stochastic dynamics of rescaled statistics around a fixed point."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks, _linalg
from torchlimits.dynamics.law import check_size, law_of
from torchlimits.dynamics.start import begun
from torchlimits.dynamics.step_control import Equation, StepControl
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.trajectory import Trajectory

#: over which drifts are differentiated, relative to 1 + |u|: that a rate is right to a few percent
#: is enough, and rounding is far below
_DISTANCE = 1e-4
#: steps of a solution, at most
_MOST_STEPS = 10**6
#: the largest norm of A h for which the covariance gained is a sum of so many derivatives
_SHORT, _TERMS = 0.25, 14
#: marks, in a trajectory's metadata, that its values are u~ and not u
_RESCALED = "rescaled"


class DiffusiveDynamics(ABC):
    r"""The diffusive limit of rescaled statistics :math:`\tilde u`, an SDE in the sense of Ito,

    .. math:: d\tilde u = drift(\tilde u)\, dt + diffusion(\tilde u)^{1/2} dB.

    Source: Theorem 2.2 of arXiv 2206.04030, applied to rescaled statistics.

    Args:
        names: the names of the k statistics.
        dim: the dimension n.
        limit: what the optimizer does.
        centre: u*, shape ``(k,)``.
        scale: the factor of each statistic, u~ = scale (u - u*), shape ``(k,)``.
    """

    def __init__(
        self, names: Sequence[str], dim: int, limit: OptimizerLimit, centre: Float[Tensor, " k"],
        scale: Float[Tensor, " k"],
    ) -> None:  # fmt: skip
        self.names, self.dim, self.limit = list(names), dim, limit
        self.centre, self.scale = centre, scale

    @abstractmethod
    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The drift at u~, per unit of limit time."""

    @abstractmethod
    def diffusion(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
        """The diffusion matrix at u~: covariance per unit of limit time."""

    def rescale(self, trajectory: Trajectory) -> Trajectory:
        """A trajectory of u, measured or predicted, as one of u~."""
        self._check_names(trajectory)
        moved = trajectory.transformed(self.centre.cpu(), self.scale.cpu())
        return replace(moved, metadata={**trajectory.metadata, _RESCALED: True})

    def unscale(self, trajectory: Trajectory) -> Trajectory:
        """The inverse of `rescale`."""
        self._check_names(trajectory)
        scale = self.scale.cpu()
        moved = trajectory.transformed(-self.centre.cpu() * scale, 1 / scale)
        metadata = {key: x for key, x in trajectory.metadata.items() if key != _RESCALED}
        return replace(moved, metadata=metadata)

    def solve(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        paths: int | None = None, generator: torch.Generator | None = None,
        max_step: float | None = None,
    ) -> Trajectory:  # fmt: skip
        r"""Sample paths of the SDE: Euler-Maruyama with a trapezoidal drift.

        Strong order 1 where the diffusion matrix is constant (every `LinearDiffusion`), 1/2 in
        general; weak error of second order in the drift. All paths take the same steps, chosen on
        the way from the fastest of them: a step is at most a tenth of the shortest time in which
        the drift's Jacobian along the paths, or the change of the noise, changes anything. The
        variances of fluctuations then err by 0.25 % at most where noise is nearly constant; see
        `torchlimits.dynamics.step_control.StepControl`.

        Args:
            u0: start of u~ at ``times[0]``, shape ``(..., k)``. Or a `Trajectory`, measured for
                instance: the start is its first row, found by the names of the statistics and
                rescaled, unless it comes from `rescale`.
            times: limit times, shape ``(T,)``; they may repeat and do not fall. By default those of
                the trajectory.
            paths: the number of independent paths from every start; None: one, without a dimension
                for it.
            generator: the source of the noise, on u0's device; the same seed gives the same paths.
            max_step: no step is longer, and it may be shorter; by default the paths alone decide.

        Returns:
            `Trajectory` of u~, values ``(paths, ..., T, k)``, float64.

        Raises:
            ValueError: if times fall, u0 is not ``(..., k)`` and finite, or an
                argument is out of range.
            RuntimeError: if a path grows beyond all bounds, or there are too many steps to take.

        Example:
            >>> import torch, torchlimits as tl
            >>> limit = tl.SpikedTensor(dim=1500, order=2, snr=0.8).equator(step_size=1.0)
            >>> u0 = torch.tensor([0.0, 1.0])
            >>> limit.solve(u0, [0.0, 1.0], paths=1000, generator=torch.Generator().manual_seed(0))
            Trajectory(2 statistics, 2 times, t = 0 ... 1, runs=1000)
        """
        u0, times = self._begun(u0, times)
        instants = _checks.ordered_times(times)
        u0 = _checks.statistics(u0, len(self.names))
        _checks.generator(generator, u0.device)
        if paths is not None:
            u0 = u0.expand(_checks.positive_int("paths", paths), *u0.shape)
        longest = float("inf") if max_step is None else _checks.positive("max_step", max_step)
        control = StepControl(self._as_equation(), generator, longest)
        values = self._walk(u0, instants.tolist(), control, generator)
        learning_rate = (_checks.plain(self.limit.step_size) or 1.0) / self.dim
        steps = (instants / learning_rate).round().long()
        return Trajectory(instants, steps, values, self.names, metadata=self._metadata())

    def law(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        runs: int = 2000, level: float = 0.95, generator: torch.Generator | None = None,
    ) -> Trajectory:  # fmt: skip
        """The law of the SDE's paths: means, deviations, bounds and the paths themselves.

        It approximates the law of runs (`ReducedChain.law`) where no exact chain is known.

        Args:
            u0, times, generator: as in `solve`.
            runs: the number of paths from every start.
            level: the probability between the bounds at one time.

        Returns:
            As `ReducedChain.law`, of u~.

        Raises:
            As `solve`, and ValueError if level is not between 0 and 1.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=10**6, order=2, snr=2.0).dynamics(step_size=1.0)
            >>> law = dynamics.langevin().law(torch.tensor([0.0, 1.0]), [0.0, 2.0], runs=200)
            >>> law.lower.shape, law.samples.shape
            (torch.Size([2, 2]), torch.Size([200, 2, 2]))
        """
        start, instants = self._begun(u0, times)
        check_size(_checks.positive_int("runs", runs), start.shape, len(instants))
        paths = self.solve(u0, times, paths=runs, generator=generator)
        return law_of(replace(paths, metadata={**paths.metadata, "law": {"exact": False}}), level)

    def _begun(self, u0: Any, times: Any) -> tuple[Any, Any]:
        """The start, in u~, and the times, from a trajectory of u or, after `rescale`, of u~."""
        start, instants = begun(u0, times, self.names)
        if isinstance(u0, Trajectory) and not u0.metadata.get(_RESCALED):
            start = (start - self.centre.cpu()) * self.scale.cpu()
        return start, instants

    def _walk(
        self, u: Tensor, instants: list[float], control: StepControl,
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        """The paths at all instants, ``(..., T, k)``."""
        rows, taken, step, fresh = [u], 0, 0.0, 0.0
        for begin, end in itertools.pairwise(instants):
            # where a time repeats, nothing passes and no noise is drawn
            left = end - begin
            while left > 0:
                if fresh <= step / 2:
                    step, fresh = control.look(u, instants[-1] - end + left)
                    self._check(u, end - left, step, control.rate, instants, taken)
                count = max(1, math.ceil(left / step * (1 - 1e-9)))
                h = left / count
                normal = torch.randn(u.shape, generator=generator, dtype=u.dtype, device=u.device)
                u = self._advance(u, h, normal * h**0.5)
                left, fresh, taken = left - h if count > 1 else 0.0, fresh - h, taken + 1
            rows.append(u)
        self._check(u, instants[-1], float("inf"), control.rate, instants, 0)
        return torch.stack(rows, dim=-2)

    def _check(
        self, u: Tensor, t: float, step: float, rate: float, instants: list[float], taken: int
    ) -> None:
        """Raise RuntimeError where paths cannot be followed any further."""
        if not bool(u.isfinite().all()) or step <= 1e-14 * max(abs(t), instants[-1] - instants[0]):
            raise RuntimeError(self._unbounded(t))
        if taken >= _MOST_STEPS:
            raise RuntimeError(
                f"after {taken:,} steps the paths have come to t = {t:g} of {instants[-1]:g}: "
                f"steps are {step:.2g} long there, as the fastest rate of the drift is "
                f"{rate:.2g}; use shorter times or, around a stable point, diffusive(at=...), "
                "whose covariance is known without paths"
            )

    def _unbounded(self, t: float) -> str:
        """What it means that paths leave all bounds although steps resolve all rates."""
        return (
            f"the rescaled statistics blow up at t = {t:g}, with steps that resolve the rates "
            "there: they have left the diffusive phase; use shorter times, and the ballistic limit "
            "after that"
        )

    def _as_equation(self) -> Equation:
        return Equation(self.drift, self.diffusion, self._kick, lambda u: u, _DISTANCE)

    def _advance(self, u: Tensor, step: float, brownian: Tensor) -> Tensor:
        """One step of Euler-Maruyama, with the drift averaged over start and predicted end."""
        kick = self._kick(u, brownian)
        slope = self.drift(u)
        predicted = u + step * slope + kick
        return u + step / 2 * (slope + self.drift(predicted)) + kick

    def _kick(self, u: Tensor, brownian: Tensor) -> Tensor:
        return (self._noise_factor(u) @ brownian[..., None])[..., 0]

    def _noise_factor(self, u: Tensor) -> Tensor:
        """A matrix S with S S^T = diffusion(u)."""
        return _linalg.symmetric_root(self.diffusion(u))

    def _check_names(self, trajectory: Trajectory) -> None:
        if list(trajectory.names) != self.names:
            raise ValueError(
                f"expected a trajectory of {self.names}, got one of {list(trajectory.names)}"
            )

    def _metadata(self) -> dict[str, Any]:
        return {
            "equation": self.equation(),
            "parameters": {"dim": self.dim, **self.limit.describe()},
            _RESCALED: True,
        }

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return "du~ = drift(u~) dt + diffusion(u~)^(1/2) dB"


class LinearDiffusion(DiffusiveDynamics):
    r"""The Ornstein-Uhlenbeck limit of :math:`\tilde u = \sqrt n (u - u^*)` at a fixed point u*,

    .. math:: d\tilde u = A \tilde u\, dt + D^{1/2} dB, \quad A = \nabla(-f + g)(u^*), D = D(u^*),

    often degenerate: D has low rank, A has zero eigenvalues along a component of fixed points.

    Source: Theorem 2.2; Propositions 3.3, 4.3 and 5.1 of arXiv 2206.04030 are special cases.

    Args:
        centre: u*, shape ``(k,)``.
        jacobian: A, shape ``(k, k)``.
        covariance: D, the diffusion matrix, shape ``(k, k)``.
        names, dim, limit: as in `DiffusiveDynamics`.
    """

    def __init__(
        self, centre: Float[Tensor, " k"], jacobian: Float[Tensor, "k k"],
        covariance: Float[Tensor, "k k"], *, names: Sequence[str], dim: int, limit: OptimizerLimit,
    ) -> None:  # fmt: skip
        super().__init__(names, dim, limit, centre, torch.full_like(centre, dim**0.5))
        self.jacobian = jacobian
        self.matrix = (covariance + covariance.mT) / 2
        self.factor = _linalg.symmetric_root(self.matrix)

    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """A u~."""
        return u @ self.jacobian.to(u).mT

    def diffusion(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k k"]:
        """D, whatever u~ is."""
        return self.matrix.to(u).expand(*u.shape[:-1], *self.matrix.shape)

    def _noise_factor(self, u: Tensor) -> Tensor:
        return self.factor.to(u)

    @property
    def rate(self) -> float:
        """The largest singular value of A."""
        return max(1e-12, float(torch.linalg.matrix_norm(self.jacobian, 2)))

    def covariance(self, times: Float[Tensor, " T"] | Sequence[float]) -> Float[Tensor, "T k k"]:
        r"""Cov of u~(t) from a fixed start at t = 0: :math:`\int_0^t e^{sA} D e^{sA^T} ds`, exact.

        Times must be >= 0 and not fall.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=0.5).dynamics(step_size=1.0)
            >>> limit = dynamics.diffusive(at=torch.tensor([0.0, 1.0]))
            >>> limit.covariance([0.0, 20.0])[:, 0, 0]  # of sqrt(n) m: from 0 to 1/(1 - snr)
            tensor([0., 2.], dtype=torch.float64)
        """
        instants = _checks.ordered_times(times).to(self.matrix.device)
        if float(instants[0]) < 0:
            raise ValueError(f"expected times >= 0, got {float(instants[0]):g}")
        A, D = self.jacobian, self.matrix
        rows, now, covariance = [], 0.0, torch.zeros_like(D)
        for instant in instants.tolist():
            flow, gained = flow_and_noise(A, D, instant - now)
            covariance = flow @ covariance @ flow.mT + gained
            now = instant
            rows.append((covariance + covariance.mT) / 2)
        return torch.stack(rows)

    def stationary_covariance(self) -> Float[Tensor, "k k"]:
        r"""P with :math:`A P + P A^T + D = 0` (Lyapunov), the law that u~ settles into.

        Raises:
            ValueError: if u~ does not settle: A has an eigenvalue of real part >= 0.
        """
        values = torch.linalg.eigvals(self.jacobian.cpu()).real
        if not float(values.max()) < -1e-9 * max(1.0, float(values.abs().max())):
            raise ValueError(
                "expected a stable fixed point, got one whose Jacobian has an eigenvalue of real "
                f"part {float(values.max()):.3g}: there is no stationary law; use covariance(times)"
            )
        # imported here: scipy takes a second
        from scipy.linalg import solve_continuous_lyapunov

        A, D = self.jacobian.cpu().numpy(), self.matrix.cpu().numpy()
        P = torch.as_tensor(solve_continuous_lyapunov(A, -D), device="cpu").to(self.matrix)
        return (P + P.mT) / 2

    def rank(self, tolerance: float = 1e-9) -> int:
        """The rank of the diffusion matrix: singular values above tolerance times the largest."""
        values = torch.linalg.svdvals(self.matrix)
        return int((values > tolerance * values.max().clamp_min(1e-300)).sum())

    def equation(self) -> str:
        """The equation solved, in markdown."""
        return "du~ = A u~ dt + D^(1/2) dB, u~ = sqrt(n) (u - u*)"


def flow_and_noise(
    A: Float[Tensor, "*batch k k"], D: Float[Tensor, "*batch k k"], h: float | Tensor
) -> tuple[Float[Tensor, "*batch k k"], Float[Tensor, "*batch k k"]]:
    r"""F = exp(A h), and :math:`Q = \int_0^h e^{sA} D e^{sA^T} ds`, the covariance gained in h.

    For a short time Q is a sum of derivatives,
    :math:`Q^{(j+1)} = A Q^{(j)} + Q^{(j)} A^T` with :math:`Q' = D`, and twice the time makes
    :math:`F^2` and :math:`Q + F Q F^T` of them. That is a fraction of the time that the exponential
    of a matrix of twice the size takes (van Loan, 1978), and nothing in it grows where A decays.

    Args:
        A: matrices.
        D: symmetric ones.
        h: the times, which may have dimensions before the last two.

    Example:
        >>> flow, gained = flow_and_noise(-torch.eye(1), 2 * torch.eye(1), 50.0 / 10)
        >>> gained  # 1 - exp(-2 h)
        tensor([[1.0000]])
    """
    moved, gained = torch.broadcast_tensors(A * h, D * h)
    shape, k = moved.shape, moved.shape[-1]
    moved, gained = moved.reshape(-1, k, k), gained.reshape(-1, k, k)
    size = torch.maximum(moved.abs().sum(-1), moved.abs().sum(-2)).amax(-1).detach()
    halvings = (size / _SHORT).log2().ceil().clamp_min(0).nan_to_num(0, 0, 0)
    short = (2.0**-halvings)[:, None, None]
    moved, gained = moved * short, gained * short
    term = gained
    for j in range(2, _TERMS + 1):
        half = moved @ term
        term = (half + half.mT) / j
        gained = gained + term
    flow = _short_exponential(moved)
    for done in range(int(halvings.max()) if len(halvings) else 0):
        on = (halvings > done).nonzero(as_tuple=True)
        F, Q = flow[on], gained[on]
        gained = gained.index_put(on, Q + F @ Q @ F.mT)
        flow = flow.index_put(on, F @ F)
    return flow.reshape(shape), gained.reshape(shape)


def _short_exponential(X: Float[Tensor, "S k k"]) -> Float[Tensor, "S k k"]:
    """exp(X) to rounding for norms up to 1/4: twelve powers, by five products.

    For many matrices torch.linalg.matrix_exp takes twice as long.
    """
    square = X @ X
    cube, one = square @ X, torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    total = cube / math.factorial(12)
    for j in (9, 6, 3, 0):
        a, b, c = (1 / math.factorial(j + i) for i in range(3))
        total = a * one + b * X + c * square + (total if j == 9 else cube @ total)
    return total

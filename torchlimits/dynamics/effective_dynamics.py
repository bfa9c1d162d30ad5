"""`EffectiveDynamics`: what high-dimensional theory predicts for the summary statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.dynamics import fixed_points
from torchlimits.dynamics.band import fluctuations
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.dynamics.fixed_points import FixedPoint
from torchlimits.dynamics.langevin import LangevinDynamics
from torchlimits.dynamics.solver import integrate
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings
from torchlimits.trajectory import Trajectory


class EffectiveDynamics(nn.Module, ABC):
    r"""The ballistic limit of SGD's summary statistics, an ODE

    .. math:: \dot u = -f(u) + g(u)

    with the population drift -f and the population corrector g, for steps of size
    :math:`\delta = c_\delta / n`; t = (number of steps) * delta. With a schedule c_delta(t), t is
    the sum of the steps' sizes, and the corrector is that of c_delta(t).

    Source: Theorem 2.2 of Ben Arous, Gheissari and Jagannath (arXiv 2206.04030).

    Subclasses give ``_terms(u)``: -f and g at plain SGD with c_delta = 1 and batch size 1; the
    optimizer's factors (`SGDSettings`) come on top here. They may give ``_increment_covariance``
    (for `diffusion`), ``_random_starts`` and ``_project`` (for `fixed_points`).

    Args:
        names: of the k statistics.
        dim: the dimension n that turns limit time into steps.
        settings: what the optimizer does.
        schedule: c_delta(t), in place of the settings' c_delta.

    Example:
        >>> import torch, torchlimits as tl
        >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> u = torch.tensor([0.5, 1.0])
        >>> dynamics.drift(u), dynamics.corrector(u), dynamics.forward(0.0, u)
        (tensor([  1.5000, -10.0000]), tensor([ 0., 10.]), tensor([1.5000, 0.0000]))
        >>> dynamics.diffusion(u)
        tensor([[12.,  8.],
                [ 8., 72.]])
        >>> dynamics.jacobian(u[None])[0]
        tensor([[  1.,  -2.],
                [  0., -10.]])
        >>> dynamics.solve(dynamics.started(u), [0.0, 10.0]).final
        tensor([1.0000, 1.0000], dtype=torch.float64)
        >>> attractor = dynamics.fixed_points()[0]
        >>> attractor
        FixedPoint([-1, 1], stable)
        >>> (dynamics.diffusive(attractor.u).stationary_covariance() / 100).shape
        torch.Size([2, 2])
        >>> dynamics.step_size_at(3.0), dynamics.describe()["snr"]
        (1.0, 2.0)
        >>> print(dynamics.equation().splitlines()[2])
            dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) - alpha m
    """

    #: what `solve` asks of torchdiffeq unless told otherwise: no finer than the error of `forward`
    rtol: float = 1e-6
    atol: float = 1e-8
    #: absolute error of `forward` where u is of order 1
    error: float = 1e-13
    #: `fixed_points` lets its starts flow for so long
    settling_time: float = 100.0

    def __init__(
        self,
        names: Sequence[str],
        dim: int,
        settings: SGDSettings,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.names = list(names)
        self.dim = dim
        self.settings = settings
        self.schedule = schedule

    @abstractmethod
    def _terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f(u) and g(u) for plain SGD, batch size 1, c_delta = 1."""

    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The population drift -f(u), with the optimizer's factor.

        Args:
            u: shape ``(..., k)``.

        Raises:
            ValueError, TypeError: as in `forward`.
        """
        return self._speed(u) * self._evaluated(u)[0]

    def corrector(
        self, u: Float[Tensor, "*batch k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "*batch k"]:
        """The population corrector g(u), with c_delta and the optimizer's factors in.

        Args:
            u: shape ``(..., k)``.
            t: limit time, of which c_delta is taken where there is a schedule.

        Raises:
            ValueError, TypeError: as in `forward`.
        """
        return self._corrector_factor(u, t) * self._evaluated(u)[1]

    def step_size_at(self, t: Float[Tensor, ""] | float = 0.0) -> float:
        """c_delta at limit time t.

        Raises:
            ValueError: if there is a schedule that has ended by then.
        """
        return self.settings.step_size if self.schedule is None else self.schedule(float(t))

    def _speed(self, u: Tensor) -> Tensor | float:
        """q: how much faster than plain SGD the parameters behind each statistic move."""
        return self.settings.drift_factor

    def _second_order_speed(self) -> float:
        """q of the parameters whose second order counts, in `_increment_covariance`."""
        return self.settings.drift_factor

    def _corrector_factor(self, u: Tensor, t: Tensor | float) -> Tensor | float:
        speed = self._speed(u)
        if self.schedule is None and isinstance(speed, float):
            return self.settings.corrector_factor
        return self.step_size_at(t) / self.settings.batch_size * speed**2

    def forward(
        self, t: Float[Tensor, ""] | float, u: Float[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch k"]:
        """The right-hand side -f(u) + g(u), shape ``(..., k)``, on u's device and dtype.

        Args:
            t: limit time, of which c_delta is taken where there is a schedule.
            u: shape ``(..., k)``.

        Raises:
            TypeError: if u is no float32 or float64 tensor.
            ValueError: if its last dimension is not k, or it is not finite.
        """
        drift, corrector = self._evaluated(u)
        return self._speed(u) * drift + self._corrector_factor(u, t) * corrector

    def diffusion(
        self, u: Float[Tensor, "*batch k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "*batch k k"]:
        r"""The diffusion matrix of the unrescaled statistics times n,

        .. math:: D(u) = \lim_n n\,\delta\, Cov((u(X_{l+1}) - u(X_l)) / \delta \mid u(X_l) = u),

        so that D/n is the covariance that u gains per unit of limit time at dimension n. It is
        n delta J V J^T of Theorem 2.2, with the increment's second-order part where that is of the
        same order (in R, for the mixtures). Shape ``(..., k, k)``.

        Args:
            u: shape ``(..., k)``.
            t: limit time, of which c_delta is taken where there is a schedule.

        Raises:
            NotImplementedError: if it is not known for this problem.
            ValueError, TypeError: as in `forward`.
        """
        c = self.step_size_at(t) / self.settings.batch_size
        exact = self._checked(u).double()
        covariance = self._increment_covariance(exact, c * self._second_order_speed())
        speed = torch.as_tensor(self._speed(u), dtype=covariance.dtype, device=covariance.device)
        speed = speed.expand(len(self.names))
        return (c * torch.outer(speed, speed) * covariance).to(u.dtype)

    def _increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """lim Cov of one step's increment of u over delta, plain SGD, c_delta = step_size."""
        raise NotImplementedError(
            f"the diffusion matrix of {type(self).__name__} is not known to this package: define "
            "_increment_covariance(u, step_size)"
        )

    def fixed_points(
        self,
        starts: Float[Tensor, "S k"] | None = None,
        *,
        count: int = 200,
        flow: float | None = None,
        seed: int = 0,
    ) -> list[FixedPoint]:
        """The fixed points of the ballistic limit, by Levenberg-Marquardt from many starts.

        See `torchlimits.dynamics.fixed_points.find`, which also says what is stable, unstable and
        marginal.

        Args:
            starts: shape ``(S, k)``; by default ``count`` random ones of the problem's choosing.
            count, seed: of the random starts.
            flow: every start is tried as it is and after flowing for this long; 0 leaves the
                second out, and by default the problem says.

        Raises:
            ValueError: if starts are no finite ``(S, k)``, or none are given and none are known.
            RuntimeError: if no start leads to a fixed point.
        """
        self._check_autonomous("fixed points")
        if starts is None:
            _checks.positive_int("count", count)
            starts = self._random_starts(count, torch.Generator().manual_seed(seed))
        return fixed_points.find(self, starts, flow=self.settling_time if flow is None else flow)

    def jacobian(
        self, u: Float[Tensor, "S k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "S k k"]:
        """Derivatives of -f + g at each of S points u, ``(S, k)``, at limit time t."""
        return fixed_points.jacobian(self, self._checked(u), float(t))

    def diffusive(self, at: Float[Tensor, " k"]) -> LinearDiffusion:
        r"""The diffusive limit around a fixed point u*: :math:`\tilde u = \sqrt n (u - u^*)`.

        .. math:: d\tilde u = \nabla(-f + g)(u^*)\, \tilde u\, dt + D(u^*)^{1/2} dB

        Source: Theorem 2.2 of arXiv 2206.04030 applied to the rescaled statistics.

        Args:
            at: u*, shape ``(k,)``.

        Raises:
            ValueError: if u* is not a fixed point.
            NotImplementedError: if the diffusion matrix is not known.
        """
        self._check_autonomous("diffusive limits around fixed points")
        at = self._checked(at).detach().double()
        if at.ndim != 1 or not bool(at.isfinite().all()):
            raise ValueError(f"expected one finite point at, shape (k,), got {tuple(at.shape)}")
        speed = self(0.0, at).abs()
        worst = int(speed.argmax())
        allowed = max(1e-6, 10 * self.error)
        if float(speed[worst]) > allowed:
            raise ValueError(
                f"expected a fixed point, got one where d{self.names[worst]}/dt is "
                f"{float(speed[worst]):.3g} in size (allowed: {allowed:.1g}): take one of "
                "dynamics.fixed_points(starts) with starts near it"
            )
        return LinearDiffusion(
            centre=at,
            jacobian=self.jacobian(at[None])[0],
            covariance=self.diffusion(at),
            names=self.names,
            dim=self.dim,
            settings=self.settings,
        )

    def _check_autonomous(self, what: str) -> None:
        if self.schedule is not None:
            raise ValueError(
                f"expected a constant step size for {what}, got the schedule "
                f"{self.schedule.describe()}: the dynamics change in time; make dynamics with the "
                "step size of one moment"
            )

    def _random_starts(self, count: int, generator: torch.Generator) -> Float[Tensor, "S k"]:
        """Starts for `fixed_points`; subclasses know where to look."""
        raise ValueError(
            f"expected starts for the fixed points of {type(self).__name__}, got none: give a "
            f"tensor of shape (S, {len(self.names)})"
        )

    def _project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest values that parameters can have, for instance R >= 0."""
        return u

    def _slopes(self, u: Float[Tensor, " k"]) -> Float[Tensor, "P k k"]:
        """Jacobians of -f + g at u, one-sided ones for every smooth piece that meets there."""
        return self.jacobian(u[None])

    def _error_at(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """What `error` is in each entry: integrals err in proportion to u where u is small."""
        return (self.error * u.abs().amax(-1, keepdim=True)).expand_as(u)

    def _settled(self, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k"]:
        """Zeros of -f + g with what cannot be told from 0 made 0."""
        return u

    def _cell(self, u: Float[Tensor, " k"]) -> Tensor:
        """Labels of the part of space that u is in; components of fixed points end at borders."""
        return u.new_zeros(1)

    def _lasting(self, u: Float[Tensor, "S k"]) -> Bool[Tensor, " S"]:
        """False at zeros of -f + g that any perturbation leaves: it is not Lipschitz there."""
        return torch.ones_like(u[:, 0], dtype=torch.bool)

    def solve(
        self,
        u0: Float[Tensor, "*batch k"],
        times: Float[Tensor, " T"] | Sequence[float],
        *,
        rtol: float | None = None,
        atol: float | None = None,
        corrector: bool = True,
        band: bool = False,
        initial_covariance: Float[Tensor, "*#batch k k"] | None = None,
    ) -> Trajectory:
        r"""Integrate from u0 at ``times[0]`` with torchdiffeq's dopri5.

        With ``band`` the standard deviations at dimension n come along, by the linear-noise
        approximation; see `covariance`, also for where it fails.

        Args:
            u0: start, shape ``(..., k)``; every leading index is a solution of its own, and each
                obeys the tolerance by itself.
            times: limit times, shape ``(T,)``, increasing.
            rtol, atol: the solver's tolerances; the defaults fit the error of the right-hand side.
            corrector: False leaves the corrector out: gradient flow on the population loss.
            band: also predict the standard deviations, ``Trajectory.std``.
            initial_covariance: with ``band``, that of u at ``times[0]`` where the start is random;
                by default 0, a measured start. Shape ``(k, k)``, or one for each start.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` in float64.

        Raises:
            ValueError: if times do not increase or u0 is not ``(..., k)`` and finite, or a band is
                asked without the corrector.
            TypeError: if u0 is no float32 or float64 tensor.
            RuntimeError: if the solver cannot reach the tolerance.
            NotImplementedError: if a band is asked and the diffusion matrix is not known.
        """
        instants = _checks.increasing_times(times)
        steps = self._steps(instants)
        u0 = self.started(u0)
        rtol = self.rtol if rtol is None else _checks.positive("rtol", rtol)
        atol = self.atol if atol is None else _checks.positive("atol", atol)
        if initial_covariance is not None and not band:
            raise ValueError("expected initial_covariance together with band=True, got it alone")
        if band and not corrector:
            raise ValueError(
                "expected corrector=True with a band, got False: gradient flow is the limit of "
                "vanishing steps, which do not fluctuate"
            )
        std = None
        if band:
            values, P = self._fluctuating(u0, instants, rtol, atol, initial_covariance)
            std = P.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        else:
            right_hand_side = self if corrector else _GradientFlow(self)
            values = integrate(right_hand_side, u0, instants, rtol, atol)
        return Trajectory(
            instants, steps, values, self.names, std=std, metadata=self._metadata(corrector)
        )

    def covariance(
        self,
        u0: Float[Tensor, "*batch k"],
        times: Float[Tensor, " T"] | Sequence[float],
        *,
        initial_covariance: Float[Tensor, "*#batch k k"] | None = None,
    ) -> Float[Tensor, "*batch T k k"]:
        r"""Cov u(t) of runs from u0 at dimension n, by the linear-noise approximation

        .. math:: \dot P = A P + P A^T + D/n, \quad A = \nabla(-f + g)(u(t)), D = D(u(t)),

        around the solution u(t) of the ballistic limit, with D the full one-step increment's
        (`diffusion`): its first order alone, delta J V J^T, is 8 to 12 % off in R.

        It holds where fluctuations, of size n^(-1/2), stay small beside the distance over which the
        dynamics bend. Near saddles they do not: runs leave a saddle in several directions and at
        times of their own, and the band grows like e^(rate t) while the runs' own law is no longer
        normal; likewise where neurons are parallel or R is singular, where the dynamics have a
        kink. Solve from a measured start that has left the saddle.

        Source: linear-noise approximation (van Kampen's system-size expansion) of the chain whose
        law of large numbers is Theorem 2.2 of arXiv 2206.04030.

        Args:
            u0, times, initial_covariance: as in `solve`.

        Raises:
            As `solve` with ``band=True``.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=1000, order=2, snr=0.5).dynamics(step_size=1.0)
            >>> P = dynamics.covariance(torch.tensor([0.0, 1.0]), [0.0, 20.0])
            >>> 1000 * P[:, 0, 0]  # of sqrt(n) m: to 1/(1 - snr)
            tensor([0.0000, 2.0000], dtype=torch.float64)
        """
        instants = _checks.increasing_times(times)
        u0 = self.started(u0)
        return self._fluctuating(u0, instants, self.rtol, self.atol, initial_covariance)[1]

    def _fluctuating(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The solution and the covariances around it."""

        def solution(times: Tensor) -> Tensor:
            return integrate(self, u0, times, rtol, atol)

        return fluctuations(self, solution, instants, self._covariance_at_start(initial))

    def _steps(self, instants: Float[Tensor, " T"]) -> Int[Tensor, " T"]:
        """Steps of SGD up to limit times; ValueError if the schedule does not get there."""
        if self.schedule is not None:
            return self.schedule.steps(instants, self.dim)
        # gradient flow has no steps of its own: count those of c_delta = 1
        learning_rate = (self.settings.step_size or 1.0) / self.dim
        return (instants / learning_rate).round().long()

    def langevin(self) -> LangevinDynamics:
        r"""The same dynamics with their noise at dimension n, an SDE: see `LangevinDynamics`.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=10**6, order=2, snr=2.0).dynamics(step_size=1.0)
            >>> paths = dynamics.langevin().solve(torch.tensor([0.0, 1.0]), [0.0, 2.0], paths=1000)
            >>> bool(paths["m"][:, -1].min() < 0 < paths["m"][:, -1].max())  # both ways
            True
        """
        self._check_autonomous("Langevin dynamics")
        return LangevinDynamics(self)

    def _for_band(self) -> EffectiveDynamics:
        """Dynamics whose derivatives and diffusion matrices are as right as a band needs them."""
        return self

    def _covariance_at_start(self, given: Tensor | None) -> Tensor:
        k = len(self.names)
        if given is None:
            return torch.zeros(k, k, dtype=torch.float64, device="cpu")
        if not isinstance(given, Tensor) or given.shape[-2:] != (k, k):
            what = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"expected initial_covariance of shape (..., {k}, {k}), got {what}")
        given = given.detach().double()
        finite = bool(given.isfinite().all())
        allowed = 1e-9 * float(given.abs().max()) if finite else 0.0
        symmetric = finite and torch.allclose(given, given.mT, atol=allowed)
        if not symmetric or float(torch.linalg.eigvalsh(given).min()) < -allowed:
            what = (
                "an indefinite one" if symmetric else "an asymmetric one" if finite else "nan, inf"
            )
            raise ValueError(
                "expected initial_covariance to be symmetric positive semidefinite and finite, got "
                f"{what}: give the covariance of the start"
            )
        return given

    def _evaluated(self, u: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._terms(self._checked(u))
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            # decompositions are the first to notice
            raise ValueError("expected a finite u, got NaN or infinity in it") from error

    def started(self, u0: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """u0 itself: a finite start that parameters can have; otherwise the errors of `solve`."""
        u0 = self._checked(u0)
        if not bool(u0.isfinite().all()):
            raise ValueError("expected a finite start u0, got NaN or infinity in it")
        self._check_start(u0)
        return u0

    def _check_start(self, u0: Tensor) -> None:
        """ValueError if no parameters have these statistics; subclasses know which."""

    def _checked(self, u: Tensor) -> Tensor:
        if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
            what = u.dtype if isinstance(u, Tensor) else type(u).__name__
            raise TypeError(f"expected u as a float32 or float64 tensor, got {what}: convert it")
        k = len(self.names)
        if u.ndim == 0 or u.shape[-1] != k:
            raise ValueError(
                f"expected u of shape (..., {k}) for the statistics {', '.join(self.names[:3])} "
                f"... {self.names[-1]}, got shape {tuple(u.shape)}"
            )
        return u

    def describe(self) -> dict[str, Any]:
        """Parameters that a reader of the prediction wants to see, JSON-able."""
        schedule = {} if self.schedule is None else {"schedule": self.schedule.describe()}
        return {"dim": self.dim, **self.settings.describe(), **schedule}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown, with or without the corrector."""
        return "du/dt = -f(u) + g(u)" if corrector else "du/dt = -f(u)"

    def _metadata(self, corrector: bool) -> dict[str, Any]:
        return {
            "equation": self.equation(corrector),
            "parameters": {**self.describe(), "corrector": corrector},
        }


class _GradientFlow(nn.Module):
    """du/dt = -f(u): an EffectiveDynamics without its corrector."""

    def __init__(self, dynamics: EffectiveDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.dynamics.drift(u)

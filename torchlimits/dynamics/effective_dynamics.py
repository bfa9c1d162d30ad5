"""`EffectiveDynamics`: what high-dimensional theory predicts for the summary statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.vector_field import VectorField
from torchlimits.dynamics import fixed_points
from torchlimits.dynamics.band import fluctuations
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.dynamics.fixed_points import FixedPoints
from torchlimits.dynamics.flow import Flow
from torchlimits.dynamics.graph import graph_asked_for
from torchlimits.dynamics.langevin import LangevinDynamics
from torchlimits.dynamics.reduced_chain import ReducedChain
from torchlimits.dynamics.solver import METHODS, integrate
from torchlimits.dynamics.start import begun
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.listed import Optimizers
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.trajectory import Trajectory


class EffectiveDynamics(Flow):
    r"""The ballistic limit of the summary statistics under an optimizer, an ODE

    .. math:: \dot u = -f(u) + g(u)

    with the population drift -f and the population corrector g, for steps of size
    :math:`\delta = c_\delta / n`; t = (number of steps) * delta. With a schedule c_delta(t), t is
    the sum of the steps' sizes, and the corrector is that of c_delta(t).

    Source: Theorem 2.2 of Ben Arous, Gheissari and Jagannath (arXiv 2206.04030).

    Problems make them (``problem.dynamics(...)``); for a problem of your own, write its
    `VectorField`.

    Args:
        field: a `VectorField`: drift and corrector for plain SGD.
        optimizer: a `torch.optim.SGD` or a `NormalizedSGD`, whose options are read, or an
            `OptimizerLimit`.
        step_size: c_delta = lr * dim, instead of an optimizer; 0 is gradient flow.
        momentum: with ``step_size``.
        batch_size: the number of fresh samples averaged in one step.
        weight_decay: the problem's ridge; an optimizer's own weight decay counts instead, with a
            warning if they differ.
        schedule: c_delta(t), a function of limit time, or the optimizer's LR scheduler.

    Raises:
        ValueError: if not exactly one of optimizer and step_size is given, a number is out of
            range, or the field does not have what the optimizer needs.
        TypeError: if ``field`` is not a `VectorField`, or the optimizer has no known limit.

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
        >>> dynamics.on(dynamics.field).check_autonomous("this"), dynamics.checked(u) is u
        (None, True)
        >>> dynamics.steps(torch.tensor([0.0, 1.0])).tolist()
        [0, 100]
        >>> dynamics.step_size_at(3.0), dynamics.describe()["snr"]
        (1.0, 2.0)
        >>> print(dynamics.equation().splitlines()[2])
            dm/dt  = 2 m (k lambda m^(k-2) - k R^(2k-2)) - alpha m
    """

    def __init__(
        self, field: VectorField, optimizer: Optimizers | OptimizerLimit | None = None,
        *, step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, weight_decay: float | Tensor = 0.0,
        schedule: ScheduleLike | Schedule | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(field, VectorField):
            raise TypeError(
                f"expected field as a VectorField, got {type(field).__name__}: subclass "
                "tl.VectorField and define terms(u)"
            )
        if isinstance(optimizer, OptimizerLimit):
            limit, optimizer = optimizer, None
        else:
            settings = SGDSettings.chosen(
                optimizer, field.dim, weight_decay, step_size, momentum, batch_size
            )
            limit = SGDLimit.of(settings)
        super().__init__(field, limit, Schedule.of(schedule, optimizer, field.dim))

    def fixed_points(
        self, starts: Float[Tensor, "S k"] | None = None, *, count: int = 200,
        flow: float | None = None, seed: int = 0,
    ) -> FixedPoints:  # fmt: skip
        """The fixed points of the ballistic limit, by Levenberg-Marquardt from many starts.

        See `torchlimits.dynamics.fixed_points.find`, which also says what is stable, unstable and
        marginal.

        Args:
            starts: shape ``(S, k)``; by default ``count`` random ones of the problem's choosing.
                An optimizer's second moments may be left out: those that settle there are taken.
            count, seed: of the random starts.
            flow: every start is tried as it is and after flowing for this long; 0 leaves the
                second out, and by default the problem chooses the time.

        Raises:
            ValueError: if starts are not a finite ``(S, k)``, or none are given and none are known.
            RuntimeError: if no start leads to a fixed point.
        """
        self.check_autonomous("fixed points")
        if starts is None:
            _checks.positive_int("count", count)
            generator = torch.Generator().manual_seed(seed)
            starts = self.geometry.starts(self, count, generator)
        longest = self.field.settling_time if flow is None else flow
        whole = self.field.settled(starts) if isinstance(starts, Tensor) else starts
        return fixed_points.find(self, whole, settling_time=longest)

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
        self.check_autonomous("diffusive limits around fixed points")
        at = self.checked(at).detach().double()
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
        jacobian, covariance = self.jacobian(at[None])[0], self.diffusion(at)
        return LinearDiffusion(
            at, jacobian, covariance, names=self.names, dim=self.dim, limit=self.limit
        )

    def solve(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        rtol: float | None = None, atol: float | None = None, corrector: bool = True,
        band: bool | Literal["law"] = False,
        initial_covariance: Float[Tensor, "*#batch k k"] | None = None, method: str = "auto",
    ) -> Trajectory:  # fmt: skip
        r"""Integrate from u0 at ``times[0]``, by torchdiffeq's dopri5 or, where that is stiff, BDF.

        The solution can be differentiated, once, where u0 requires a gradient, or c_delta, the
        momentum, the ridge or the snr that the dynamics were made with does, or a tensor that the
        schedule returns: `Trajectory.values` then have a graph (inside ``torch.no_grad()`` they
        have none). What cannot be differentiated is refused. The tolerances are those of values;
        steps end at the times asked for, so ask for the corners of a schedule that has some.

        With ``band`` the standard deviations at dimension n come along, by the linear-noise
        approximation; see `covariance`, also for where it fails. With ``band="law"`` the law of
        runs itself comes along, by 2000 paths of the exact chain (`ReducedChain.law`): bounds,
        standard deviations and the paths. Where no chain is known, they are paths of `langevin`.

        Args:
            u0: start, shape ``(..., k)``; every leading index is a solution of its own, which
                obeys the tolerance by itself. Or a measured `Trajectory`: the start is its first
                row, found by the names of the statistics; its other statistics are left out,
                with a warning.
            times: limit times, shape ``(T,)``; they may repeat, as in a run whose learning
                rate is 0 for some steps, and do not fall. By default those of the trajectory.
            rtol, atol: the solver's tolerances; the defaults fit the error of the right-hand side.
            corrector: False leaves the corrector out: gradient flow on the population loss.
            band: also predict the standard deviations, ``Trajectory.std``; ``"law"``: also
                ``lower``, ``upper`` (95 %) and ``samples``.
            initial_covariance: with ``band=True``, the covariance of u at ``times[0]`` where the
                start is random; by default 0, for a measured start. Shape ``(k, k)``, or one for
                each start.
            method: ``"dopri5"``, explicit; ``"BDF"``, scipy's implicit method for stiff systems;
                or ``"auto"``, dopri5 and, from starts that would take it more than 50,000
                evaluations, BDF.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` in float64.

        Raises:
            ValueError: if times fall or u0 is not ``(..., k)`` and finite, a trajectory lacks a
                statistic, or a band is asked for without the corrector.
            TypeError: if u0 is neither a float32 or float64 tensor nor a trajectory, or there are
                no times.
            RuntimeError: if the solver cannot reach the tolerance, or takes too long; the message
                says how far it came and what to try.
            NotImplementedError: if a band is asked for and the diffusion matrix is not known, or a
                gradient is asked for and not known: of a band, of an implicit method, of a head
                that jumps where its own parameters say, of terms that lose the graph.
            MemoryError: if the law's paths take more than 4 GiB.

        Example:
            >>> import torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=100, order=2, snr=2.0)
            >>> measured = tl.train(problem, step_size=1.0, time=0.5, runs=3, progress=False)
            >>> problem.dynamics(step_size=1.0).solve(measured)
            Trajectory(2 statistics, 51 times, t = 0 ... 0.5, runs=3)

            How much the overlap at the end would grow with c_delta and with the start:

            >>> c = torch.tensor(1.0, requires_grad=True)
            >>> u0 = torch.tensor([0.1, 1.0], requires_grad=True)
            >>> overlap = problem.dynamics(step_size=c).solve(u0, [0.0, 0.5])["m"][-1]
            >>> torch.autograd.grad(overlap, [c, u0])
            (tensor(-0.6821), tensor([ 3.8816, -0.1905]))
        """
        given, times = begun(u0, times, self.names, self.field.start_names)
        if method not in METHODS:
            raise ValueError(f"expected method as one of {', '.join(METHODS)}, got {method!r}")
        instants = _checks.ordered_times(times)
        steps = self.steps(instants)
        start = self.started(given)
        graph = graph_asked_for(self, start, instants, band=bool(band))
        rtol = self.rtol if rtol is None else _checks.positive("rtol", rtol)
        atol = self.atol if atol is None else _checks.positive("atol", atol)
        if band not in (False, True, "law"):
            raise ValueError(f"expected band as True, False or 'law', got {band!r}")
        if initial_covariance is not None and band is not True:
            raise ValueError("expected initial_covariance together with band=True, got it alone")
        if band and not corrector:
            raise ValueError(
                "expected corrector=True with a band, got False: gradient flow is the limit of "
                "vanishing steps, which do not fluctuate"
            )
        beside: dict[str, Any] = {}
        facts = self._metadata(corrector)
        if band is True:
            values, beside["std"] = self._band(
                start, instants, rtol, atol, initial_covariance, method
            )
        else:
            values = self._solution(
                start, instants, rtol, atol, method, corrector=corrector, graph=graph
            )
        if band == "law":
            law = self._law(start, instants)
            beside = {name: getattr(law, name) for name in ("std", "lower", "upper", "samples")}
            facts["law"] = law.metadata["law"]
        return Trajectory(instants, steps, values, self.names, **beside, metadata=facts)

    def _law(self, u0: Tensor, instants: Tensor) -> Trajectory:
        """The law of runs from u0, the same whenever it is asked for."""
        generator = torch.Generator(u0.device).manual_seed(0)
        try:
            source = self.reduced_chain()
        except NotImplementedError:
            source = self.langevin()
        return source.law(u0, instants, generator=generator)

    def reduced_chain(self) -> ReducedChain:
        """The exact chain of the same problem and optimizer: SGD's statistics at dimension n.

        Problems that have one define it; `ReducedChain.law` is the law of their runs.

        Raises:
            NotImplementedError: if the problem has none.
            ValueError: if the steps are not those of plain SGD.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
            >>> dynamics.reduced_chain().run(torch.tensor([0.0, 1.0]), 200, runs=5)
            Trajectory(2 statistics, 201 times, t = 0 ... 2, runs=5)
        """
        raise NotImplementedError(
            f"no exact chain is known for {type(self.field).__name__}: take langevin(), which "
            "approximates it, or run SGD itself"
        )

    def covariance(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        initial_covariance: Float[Tensor, "*#batch k k"] | None = None,
    ) -> Float[Tensor, "*batch T k k"]:  # fmt: skip
        r"""Cov u(t) of runs from u0 at dimension n, by the linear-noise approximation

        .. math:: \dot P = A P + P A^T + D/n, \quad A = \nabla(-f + g)(u(t)), D = D(u(t)),

        around the solution u(t) of the ballistic limit, with D that of the full one-step increment
        (`diffusion`): the first order alone, delta J V J^T, is 8 to 12 % off in R.

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
        given, times = begun(u0, times, self.names, self.field.start_names)
        instants = _checks.ordered_times(times)
        start = self.started(given)
        graph_asked_for(self, start, instants, band=True)
        return self._fluctuating(start, instants, self.rtol, self.atol, initial_covariance)[1]

    def _solution(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, method: str, *,
        corrector: bool = True, graph: bool = False,
    ) -> Tensor:  # fmt: skip
        """The solution at all instants, ``(..., T, k)``; linear dynamics know it exactly."""
        velocity = self if corrector else lambda t, u: self.drift(u, t)
        return integrate(velocity, u0, instants, rtol, atol, method, graph=graph)

    def _band(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, initial: Tensor | None,
        method: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The solution and the standard deviations around it."""
        values, P = self._fluctuating(u0, instants, rtol, atol, initial, method)
        return values, P.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    def _fluctuating(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, initial: Tensor | None,
        method: str = "auto",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The solution and the covariances around it."""

        def solution(times: Tensor) -> Tensor:
            return self._solution(u0, times, rtol, atol, method)

        covariance = covariance_at_start(initial, len(self.names))
        if not u0.numel():
            values = solution(instants)
            return values, values.new_zeros(*values.shape, values.shape[-1])
        with torch.no_grad():
            return fluctuations(self, solution, instants, covariance)

    def langevin(self) -> LangevinDynamics:
        r"""The same dynamics with their noise at dimension n, as an SDE: see `LangevinDynamics`.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.SpikedTensor(dim=10**6, order=2, snr=2.0).dynamics(step_size=1.0)
            >>> paths = dynamics.langevin().solve(torch.tensor([0.0, 1.0]), [0.0, 2.0], paths=1000)
            >>> bool(paths["m"][:, -1].min() < 0 < paths["m"][:, -1].max())  # both ways
            True
        """
        self.check_autonomous("Langevin dynamics")
        return LangevinDynamics(self)

    def started(self, u0: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """u0 itself, if it is a finite start that parameters can have.

        Args:
            u0: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: as in `solve`.
        """
        u0 = self.checked(self.field.completed(u0))
        if not bool(u0.isfinite().all()):
            raise ValueError("expected a finite start u0, got NaN or infinity in it")
        if u0.numel():
            self.field.check_start(u0.detach())
        return u0

    def _metadata(self, corrector: bool) -> dict[str, Any]:
        return {
            "equation": self.equation(corrector),
            "parameters": {**self.describe(), "corrector": corrector},
        }


def covariance_at_start(given: Tensor | None, k: int) -> Float[Tensor, "*#batch k k"]:
    """The covariance of a start as it was given, checked; without one it is 0.

    Args:
        given: shape ``(..., k, k)``, or None.
        k: the number of statistics.

    Raises:
        ValueError: if it is not symmetric positive semidefinite and finite.

    Example:
        >>> covariance_at_start(None, 2).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
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
        what = "an indefinite one" if symmetric else "an asymmetric one" if finite else "nan, inf"
        raise ValueError(
            "expected initial_covariance to be symmetric positive semidefinite and finite, got "
            f"{what}: give the covariance of the start"
        )
    return given

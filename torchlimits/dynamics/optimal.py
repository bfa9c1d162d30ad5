"""`optimal_schedule`: the learning rates that make the most of a number of samples."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.graph import graph_asked_for
from torchlimits.dynamics.solver import integrate

Objective = Callable[[Tensor], Tensor]

#: constants that are tried, from the dynamics' own c_delta on: the most on each side, and how far
#: apart their logarithms are
_CONSTANTS, _APART = 12, 0.5
#: how far knots may be from the best constant, as a factor
_FAR = 1e3


@dataclass(frozen=True, eq=False)
class OptimalSchedule:
    r"""A schedule c(alpha), alpha = (number of steps) / n, with what it is worth.

    c is linear between its knots. Use it with torch by ``LambdaLR(optimizer, best.factor)``, where
    the optimizer has the learning rate that the dynamics were made with, and to predict by
    ``problem.dynamics(step_size=c, schedule=best.of_time)``.

    Attributes:
        knots: alpha, evenly from 0 to steps / n, ``(knots,)``.
        step_sizes: c = n * learning rate at the knots, ``(knots,)``.
        objective: the objective at the end, with the schedule.
        constant: the best constant c.
        constant_objective: the objective at the end with that constant.
        reference: c_delta of the dynamics, by which `factor` divides.
        dim: n.

    Example:
        >>> alpha, c = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])
        >>> best = OptimalSchedule(alpha, c, 0.5, 1.2, 0.6, reference=2.0, dim=100)
        >>> best
        OptimalSchedule(c from 2 to 1 over 100 steps, objective 0.5, 0.6 at constant 1.2)
        >>> best(0.5), best.factor(50), round(best.gain, 3), best.time
        (1.5, 0.75, 0.1, 1.5)
        >>> best.of_time(0.0), best.of_time(1.5)
        (2.0, 1.0)
    """

    knots: Float[Tensor, " knots"]
    step_sizes: Float[Tensor, " knots"]
    objective: float
    constant: float
    constant_objective: float
    reference: float
    dim: int

    @property
    def gain(self) -> float:
        """How much lower the objective is than with the best constant."""
        return self.constant_objective - self.objective

    @property
    def time(self) -> float:
        """The limit time at the end, the sum of the learning rates."""
        return self._ends()[-1]

    def __call__(self, alpha: float) -> float:
        """c at alpha = steps / n; after the last knot it stays what it is there.

        Args:
            alpha: a number >= 0.
        """
        return float(_linear(alpha, self.knots, self.step_sizes))

    def factor(self, step: int) -> float:
        """The learning rate of a step over that of the dynamics, for torch's ``LambdaLR``.

        Args:
            step: its number, from 0.
        """
        return self(step / self.dim) / self.reference

    def of_time(self, t: float) -> float:
        r"""c at limit time :math:`t = \int c\, d\alpha`, as ``schedule=`` of dynamics takes it.

        Args:
            t: a number >= 0; after the end, c stays what it is there.
        """
        ends, c = self._ends(), self.step_sizes.tolist()
        right = min(max(bisect.bisect_left(ends, t), 1), len(c) - 1)
        before, after = ends[right - 1], ends[right]
        share = min(max((t - before) / (after - before), 0.0), 1.0)
        # t is quadratic in alpha, so c^2 is linear in t
        return math.sqrt(c[right - 1] ** 2 * (1 - share) + c[right] ** 2 * share)

    def _ends(self) -> list[float]:
        """Limit time at the knots."""
        means = (self.step_sizes[1:] + self.step_sizes[:-1]) / 2
        return [0.0, *(means * self.knots.diff()).cumsum(0).tolist()]

    def __repr__(self) -> str:
        steps = round(float(self.knots[-1]) * self.dim)
        return (
            f"OptimalSchedule(c from {self.step_sizes[0]:.4g} to {self.step_sizes[-1]:.4g} over "
            f"{steps} steps, objective {self.objective:.4g}, {self.constant_objective:.4g} at "
            f"constant {self.constant:.4g})"
        )


def optimal_schedule(
    dynamics: EffectiveDynamics, u0: Float[Tensor, "*batch k"], steps: int, objective: Objective,
    *, knots: int = 8, rtol: float | None = None,
) -> OptimalSchedule:  # fmt: skip
    r"""The schedule c(alpha) that minimises a function of the statistics after a number of steps.

    With alpha = steps / n, the samples seen over the dimension, the effective dynamics are

    .. math:: \frac{du}{d\alpha} = c(\alpha) \big(-f(u) + c(\alpha)\, g(u)\big),

    where g is the corrector at :math:`c_\delta = 1`: large steps are fast, and noisy. (At a fixed
    limit time the answer would be c = 0.) The number of steps is given; log c at the knots is found
    by L-BFGS from the best constant, with gradients through the solution.

    It is a local minimum for the limit n -> infinity: hold runs at your n against it. Starts where
    nothing distinguishes directions, as at a saddle, are left there by fluctuations that the limit
    does not have.

    Args:
        dynamics: their optimizer's momentum, batch size and decay count; from its c_delta on, the
            best constant is looked for.
        u0: the start, or several, ``(..., k)``.
        steps: the number of SGD's steps.
        objective: a function of u at the end, ``(..., k)`` -> one number, by torch: the risk, or
            its mean over the starts.
        knots: how many numbers the schedule has.
        rtol: the solver's tolerance, by default the dynamics' own.

    Raises:
        ValueError: if the dynamics have a schedule or c_delta = 0, u0 is not ``(..., k)`` and
            finite, the objective is not one finite number, or a number is out of range.
        NotImplementedError: if the dynamics have no known derivatives.

    Example:
        Least squares with label noise s: D = |W - W*|^2 obeys dD/dalpha = -2 c D + c^2 (D + s^2),
        and c = D / (D + s^2) is best.

        >>> import torch, torchlimits as tl
        >>> problem = tl.TeacherStudent(
        ...     dim=500, width=1, teacher_width=1, activation="linear", noise=1.0,
        ...     train_second_layer=False,
        ... )
        >>> u0 = torch.tensor([0.0, 0.0])  # m, R: D = (1 - m)^2 + R = 1
        >>> best = tl.optimal_schedule(
        ...     problem.dynamics(step_size=0.5), u0, steps=1500, knots=4,
        ...     objective=lambda u: (1 - u[..., 0]) ** 2 + u[..., 1],
        ... )
        >>> best.step_sizes[0].round(decimals=1), round(best.constant, 2), 0 < best.gain < 0.1
        (tensor(0.5000, dtype=torch.float64), 0.34, True)
    """
    _checks.positive_int("steps", steps)
    if _checks.positive_int("knots", knots) < 2:
        raise ValueError(f"expected knots >= 2, the first and the last step, got {knots}")
    dynamics.check_autonomous("an optimal schedule")
    dynamics.limit.check_at_rest("an optimal schedule")
    reference = float(_checks.plain(dynamics.limit.step_size))
    if reference == 0:
        raise ValueError(
            "expected dynamics with step_size > 0, got 0: constants are looked for from it on"
        )
    start = dynamics.started(u0).detach().double()
    if not start.numel():
        raise ValueError(f"expected a start u0, got none: shape {tuple(u0.shape)}")
    alpha = torch.linspace(0, steps / dynamics.dim, knots, dtype=torch.float64, device="cpu")
    problem = _Problem(dynamics, start, alpha, objective, rtol or dynamics.rtol)
    with torch.enable_grad():  # refused before anything is computed
        graph_asked_for(dynamics, start.clone().requires_grad_(), alpha)
    constant, worth = problem.best_constant(reference)
    step_sizes, value = problem.best(constant, worth)
    return OptimalSchedule(
        alpha, step_sizes, min(value, worth), constant, worth, reference, dynamics.dim
    )


@dataclass(frozen=True)
class _Problem:
    """What is minimised, as a function of c at the knots."""

    dynamics: EffectiveDynamics
    start: Tensor
    knots: Tensor
    objective: Objective
    rtol: float

    def value(self, step_sizes: Tensor) -> Tensor:
        """The objective at the end, with the graph of the step sizes if they have one."""
        dynamics = self.dynamics

        def velocity(alpha: Tensor, u: Tensor) -> Tensor:
            c = _linear(float(alpha), self.knots, step_sizes)
            drift, corrector = dynamics.limit.rates(dynamics.field, u, c)
            return c * (drift + corrector)

        atol = dynamics.atol * min(1.0, self.rtol / dynamics.rtol)
        final = integrate(
            velocity, self.start, self.knots, self.rtol, atol, "dopri5",
            graph=step_sizes.requires_grad,
        )[..., -1, :]  # fmt: skip
        found = self.objective(final)
        if not isinstance(found, Tensor) or found.numel() != 1:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"expected an objective that returns one number, a tensor, got {what}: take the "
                "mean over starts, say"
            )
        if step_sizes.requires_grad and not found.requires_grad:
            raise ValueError(
                "expected an objective that keeps the graph of u, got one without: compute it by "
                "torch, without .detach(), .item() and numpy"
            )
        return found.reshape(())

    def best_constant(self, reference: float) -> tuple[float, float]:
        """The best constant and its objective."""
        # imported here: scipy takes a second
        from scipy.optimize import minimize_scalar

        def of_log(log: float) -> float:
            with torch.no_grad():
                try:
                    value = float(self.value(torch.full_like(self.knots, math.exp(log))))
                except RuntimeError:  # SGD diverges
                    return math.inf
            return value if math.isfinite(value) else math.inf

        values = {0: of_log(math.log(reference))}
        for way in (1, -1):  # until it is no better twice, or SGD diverges
            place, worse = 0, 0
            while worse < 2 and abs(place) < _CONSTANTS and values[place] < math.inf:
                place += way
                values[place] = of_log(math.log(reference) + place * _APART)
                worse = worse + 1 if values[place] >= min(values.values()) else 0
        best = min(values, key=lambda place: values[place])
        if values[best] == math.inf:
            raise ValueError(
                "expected an objective that is finite with the step size of the dynamics, got "
                f"none with {reference:.3g}: make them with a smaller one, at which SGD trains"
            )
        middle = math.log(reference) + best * _APART
        found: Any = minimize_scalar(
            of_log, bounds=(middle - _APART, middle + _APART), method="bounded",
            options={"xatol": 1e-3},
        )  # fmt: skip
        log, value = min([(middle, values[best]), (found.x, found.fun)], key=lambda x: x[1])
        return math.exp(log), float(value)

    def best(self, constant: float, worth: float) -> tuple[Tensor, float]:
        """The best step sizes and their objective, from a constant of a given worth on."""
        from scipy.optimize import minimize

        unit = abs(worth) or 1.0

        def of_logs(logs: Any) -> tuple[float, Any]:
            x = torch.tensor(logs, dtype=torch.float64, device="cpu", requires_grad=True)
            try:
                with torch.enable_grad():
                    value = self.value(x.exp())
                    (slope,) = torch.autograd.grad(value, x)
            except RuntimeError as error:
                if isinstance(error, NotImplementedError):
                    raise
                return 1e300, 0 * logs  # SGD diverges: the line search comes back
            return float(value.detach()) / unit, slope.numpy() / unit

        first, far = math.log(constant), math.log(_FAR)
        found: Any = minimize(
            of_logs, [first] * len(self.knots), jac=True, method="L-BFGS-B",
            bounds=[(first - far, first + far)] * len(self.knots),
            options={"maxiter": 200, "ftol": 1e-8, "gtol": 1e-6},
        )  # fmt: skip
        return torch.tensor(found.x, dtype=torch.float64, device="cpu").exp(), float(
            found.fun
        ) * unit


def _linear(x: float, knots: Tensor, values: Tensor) -> Tensor:
    """Values at the knots, linear between them and constant outside, with their graph."""
    place = min(max(x / float(knots[-1]), 0.0), 1.0) * (len(knots) - 1)
    left = min(int(place), len(knots) - 2)
    return torch.lerp(values[left], values[left + 1], place - left)

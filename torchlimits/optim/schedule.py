"""`Schedule`: learning rates that change in time, as a function c_delta(t) of limit time."""

from __future__ import annotations

import bisect
import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from torchlimits import _checks
from torchlimits.optim.listed import Optimizers, groups_of, listed
from torchlimits.optim.sgd import clock

#: the panels in which 1/c_delta(t) is integrated, and the points in each
_PANELS = 512
#: times this close to the end of a schedule count as its end, as lists of times become float32
_ROUNDING = 1e-6

#: a scheduler is not followed for more steps, which take minutes
_MOST_STEPS = 10_000_000

#: what problems take: c_delta(t), or a scheduler of torch, or one for each optimizer
ScheduleLike = Callable[[float], "float | Tensor"] | LRScheduler | Sequence[LRScheduler]


class Schedule(ABC):
    r"""c_delta(t) = n * learning rate at limit time t; one step takes a time :math:`dt = lr(t)`.

    In the effective dynamics the drift stays what it is; corrector and diffusion take c_delta(t).
    """

    @abstractmethod
    def __call__(self, t: float) -> float | Tensor:
        """c_delta(t), as a tensor where it has a gradient.

        Raises:
            ValueError: if the schedule does not reach t.
        """

    @abstractmethod
    def steps(self, times: Float[Tensor, " T"], dim: int) -> Int[Tensor, " T"]:
        r"""Steps of SGD from t = 0 to the times, :math:`\int n\, dt / c_\delta(t)`, rounded.

        Raises:
            ValueError: if the schedule ends before the last time, or the times start below 0.
        """

    @abstractmethod
    def rates(self, count: int, dim: int) -> list[float]:
        """The learning rates of the first ``count`` steps of SGD.

        Raises:
            ValueError: if the schedule ends before, or a learning rate is 0.
        """

    def has_graph(self, times: Float[Tensor, " T"]) -> bool:
        """Whether c_delta(t) has a gradient at some time between the first and the last one."""
        return False

    def describe(self) -> str:
        """A word that says what it is."""
        return type(self).__name__

    @staticmethod
    def of(
        given: ScheduleLike | Schedule | None, optimizer: Optimizers | None, dim: int
    ) -> Schedule | None:
        """A `Schedule` from what problems take.

        Raises:
            TypeError: if it is neither a function nor a scheduler, or a scheduler that depends on
                losses.
            ValueError: if a scheduler is not the optimizer's.
        """
        if given is None or isinstance(given, Schedule):
            return given
        if isinstance(given, (LRScheduler, list, tuple)):
            return SteppedSchedule(given, optimizer, dim)
        if not callable(given):
            raise TypeError(
                "expected schedule as a function t -> c_delta(t) or a torch LR scheduler, got "
                f"{type(given).__name__}"
            )
        return FunctionSchedule(given)


class FunctionSchedule(Schedule):
    """c_delta(t) as the user's own function of limit time.

    Args:
        function: t -> c_delta(t), both floats; or a tensor of shape (), with the graph of the
            parameters that it was computed from.

    Example:
        >>> schedule = FunctionSchedule(lambda t: 1 / (1 + t))
        >>> schedule(1.0), schedule.steps(torch.tensor([0.0, 1.0]), dim=1000).tolist()
        (0.5, [0, 1500])
        >>> [round(rate, 6) for rate in schedule.rates(2, dim=1000)]
        [0.001, 0.000999]
    """

    def __init__(self, function: Callable[[float], float | Tensor]) -> None:
        self.function = function

    def __call__(self, t: float) -> float | Tensor:
        """c_delta(t), as a tensor where it has a gradient."""
        given = self.function(float(t))
        value = float(_checks.plain(given))
        if not 0 <= value < math.inf:
            raise ValueError(
                f"expected schedule(t) = c_delta(t) to be finite and >= 0, got {value} at t={t:g}"
            )
        return _checks.kept("schedule(t)", given) if _checks.requires_grad(given) else value

    def has_graph(self, times: Float[Tensor, " T"]) -> bool:
        """Whether it returns a tensor with a gradient at one of the times or 513 between them."""
        between = torch.linspace(float(times[0]), float(times[-1]), _PANELS + 1, device="cpu")
        moments = [*times.tolist(), *between.double().clamp_max(float(times[-1])).tolist()]
        return any(_checks.requires_grad(self.function(t)) for t in moments)

    def steps(self, times: Float[Tensor, " T"], dim: int) -> Int[Tensor, " T"]:
        """The integral by four Gauss-Legendre points in each of 512 panels."""
        _start(times)
        like: dict[str, Any] = {"dtype": times.dtype, "device": times.device}
        marks = torch.linspace(0.0, max(float(times[-1]), 1e-300), _PANELS + 1, **like)
        grid = torch.cat([times, marks]).unique()
        grid = grid[grid <= times[-1]]
        x = times.new_tensor([0.339981043584856, 0.861136311594053])
        w = times.new_tensor([0.652145154862546, 0.347854845137454]) / 2
        x, w = torch.cat([-x.flip(0), x]), torch.cat([w.flip(0), w])
        middle, width = (grid[1:] + grid[:-1]) / 2, grid.diff()
        points = middle[:, None] + width[:, None] / 2 * x
        inverse = [1 / self._positive(t) for t in points.flatten().tolist()]
        for t in times.tolist():
            self._positive(t)
        spent = (times.new_tensor(inverse).reshape(points.shape) @ w) * width
        total = torch.cat([times.new_zeros(1), spent.cumsum(0)])
        return (dim * total[torch.searchsorted(grid, times)]).round().long()

    def _positive(self, t: float) -> float:
        with torch.no_grad():
            value = float(self(t))
        if value == 0:
            raise ValueError(
                f"expected schedule(t) > 0 up to the last time, got 0 at t={t:g}: SGD takes "
                "infinitely many steps to get there; ask for earlier times"
            )
        return value

    def rates(self, count: int, dim: int) -> list[float]:
        """c_delta(t) / n at the times at which the steps begin."""
        t, rates = 0.0, list[float]()
        for _ in range(count):
            rates.append(self._positive(t) / dim)
            t += rates[-1]
        return rates

    def describe(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)


class SteppedSchedule(Schedule):
    r"""c_delta(t) of a scheduler of torch that is stepped once after every optimizer step.

    A copy of the scheduler is stepped; the user's scheduler and optimizer are left alone. t = 0 is
    the scheduler's state now; step l takes the time from :math:`t_l = \sum_{j<l} lr_j` to
    :math:`t_l + lr_l`, in the middle of which c_delta(t) is n lr_l; from one middle to the next it
    is linear, so that solvers need not stop at every step.

    Args:
        scheduler: any but ReduceLROnPlateau; or several in a list, which are stepped together.
        optimizer: the optimizer whose learning rates it sets, or several in a list; the rates of
            those without a scheduler stay as they are.
        dim: n.

    Raises:
        TypeError: for ReduceLROnPlateau, or if the scheduler cannot be copied.
        ValueError: if the scheduler is another optimizer's, or a learning rate requires a gradient.

    Example:
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
        >>> halved = torch.optim.lr_scheduler.StepLR(sgd, step_size=5, gamma=0.5)
        >>> schedule = SteppedSchedule(halved, sgd, dim=10)
        >>> schedule(0.2), schedule(0.6)
        (1.0, 0.5)
        >>> schedule.steps(torch.tensor([0.0, 0.5, 0.75]), dim=10).tolist()
        [0, 5, 10]
    """

    def __init__(
        self, scheduler: LRScheduler | Sequence[LRScheduler], optimizer: Optimizers | None,
        dim: int,
    ) -> None:  # fmt: skip
        own = [] if optimizer is None else listed(optimizer)
        schedulers = _checked(scheduler, own)
        if any(_checks.requires_grad(group["lr"]) for group in groups_of(own or [None])):
            raise ValueError(
                "expected learning rates without a gradient beside a scheduler, which steps them, "
                "got a tensor that requires one: give a function t -> c_delta(t) of it"
            )
        self.dim, self._name = dim, " and ".join(type(one).__name__ for one in schedulers)
        copies = {id(one.optimizer): _copied(one, one.optimizer) for one in schedulers}
        self._schedulers = [copied for copied, _ in copies.values()]
        self._groups = groups_of([copies.get(id(one), (None, one))[1] for one in own])
        #: the group whose learning rates limit time adds up
        self._number = clock(groups_of(own))
        self._momenta, self._ratios = self._momentum(), self._relative()
        self._rates: list[float] = []
        #: limit time after each step
        self._ends: list[float] = []
        #: why there is no further step
        self._refusal = ""
        if not self._take_up():
            raise ValueError(self._refusal)

    def __call__(self, t: float) -> float:
        """c_delta(t)."""
        t = float(t)
        self._reach(t)
        step = min(bisect.bisect_left(self._ends, t), len(self._ends) - 1)
        middle = self._middle(step)
        other = step + (1 if t > middle else -1)
        if other == len(self._ends) and not self._advance():
            other = step
        if other < 0 or other == step:
            return self.dim * self._rates[step]
        weight = min(1.0, (t - middle) / (self._middle(other) - middle))
        rise = self._rates[other] - self._rates[step]
        return self.dim * (self._rates[step] + weight * rise)

    def steps(self, times: Float[Tensor, " T"], dim: int) -> Int[Tensor, " T"]:
        """The steps whose ends are nearest to the times."""
        _start(times)
        self._reach(float(times[-1]))
        ends = times.new_tensor([0.0, *self._ends])
        right = torch.searchsorted(ends, times).clamp(1, len(ends) - 1)
        nearer = (times - ends[right - 1]) < (ends[right] - times)
        return torch.where(nearer, right - 1, right)

    def rates(self, count: int, dim: int) -> list[float]:
        """The learning rates that the scheduler sets."""
        while len(self._rates) < count:
            if not self._advance():
                raise ValueError(self._refusal)
        return self._rates[:count]

    def describe(self) -> str:
        """The scheduler's name."""
        return self._name

    def _middle(self, step: int) -> float:
        return self._ends[step] - self._rates[step] / 2

    def _reach(self, t: float) -> None:
        """Step the copy until its time is t."""
        if t < 0:
            raise ValueError(
                f"expected t >= 0, got {t:g}: t = 0 is where the scheduler is now; make the "
                "dynamics before training"
            )
        while self._ends[-1] < t - _ROUNDING * max(1.0, t):
            if not self._advance():
                raise ValueError(f"{self._refusal} (asked for: t={t:g})")
            if len(self._rates) > _MOST_STEPS:
                raise ValueError(
                    f"expected learning rates that add up to the time asked for, got t={t:g} "
                    f"not reached after {_MOST_STEPS:,} steps of {self._name} (t={self._ends[-1]:g}"
                    "): ask for earlier times, or give a function t -> c_delta(t)"
                )

    def _advance(self) -> bool:
        """Take one more step; False at the end."""
        if self._refusal:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for scheduler in self._schedulers:
                scheduler.step()
        return self._take_up()

    def _take_up(self) -> bool:
        """The next step's rate, or why there is none."""
        step, rate = len(self._rates), float(self._groups[self._number]["lr"])
        now = self._ends[-1] if step else 0.0
        if not 0 < rate < math.inf:
            self._refusal = (
                f"expected learning rates > 0, got lr={rate:g} at step {step} of {self._name}, "
                f"t={now:g}: limit time, the sum of the learning rates, ends there; ask for "
                "earlier times"
            )
        elif self._momentum() != self._momenta:
            self._refusal = (
                f"expected a schedule of the learning rate alone, got {self._name} that changes "
                f"the momentum at step {step}, t={now:g}: pass cycle_momentum=False"
            )
        elif any(
            abs(a - b) > 1e-6 * abs(b) for a, b in zip(self._relative(), self._ratios, strict=True)
        ):
            self._refusal = (
                "expected one schedule for all parameter groups (learning rates in constant "
                f"ratios), got other ratios at step {step} of {self._name}, t={now:g}"
            )
        else:
            self._rates.append(rate)
            self._ends.append(now + rate)
        return not self._refusal

    def _momentum(self) -> list[float]:
        return [float(group.get("momentum", 0.0)) for group in self._groups]

    def _relative(self) -> list[float]:
        reference = float(self._groups[self._number]["lr"]) or 1.0
        return [float(group["lr"]) / reference for group in self._groups]


def _start(times: Tensor) -> None:
    if float(times[0]) < 0:
        raise ValueError(
            f"expected times >= 0 with a schedule, which starts at t = 0, got {float(times[0]):g}"
        )


def _checked(given: object, optimizers: list[Any]) -> list[LRScheduler]:
    """The schedulers, of these optimizers."""
    schedulers: list[Any] = [*given] if isinstance(given, (list, tuple)) else [given]
    if not schedulers:
        raise ValueError("expected a scheduler or several, got an empty list")
    for one in schedulers:
        if not isinstance(one, LRScheduler):
            raise TypeError(
                "expected schedule as a function t -> c_delta(t), or torch LR schedulers, got "
                f"{type(one).__name__} in a list"
            )
        if isinstance(one, ReduceLROnPlateau):
            raise TypeError(
                "expected a schedule of time, got ReduceLROnPlateau: its learning rates depend on "
                "losses that have not happened yet; give a function t -> c_delta(t)"
            )
        if not any(getattr(one, "optimizer", None) is own for own in optimizers):
            raise ValueError(
                "expected the optimizer's own scheduler, got "
                + ("that of another optimizer" if optimizers else "step_size")
                + " with it: call dynamics(scheduler.optimizer, schedule=scheduler)"
            )
    if len({id(one.optimizer) for one in schedulers}) < len(schedulers):
        raise ValueError(
            "expected one scheduler for each optimizer, got two of one: join them in "
            "torch.optim.lr_scheduler.ChainedScheduler"
        )
    return schedulers


def _copied(
    scheduler: LRScheduler, optimizer: torch.optim.Optimizer
) -> tuple[LRScheduler, torch.optim.Optimizer]:
    """A scheduler of an optimizer without parameters that has the same groups."""
    bare = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    bare.defaults = dict(optimizer.defaults)
    bare.param_groups = [
        {k: v.clone() if isinstance(v, Tensor) else v for k, v in group.items()} | {"params": []}
        for group in optimizer.param_groups
    ]
    memo: dict[int, Any] = {id(optimizer): bare}
    for group in optimizer.param_groups:
        memo.update({id(p): p for p in group["params"]})
    try:
        return copy.deepcopy(scheduler, memo), bare
    except Exception as error:
        raise TypeError(
            f"expected a scheduler that copy.deepcopy copies, got {type(scheduler).__name__} "
            f"({error}): give a function t -> c_delta(t)"
        ) from error

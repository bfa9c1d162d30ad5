"""`SizedProblem`: statistics, loss and data at one dimension, with a model and a step size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.estimation.estimate import Estimator, Loss, Sampler, checked_sampler
from torchlimits.estimation.lift import Lift
from torchlimits.estimation.per_sample_gradients import takes_model
from torchlimits.statistics.summary import SummaryStatistics

LiftFunction = Callable[..., Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class SizedProblem:
    r"""The :math:`(u_n, L_n, P_n)` of arXiv 2206.04030 at one dimension n, ready to be trained.

    Args:
        model: any module, at the start that training begins from.
        loss, sampler, statistics: as in `torchlimits.estimate`.
        step_size: delta_n, the learning rate itself.
        dim: the dimension n.
        weight_decay: alpha of the optimizer.
        lift: a function u -> ``{parameter name: tensor}``, if possible ``lift(u, generator)`` with
            a remainder drawn from the generator; by default a `Lift` for ready-made statistics.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if ``statistics`` is neither a `SummaryStatistics` nor a dict of functions.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
        >>> sized = tl.SizedProblem.of(problem, step_size=1.0)
        >>> sized.step_size, list(sized.lifts())
        (0.01, ['random', 'aligned'])
        >>> start, end = sized.run(time=0.1, points=2, seed=0)  # 10 steps
        >>> u = sized.u(end)
        >>> bool(torch.allclose(sized.u(sized.lifts()["random"](u)), u, atol=1e-5))
        True
        >>> sized.estimator()(end, step_size=sized.step_size, samples=100).drift.value.shape
        torch.Size([7])
    """

    model: nn.Module
    loss: Loss
    sampler: Sampler
    statistics: SummaryStatistics
    step_size: float
    dim: int
    weight_decay: float = 0.0
    lift: LiftFunction | None = None

    def __post_init__(self) -> None:
        _checks.positive("step_size", self.step_size, "it is delta, the learning rate")
        _checks.positive_int("dim", self.dim)
        _checks.non_negative("weight_decay", self.weight_decay)
        object.__setattr__(self, "statistics", SummaryStatistics.of(self.statistics))
        object.__setattr__(self, "sampler", checked_sampler(self.sampler, self.model))

    @classmethod
    def of(
        cls, problem: Any, *, step_size: float, generator: torch.Generator | None = None
    ) -> SizedProblem:
        """Take model, loss, data and statistics from a problem at its dimension.

        Args:
            problem: a `GaussianMixture`, a `SpikedTensor`, or anything with their methods; its
                ``ridge``, if it has one, is the weight decay.
            step_size: c_delta; delta_n is c_delta / dim.
            generator: draws the model's start.
        """
        ridge, lift = getattr(problem, "ridge", 0.0), getattr(problem, "lift", None)
        return cls(
            problem.model(generator=generator), problem.loss, problem.sample, problem.statistics,
            step_size=step_size / problem.dim, dim=problem.dim, weight_decay=ridge, lift=lift,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    def estimator(self) -> Estimator:
        """Return an `Estimator` for any parameters of the model."""
        return Estimator(self.model, self.loss, self.sampler, self.statistics)

    def lifts(self) -> dict[str, LiftFunction]:
        """Return functions u -> parameters that have the statistics u, by name."""
        if self.lift is not None:
            return {"lifted": self.lift}
        return {
            "random": Lift(self.model, self.statistics, remainder="random"),
            "aligned": Lift(self.model, self.statistics, remainder="aligned"),
        }

    def u(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the statistics of parameters ``{name: tensor}``, float64, on the CPU."""
        return self.statistics(parameters).detach().double().cpu()

    def run(self, time: float, points: int, seed: int) -> list[dict[str, Tensor]]:
        """Train ``model`` by SGD, batch size 1, and return its parameters at several times.

        Args:
            time: limit time of the run.
            points: the number of limit times, spaced evenly from 0 to ``time``.
            seed: the seed of the data.

        Raises:
            ValueError: if a number is out of its range.
        """
        _checks.positive("time", time)
        _checks.positive_int("points", points)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(
            parameters.values(), lr=self.step_size, weight_decay=self.weight_decay
        )
        whole, found, step = takes_model(self.loss), [], 0
        for i in range(points):
            while step < round(time * i / max(1, points - 1) / self.step_size):
                batch = self.sampler(1, generator=generator)
                if whole:
                    loss = self.loss(self.model, batch)
                else:
                    loss = self.loss(self.model(batch[0]), batch[1])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
            found.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return found


def sized_problems(
    problem_at: Callable[[int], SizedProblem], dims: Sequence[int], *, least: int = 2
) -> list[SizedProblem]:
    """Make the problem of each dimension, and check that they belong together.

    Raises:
        ValueError: if there are fewer than ``least`` dimensions, if they do not increase, or if the
            problems have other dimensions or differ in the names of their statistics.
        TypeError: if ``problem_at`` is not a function or returns something other than a
            `SizedProblem`, or ``dims`` are not several.
    """
    if not callable(problem_at):
        raise TypeError(
            f"expected problem_at as a function of n, got {type(problem_at).__name__}: it makes the"
            " tl.SizedProblem of each dimension"
        )
    dims = _checks.increasing("dims", dims)
    if len(dims) < least:
        raise ValueError(f"expected at least {least} increasing dimensions, got {dims}")
    found = [problem_at(n) for n in dims]
    for n, problem in zip(dims, found, strict=True):
        if not isinstance(problem, SizedProblem):
            raise TypeError(
                f"expected problem_at({n}) to return a tl.SizedProblem, got "
                f"{type(problem).__name__}: make it by tl.SizedProblem.of(problem, step_size=...)"
            )
        if problem.dim != n:
            raise ValueError(f"expected problem_at({n}).dim to be {n}, got {problem.dim}")
    names = {tuple(t.statistics.names_of(dict(t.model.named_parameters()))) for t in found}
    if len(names) > 1:
        raise ValueError(
            "expected the same statistics at every dimension, got other names: statistics whose "
            "number grows with n have no limit"
        )
    return found


def places(
    at_n: Sequence[SizedProblem], time: float, points: int, seed: int
) -> list[list[dict[str, Tensor]]]:
    """Return, for every n, parameters whose statistics a run at the largest n goes through."""
    largest = at_n[-1]
    common = [largest.u(x) for x in largest.run(time, points, seed)]
    own = [{n: p.detach() for n, p in problem.model.named_parameters()} for problem in at_n]
    return [
        [{**x, **lift(u)} for u in common for lift in problem.lifts().values()]
        for problem, x in zip(at_n, own, strict=True)
    ]

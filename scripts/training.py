"""Runs of a network from one start, whose gradients a loop may change before each step.

What `reach_optimizers.py` and `optimizers.py` share. A `Change` is what a loop does to gradients
between `backward` and `step`; all runs are replicas in one module, so it treats each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import torchlimits as tl

#: model, N -> optimizer, or several that share the model's parameters
Make = Callable[[nn.Module, int], Any]


class Change:
    """What a loop does to gradients before a step; this one leaves them as they are."""

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Change ``p.grad`` of parameters whose first axis is that of the runs."""

    @property
    def options(self) -> dict[str, Any]:
        """What ``problem.dynamics`` has to be told of it."""
        return {}

    def figures(self) -> dict[str, float]:
        """How much it has changed, on the average over runs and steps so far."""
        return {}


class ClipNorm(Change):
    """`torch.nn.utils.clip_grad_norm_` in every run.

    Args:
        max_norm: the largest norm of a run's gradient.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm
        self._sum, self._steps = 0.0, 0

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Scale each run's gradient to the largest norm, where it is longer."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        # the small number is that of torch's function
        factor = (self.max_norm / (norm + 1e-6)).clamp_max(1)
        for g in gradients:
            g.mul_(factor.reshape(-1, *[1] * (g.ndim - 1)))
        self._sum, self._steps = self._sum + float(factor.mean()), self._steps + 1

    @property
    def options(self) -> dict[str, Any]:
        """The bound, under its name in ``problem.dynamics``."""
        return {"clip_norm": self.max_norm}

    def figures(self) -> dict[str, float]:
        """The bound, and the mean of what gradients were multiplied by."""
        return {"max_norm": self.max_norm, "mean factor": round(self._sum / self._steps, 3)}


class ClipValue(Change):
    """`torch.nn.utils.clip_grad_value_` in every run.

    Args:
        value: the largest absolute value of an entry.
    """

    def __init__(self, value: float) -> None:
        self.value = value
        self._sum, self._steps = 0.0, 0

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Bring entries into the bounds."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        clipped = sum(int((g.abs() > self.value).sum()) for g in gradients)
        nn.utils.clip_grad_value_(parameters, self.value)
        self._sum += clipped / sum(g.numel() for g in gradients)
        self._steps += 1

    @property
    def options(self) -> dict[str, Any]:
        """The bound, under its name in ``problem.dynamics``."""
        return {"clip_value": self.value}

    def figures(self) -> dict[str, float]:
        """The bound, and the share of entries beyond it."""
        share = round(self._sum / self._steps, 3)
        return {"clip_value": self.value, "share of entries that are clipped": share}


class MuonOfRuns(torch.optim.Optimizer):
    """`torch.optim.Muon` on each run's matrix of a stacked parameter by itself.

    Args:
        stacked: the matrices of all runs, ``(runs, K, N)``.
        options: of `torch.optim.Muon`.
    """

    def __init__(self, stacked: nn.Parameter, **options: Any) -> None:
        super().__init__([stacked], options)
        self._stacked = stacked
        # views: what Muon does to them, it does to the stack
        self._each = [nn.Parameter(matrix) for matrix in stacked.data]
        self._muon = torch.optim.Muon(self._each, **options)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take the step of every run."""
        assert closure is None
        assert self._stacked.grad is not None
        for matrix, gradient in zip(self._each, self._stacked.grad, strict=True):
            matrix.grad = gradient
        self._muon.step()


def muon(weight: nn.Parameter, **options: Any) -> torch.optim.Optimizer:
    """Muon of a matrix, or of one for each run.

    Args:
        weight: ``(K, N)`` or ``(runs, K, N)``.
        options: of `torch.optim.Muon`.
    """
    return (torch.optim.Muon([weight], **options) if weight.ndim == 2
            else MuonOfRuns(weight, **options))  # fmt: skip


@dataclass(frozen=True)
class Runs:
    """Runs from one start.

    Args:
        measured: what was recorded, values ``(runs, T, k)``.
        problem: what was trained.
        model, optimizer: the replicas and what trained them, or one network if that takes one.
        batch: B.
        change: what the loop did to gradients.
    """

    measured: tl.Trajectory
    problem: tl.NetworkProblem
    model: nn.Module
    optimizer: Any
    batch: int
    change: Change

    def dynamics(self, **options: Any) -> Any:
        """The dynamics of these runs; without what the change has to tell if ``clip=False``."""
        told = self.change.options if options.pop("clip", True) else {}
        return self.problem.dynamics(
            self.optimizer, batch_size=self.batch, model=self.model, **told, **options
        )


def trained(
    problem: tl.NetworkProblem, make: Make, *, runs: int, time: float, batch: int = 1,
    change: Change | None = None, statistics: Callable[[Any], Any] | None = None,
    records: int = 20, seed: int = 1,
) -> Runs:  # fmt: skip
    """Train runs from one start.

    Args:
        problem, make: the problem, and what makes the optimizer.
        runs: how many.
        time: the sum of learning rates.
        batch: B.
        change: what the loop does to gradients.
        statistics: what is recorded, a function of the statistics of the dynamics.
        records: how often they are recorded after the start.
        seed: of the start and of the data.
    """
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(replicas=(runs,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    optimizer, change = make(model, problem.dim), change or Change()
    optimizers: list[Any] = optimizer if isinstance(optimizer, list) else [optimizer]
    told: tuple[nn.Module, Any] = (model, optimizer)
    if any(isinstance(one, MuonOfRuns) for one in optimizers):
        single = problem.model()
        told = (single, make(single, problem.dim))
    dynamics = problem.dynamics(told[1], batch_size=batch, model=told[0], **change.options)
    recorded = statistics(dynamics.statistics) if statistics else dynamics.statistics
    parameters = list(model.parameters())
    steps = round(time / optimizers[0].param_groups[0]["lr"])
    with tl.track(model, optimizer, recorded, every=max(1, steps // records)) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=(runs,), generator=generator)
            model.zero_grad()
            problem.loss(model(x), y).backward()
            change(parameters)
            for each in optimizers:
                each.step()
    return Runs(tracker.trajectory(), problem, *told, batch, change)


def means(runs: Runs, count: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the first statistics after the start, ``(T - 1, count)``."""
    values = runs.measured.values[:, 1:, :count]
    return values.mean(0), values.std(0)

"""`Probe`: how much of the statistics' change in training do drift and corrector explain?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.observer import Observer, Watcher
from torchlimits.estimation.estimate import Estimator, Loss, Sampler
from torchlimits.optim.sgd import SGDSettings
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory


@dataclass(frozen=True)
class Probe(Watcher):
    """Estimates drift and corrector during training; hand it to `track` as ``probe``.

    Args:
        loss: ``loss(model_output, target)`` or ``loss(model, batch)``, as in
            `torchlimits.estimate`: the loss that is trained, for a batch of one.
        sampler: ``sampler(batch, generator=...)`` returns fresh samples of the training data.
        every: the number of optimizer steps between two estimates.
        samples: the number of samples in an estimate; errors fall as its inverse square root.
        batch_size: the number of samples that one training step averages; g is divided by it.
        seed: the seed of the samples; the training's own random numbers are not touched.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if loss or sampler is not a function.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
        >>> model = problem.model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 100)
        >>> probe = tl.Probe(problem.loss, problem.sample, every=50, samples=64)
        >>> with tl.track(model, optimizer, problem.statistics, probe=probe) as tracker:
        ...     for _ in range(100):
        ...         x, y = problem.sample(1)
        ...         optimizer.zero_grad()
        ...         problem.loss(model(x), y).backward()
        ...         optimizer.step()
        >>> tracker.explanation()
        Explanation(7 statistics, 3 probes, t = 0 ... 1)

    Without a tracker, in a loop of one's own:

        >>> prober = probe.watch(model, optimizer, problem.statistics)
        >>> prober.observe(step=100, time=1.0)
        >>> prober.explanation()
        Explanation(7 statistics, 1 probes, t = 1 ... 1)
    """

    loss: Loss
    sampler: Sampler
    every: int = 1000
    samples: int = 256
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "samples", "batch_size"):
            _checks.positive_int(name, getattr(self, name))
        for name in ("loss", "sampler"):
            if not callable(getattr(self, name)):
                raise TypeError(
                    f"expected {name} as a function, got {type(getattr(self, name)).__name__}: a "
                    "probe needs the loss that is trained and fresh samples of its data"
                )

    def watch(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, statistics: SummaryStatistics
    ) -> Prober:
        """Begin to follow a run, as `Watcher.watch`; the limit's settings are the optimizer's.

        Raises:
            TypeError: if the optimizer is not an SGD.
            ValueError: if the decomposition is not known for its settings.
        """
        return Prober(self, model, optimizer, statistics)


class Prober(Observer):
    """The estimates of one run, one for each step at which `observe` was called."""

    def __init__(
        self, probe: Probe, model: nn.Module, optimizer: torch.optim.Optimizer,
        statistics: SummaryStatistics,
    ) -> None:  # fmt: skip
        self.probe, self.every, self._optimizer = probe, probe.every, optimizer
        self._estimator = Estimator(model, probe.loss, probe.sampler, statistics)
        self.parameters = dict(model.named_parameters())
        # refuse optimizers that the decomposition is not known for
        self._settings().check_plain("a probe")
        self._steps: list[int] = []
        self._times: list[float] = []
        self._rows: list[tuple[Tensor, ...]] = []
        self._generator = self._seeded()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _seeded(self) -> torch.Generator:
        # a seed other than those of the probes before, if there are any
        return torch.Generator(self._device).manual_seed(self.probe.seed + len(self._steps))

    def moved(self, parameters: Mapping[str, Tensor]) -> None:
        """Estimate at these parameters from here on, on their device."""
        self.parameters = dict(parameters)
        if self._generator.device != self._device:
            self._generator = self._seeded()

    @property
    def finite(self) -> bool:
        """Whether all parameters are finite; each device is waited for once."""
        found: dict[torch.device, list[Tensor]] = {}
        for p in self.parameters.values():
            found.setdefault(p.device, []).append(p.isfinite().all())
        return all(bool(torch.stack(here).all()) for here in found.values())

    def _settings(self) -> SGDSettings:
        return SGDSettings.of(self._optimizer, dim=1, batch_size=self.probe.batch_size)

    def observe(self, step: int, time: float) -> None:
        """Estimate f and g now, once for each step.

        Where a parameter is not finite, nothing is estimated: the statistics report that training
        diverged, and at which step.
        """
        if (self._steps and self._steps[-1] == step) or not self.finite:
            return
        settings = self._settings()
        delta, alpha = float(settings.step_size), float(settings.weight_decay)
        samples = self.probe.samples
        if delta == 0 and self._steps:  # nothing moves; but the start has to be known
            return
        # corrector and covariance are proportional to delta
        e = self._estimator(self.parameters, delta or 1.0, samples, alpha, self._generator)
        q = settings.drift_factor
        per_batch = q**2 / settings.batch_size if delta else 0.0
        self._steps.append(step)
        self._times.append(time)
        row = (
            e.u,
            q * e.drift.value,
            per_batch * e.corrector.value,
            q * e.drift.standard_error,
            per_batch * e.corrector.standard_error,
            per_batch * e.increment_covariance.value.diagonal(),
        )
        # the model may be on another device at the next step
        self._rows.append(tuple(x.cpu() for x in row))

    def explanation(self) -> Explanation:
        """The parts of the change up to the last estimate."""
        times = torch.tensor(self._times, dtype=torch.float64, device="cpu")
        u, f, g, f_error, g_error, noise = map(torch.stack, zip(*self._rows, strict=True))
        weights = _trapezoid(times)
        drift, corrector = weights @ f, weights @ g
        drift_error, corrector_error = (
            (weights.square() @ e.square()).sqrt() for e in (f_error, g_error)
        )
        change = u - u[0]
        values = {
            "change": (change, torch.zeros_like(change)),
            "drift": (drift, drift_error),
            "corrector": (corrector, corrector_error),
            "residual": (
                change - drift - corrector,
                (drift_error.square() + corrector_error.square() + weights @ noise).sqrt(),
            ),
        }
        steps = torch.tensor(self._steps, device="cpu")
        return Explanation(
            **{
                name: Trajectory(times, steps, value, self._estimator.names, error)
                for name, (value, error) in values.items()
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """The estimates and the state of their random numbers, for `Tracker.state_dict`."""
        return {
            "steps": list(self._steps),
            "times": list(self._times),
            "rows": list(self._rows),
            "generator": self._generator.get_state(),
        }

    def check_state(self, state: Any) -> None:
        """Raise ValueError if the state is not one that `state_dict` made."""
        try:
            steps, times, rows = state["steps"], state["times"], state["rows"]
            torch.Generator(self._device).set_state(state["generator"].cpu())
            good = len(steps) == len(times) == len(rows) > 0
            tensors = all(isinstance(x, Tensor) for row in rows for x in row)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"expected the state of a probe, it is damaged: {error!r}") from error
        if not good or not tensors:
            raise ValueError(
                "expected as many steps, times and rows of tensors of a probe: it is damaged"
            )

    def load_state_dict(self, state: Any) -> None:
        """Continue where `state_dict` was taken."""
        self._steps, self._times = list(state["steps"]), list(state["times"])
        # a checkpoint may have been loaded to a device with all that is in it
        self._rows = [tuple(x.cpu() for x in row) for row in state["rows"]]
        self._generator.set_state(state["generator"].cpu())


def _trapezoid(times: Float[Tensor, " T"]) -> Float[Tensor, "T T"]:
    """The trapezoidal rule: row j has the weights of the integral from times[0] to times[j]."""
    T = len(times)
    half = times.diff() / 2
    weights = times.new_zeros(T, T)
    for j in range(1, T):
        weights[j, :j] += half[:j]
        weights[j, 1 : j + 1] += half[:j]
    return weights

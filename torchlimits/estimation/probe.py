"""`Probe`: how much of the statistics' change in training do drift and corrector explain?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits._checks import warn
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.observer import Observer, Watcher
from torchlimits.estimation.estimate import Estimator, Loss, Moments, Sampler
from torchlimits.estimation.motion import Factor, Motion
from torchlimits.estimation.moves import DEAD, Moves, moves_of
from torchlimits.estimation.sample_error import Replay
from torchlimits.optim.sgd import clock
from torchlimits.statistics.slow_variable import slow_value
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory


@dataclass(frozen=True)
class Probe(Watcher):
    r"""Estimates drift and corrector during training; hand it to `track` as ``probe``.

    With momentum, parameters remember past gradients, so that no decomposition at the parameters w
    can hold. The probe takes the statistics, with their gradients and Hessians, at the slow
    variable y of `tl.statistics.slow_variable`, and the gradients of the loss at w: y moves by
    :math:`-\eta (1 - \tau)/(1 - \beta) \nabla L(w)` in every step, exactly at a constant learning
    rate. Groups of parameters may have learning rates, momenta and weight decays of their own;
    parameters that the optimizer does not hold stand still.

    With Adam and AdamW, y moves by :math:`-\eta W_s D \nabla L(w)`, and by weight decay, as
    `tl.statistics.slow_variable` says. D has the second moments that the optimizer keeps, and, with
    the weight of one step, those of the fresh samples. So drift and corrector are those of
    gradients times W D, with the mean W of the steps that an estimate stands for. What is left out
    is of relative order :math:`1 - \beta_2`, and 1/s in the first steps, in which D is random.
    Where a tensor's fresh gradients have more than ten times the second moment that steps divide
    by, as those of a feature that was dead, D is about to change by much: the tensor stands still
    in the estimate, a warning and ``skipped`` of `Explanation` name it, and what it does is in the
    residual.

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
            TypeError: if the optimizer is another than SGD, Adam and AdamW.
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
        self._rate: Callable[[], float] | None = None
        self._moves()  # refuse optimizers that the decomposition is not known for
        self._strangers = self._versions()
        self._steps: list[int] = []
        self._times: list[float] = []
        self._rows: list[tuple[Tensor, ...]] = []
        self._skipped: set[str] = set()
        self._generator = self._seeded()

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _seeded(self) -> torch.Generator:
        # a seed other than those of the probes before, if there are any
        return torch.Generator(self._device).manual_seed(self.probe.seed + len(self._steps))

    def timed(self, rate: Callable[[], float]) -> None:
        """Count the drift in this limit time; by default it is that of `optim.sgd.clock`."""
        self._rate = rate

    def moved(self, parameters: Mapping[str, Tensor]) -> None:
        """Estimate at these parameters from here on, on their device."""
        self.parameters = dict(parameters)
        self._strangers = self._versions()
        if self._generator.device != self._device:
            self._generator = self._seeded()

    @property
    def finite(self) -> bool:
        """Whether all parameters are finite; each device is waited for once."""
        found: dict[torch.device, list[Tensor]] = {}
        for p in self.parameters.values():
            found.setdefault(p.device, []).append(p.isfinite().all())
        return all(bool(torch.stack(here).all()) for here in found.values())

    def _moves(self) -> list[tuple[dict[str, Any], Moves]]:
        """The optimizer's groups, and how each of them moves its parameters."""
        probe, groups = self.probe, self._optimizer.param_groups
        return [
            (group, moves_of(self._optimizer, group, probe.batch_size, probe.every))
            for group in groups
        ]

    @property
    def _clock(self) -> dict[str, Any]:
        """The group whose learning rates limit time counts, if nobody says what it counts."""
        groups = self._optimizer.param_groups
        return groups[clock(groups)]

    def _present_rate(self) -> float:
        """The learning rate that limit time counts."""
        return float(self._clock["lr"]) if self._rate is None else self._rate()

    def _at(self) -> tuple[Estimator, dict[str, Moments]]:
        """An estimator, and the moments that moves depend on: of the samples it will have."""
        if not any(move.needs_moments for _, move in self._moves()):
            return self._estimator, {}
        data = Replay(self._estimator.sampler, self.probe.samples)
        estimator = self._estimator.on(data)
        moments = estimator.moments(self.parameters, self.probe.samples, self._generator)
        data.restart()
        return estimator, moments

    def _motion(self, moments: Mapping[str, Moments]) -> Motion:
        """How parameters move, in units of the learning rate that limit time counts."""
        rate = self._present_rate()
        # before a warm-up from 0, groups are to each other as they will be
        later = float(self._clock.get("initial_lr", 0.0))
        unit, key = (rate, "lr") if rate else (later, "initial_lr")
        names = {id(p): name for name, p in self.parameters.items()}
        # what this optimizer does not hold stands still
        speeds: dict[str, Factor] = dict.fromkeys(self._estimator.gradients.names, 0.0)
        decays, places, unknown = dict[str, Factor](), dict[str, Tensor](), list[str]()
        for group, move in self._moves():
            scale = float(group[key]) / unit if unit else 1.0
            for p in (p for p in group["params"] if id(p) in names):
                name, state = names[id(p)], self._optimizer.state.get(p)
                places[name] = slow_value(p, group, state)
                if name not in speeds:  # no statistic reads it
                    continue
                found = move(p, state, moments.get(name))
                if found is None:
                    unknown.append(name)
                else:
                    speeds[name], decays[name] = found.speed * scale, found.decay * scale
        self._leave_out(unknown)
        return Motion(speeds=speeds, decays=decays, places=places)

    def _leave_out(self, names: list[str]) -> None:
        """Say which parameters stand still in the estimates, though the optimizer moves them."""
        new = sorted({*names} - self._skipped)
        self._skipped |= {*new}
        if new:
            warn(
                f"the probe leaves out {', '.join(new)}: fresh squared gradients there are more "
                f"than {DEAD:g} times what {type(self._optimizer).__name__} divides by, as of "
                "features that were dead (or where a step averages more than the "
                f"batch_size={self.probe.batch_size} of the probe), so that its steps along them "
                "are not known; what they do to the statistics is in the residual"
            )

    def _versions(self) -> dict[str, int]:
        """How often parameters that statistics read, but the optimizer lacks, have changed."""
        held = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        read = {name: self.parameters[name] for name in self._estimator.gradients.names}
        return {name: p._version for name, p in read.items() if id(p) not in held}

    def _check_strangers(self) -> None:
        now, kind = self._versions(), type(self._optimizer).__name__
        moved = sorted(name for name, was in self._strangers.items() if now.get(name) != was)
        if moved and self._steps:
            warn(
                f"the probe knows the steps of one {kind}, which does not hold {', '.join(moved)}: "
                "something else moves them, and what that does to the statistics is in the residual"
            )
            self._strangers = {}

    def observe(self, step: int, time: float) -> None:
        """Estimate f and g now, once for each step.

        Where a parameter is not finite, nothing is estimated: the statistics report that training
        diverged, and at which step.
        """
        if (self._steps and self._steps[-1] == step) or not self.finite:
            return
        self._check_strangers()
        delta = self._present_rate()
        if delta == 0 and self._steps:  # nothing moves; but the start has to be known
            return
        estimator, moments = self._at()
        motion = self._motion(moments)
        # corrector and covariance are proportional to delta
        e = estimator(
            self.parameters, delta or 1.0, self.probe.samples, generator=self._generator,
            motion=motion,
        )  # fmt: skip
        per_batch = 1 / self.probe.batch_size if delta else 0.0
        self._steps.append(step)
        self._times.append(time)
        row = (
            e.u,
            e.drift.value,
            per_batch * e.corrector.value,
            e.drift.standard_error,
            per_batch * e.corrector.standard_error,
            per_batch * e.increment_covariance.value.diagonal(),
        )
        # the model may be on another device at the next step
        self._rows.append(tuple(x.cpu() for x in row))

    def explanation(self) -> Explanation:
        """The parts of the change up to the last estimate."""
        times = torch.tensor(self._times, dtype=torch.float64, device="cpu")
        u, f, g, f_error, g_error, noise = map(torch.stack, zip(*self._rows, strict=True))
        drift, corrector, spread = (integrals(times, rate) for rate in (f, g, noise))
        drift_error, corrector_error = (errors(times, e) for e in (f_error, g_error))
        change = u - u[0]
        values = {
            "change": (change, torch.zeros_like(change)),
            "drift": (drift, drift_error),
            "corrector": (corrector, corrector_error),
            "residual": (
                change - drift - corrector,
                (drift_error.square() + corrector_error.square() + spread).sqrt(),
            ),
        }
        steps = torch.tensor(self._steps, device="cpu")
        return Explanation(
            **{
                name: Trajectory(times, steps, value, self._estimator.names, error)
                for name, (value, error) in values.items()
            },
            skipped=tuple(sorted(self._skipped)),
        )

    def state_dict(self) -> dict[str, Any]:
        """The estimates and the state of their random numbers, for `Tracker.state_dict`."""
        return {
            "steps": list(self._steps),
            "times": list(self._times),
            "rows": list(self._rows),
            "skipped": sorted(self._skipped),
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
        # states of earlier versions have no such names
        self._skipped = set(state.get("skipped", ()))
        self._generator.set_state(state["generator"].cpu())


def integrals(times: Float[Tensor, " T"], rates: Float[Tensor, "T k"]) -> Float[Tensor, "T k"]:
    """Integrals of rates from times[0] to each time, by the trapezoidal rule.

    Example:
        >>> integrals(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([[0.0], [2.0], [4.0]])).flatten()
        tensor([0., 1., 7.])
    """
    return _summed(times.diff()[:, None] / 2 * (rates[1:] + rates[:-1]))


def errors(times: Float[Tensor, " T"], of_rates: Float[Tensor, "T k"]) -> Float[Tensor, "T k"]:
    """Standard errors of `integrals`, of rates with independent standard errors.

    Example:
        >>> errors(torch.tensor([0.0, 1.0, 3.0]), torch.ones(3, 1)).square().flatten()
        tensor([0.0000, 0.5000, 3.5000])
    """
    half = times.diff()[:, None] / 2
    whole = torch.cat([half[:1], half[1:] + half[:-1]])
    # the last rate before each time has the weight of one interval, those between of two
    before = _summed((whole * of_rates[:-1]).square())
    last = torch.cat([torch.zeros_like(of_rates[:1]), (half * of_rates[1:]).square()])
    return (before + last).sqrt()


def _summed(parts: Float[Tensor, "intervals k"]) -> Float[Tensor, "T k"]:
    return torch.cat([parts.new_zeros(1, parts.shape[1]), parts.cumsum(0)])

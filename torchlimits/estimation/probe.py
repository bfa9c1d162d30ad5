"""`Probe`: along a training run, what of the statistics' change do drift and corrector explain?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks, _text
from torchlimits.estimation.estimate import Estimator, Loss, Sampler
from torchlimits.optim.sgd import SGDSettings
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory

#: the parts of an `Explanation`, and what they are called in TensorBoard
PARTS = {
    "change": "measured change",
    "drift": "gradient flow",
    "corrector": "corrector",
    "residual": "residual",
}


@dataclass(frozen=True)
class Probe:
    """What `track(..., probe=)` needs to estimate drift and corrector during training.

    Args:
        loss: ``loss(model_output, target)`` or ``loss(model, batch)``, as in
            `torchlimits.estimate`: that which is trained, for a batch of one.
        sampler: ``sampler(batch, generator=...)`` returns fresh samples of the training data.
        every: estimate after every so many optimizer steps.
        samples: of an estimate; errors fall with their square root.
        batch_size: samples averaged in one step of the training loop, which divide g.
        seed: of the samples; the training's own random numbers are not touched.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if loss or sampler is no function.

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


@dataclass(frozen=True, eq=False)
class Explanation:
    r"""The change of the statistics since step 0, and what explains it.

    .. math:: u(t) - u(0) = \int_0^t (-f)\, ds + \int_0^t g\, ds + residual

    with f and g estimated along the run, at the parameters themselves, and integrated by the
    trapezoidal rule. The residual is the noise of SGD, a martingale, what happens between two
    probes, and, where steps are large, orders of the step size beyond Theorem 2.2. Each part is a
    `Trajectory` of T probes and k statistics. Its ``std`` is the standard error of the integrals;
    that of the residual has the martingale's standard deviation in it, from the estimated
    covariance of single steps: a residual of several times that is not noise.

    Attributes:
        change: measured, u(t) - u(0).
        drift: the part of gradient flow, -f.
        corrector: the part of the corrector, g.
        residual: what neither explains.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=20, order=2, snr=2.0)
        >>> model = problem.model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 20)
        >>> probe = tl.Probe(problem.loss, problem.sample, every=5)
        >>> with tl.track(model, optimizer, problem.statistics, probe=probe) as tracker:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         features, target = problem.sample(1)
        ...         problem.loss(model(features), target).backward()
        ...         optimizer.step()
        >>> parts = tracker.explanation().parts()
        >>> explained = sum(parts[name].values for name in ("drift", "corrector", "residual"))
        >>> bool(torch.allclose(explained, parts["change"].values))
        True
    """

    change: Trajectory
    drift: Trajectory
    corrector: Trajectory
    residual: Trajectory

    def parts(self) -> dict[str, Trajectory]:
        """The four of them, by name."""
        return {name: getattr(self, name) for name in PARTS}

    def __repr__(self) -> str:
        times = self.change.times
        return (
            f"Explanation({len(self.change.names)} statistics, {len(times)} probes, "
            f"t = {times[0]:g} ... {times[-1]:g})"
        )

    def __str__(self) -> str:
        error = self.residual.std
        assert error is not None
        rows = [["statistic", *PARTS.values()]]
        for i, name in enumerate(self.change.names):
            values = [f"{path.final[i]:.4f}" for path in self.parts().values()]
            values[-1] += f" ± {error[-1, i]:.4f}"
            rows.append([name, *values])
        return _text.table(rows)


class Prober:
    """The estimates of one run, made when `measure` is called; belongs to a `Tracker`."""

    def __init__(
        self,
        probe: Probe,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: SummaryStatistics,
    ) -> None:
        self.probe, self._optimizer = probe, optimizer
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
        # another seed than that of the probes before, if there are any
        return torch.Generator(self._device).manual_seed(self.probe.seed + len(self._steps))

    def moved(self, parameters: Mapping[str, Tensor]) -> None:
        """Go on with the model's parameters as they are now, on their present device."""
        self.parameters = dict(parameters)
        if self._generator.device != self._device:
            self._generator = self._seeded()

    @property
    def finite(self) -> bool:
        """Whether all parameters are; each device is waited for once."""
        found: dict[torch.device, list[Tensor]] = {}
        for p in self.parameters.values():
            found.setdefault(p.device, []).append(p.isfinite().all())
        return all(bool(torch.stack(here).all()) for here in found.values())

    def _settings(self) -> SGDSettings:
        return SGDSettings.of(self._optimizer, dim=1, batch_size=self.probe.batch_size)

    def measure(self, step: int, time: float) -> None:
        """Estimate f and g now; once a step."""
        if self._steps and self._steps[-1] == step:
            return
        settings = self._settings()
        if settings.step_size == 0:  # a schedule that has ended: nothing moves
            return
        e = self._estimator(
            self.parameters,
            step_size=settings.step_size,
            samples=self.probe.samples,
            weight_decay=settings.weight_decay,
            generator=self._generator,
        )
        q, per_batch = settings.drift_factor, settings.drift_factor**2 / settings.batch_size
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
        # the model may be on another device at the next
        self._rows.append(tuple(x.cpu() for x in row))

    def explanation(self) -> Explanation:
        """So far, the last probe included."""
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

    def state_dict(self) -> Mapping[str, object]:
        """For `Tracker.state_dict`."""
        return {
            "steps": list(self._steps),
            "times": list(self._times),
            "rows": list(self._rows),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue where `state_dict` was taken."""
        self._steps, self._times = list(state["steps"]), list(state["times"])  # type: ignore[call-overload]
        # a checkpoint may have been loaded to a device with all that is in it
        self._rows = [tuple(x.cpu() for x in row) for row in state["rows"]]  # type: ignore[attr-defined]
        self._generator.set_state(state["generator"].cpu())  # type: ignore[attr-defined]


def _trapezoid(times: Float[Tensor, " T"]) -> Float[Tensor, "T T"]:
    """Row j has the weights of the integral from times[0] to times[j]."""
    T = len(times)
    half = times.diff() / 2
    weights = times.new_zeros(T, T)
    for j in range(1, T):
        weights[j, :j] += half[:j]
        weights[j, 1 : j + 1] += half[:j]
    return weights

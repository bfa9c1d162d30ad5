"""`EmpiricalDynamics`: effective dynamics whose right-hand side is estimated from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.utils import _pytree as pytree

from torchlimits import _checks
from torchlimits.contracts.geometry import Geometry
from torchlimits.contracts.vector_field import VectorField
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.estimation.estimate import (
    Estimate,
    Estimator,
    Loss,
    Sampler,
    checked_sampler,
    checked_samples,
)
from torchlimits.estimation.lift import Lift
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.statistics.summary import SummaryStatistics

#: half the distance of central differences, relative to 1 + |u|
_DIFFERENCE = 0.05
#: a start is refused if its lift's statistics are off by this much, relative to 1 + |u|
_UNLIKE = 0.05


class EmpiricalDynamics(EffectiveDynamics):
    r"""The ballistic limit :math:`\dot u = -f(u) + g(u)` of any statistics of any model.

    u is lifted to parameters that have these statistics, and f and g are estimated there
    (`torchlimits.estimate`). That is a prediction where the statistics close (Theorem 2.2 of
    arXiv 2206.04030): where f and g are the same at all parameters with these statistics.
    `torchlimits.estimation.conditions.closability` says whether they are.

    All evaluations share one set of samples and one remainder of the lift, drawn once from
    ``seed``: the right-hand side is a function, smooth to its own error, of order
    samples^(-1/2). Solve with several seeds to see what that does to the solution.

    Args:
        model, loss, sampler, statistics: as in `torchlimits.estimate`.
        step_size: c_delta = lr * dim; 0 is gradient flow.
        dim: the dimension n, that of ``model``.
        lift: a function u -> ``{parameter name: tensor}``; by default a `Lift` for the statistics.
        samples: the number of samples, which are held in memory.
        momentum, weight_decay, batch_size: those of torch.optim.SGD.
        seed: the seed of samples and remainder.

    Raises:
        ValueError: if a number is out of its range, or there is no ready-made lift.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
        >>> model = problem.model()
        >>> dynamics = tl.EmpiricalDynamics(
        ...     model, problem.loss, problem.sample, problem.statistics, step_size=1.0, dim=100,
        ...     samples=1000,
        ... )
        >>> start = problem.statistics(dict(model.named_parameters())).detach()
        >>> dynamics.solve(start, [0.0, 0.5, 1.0])
        Trajectory(7 statistics, 3 times, t = 0 ... 1, runs=1)
        >>> dynamics.estimate(start).drift.standard_error.shape
        torch.Size([7])
        >>> dynamics.jacobian(start[None]).shape
        torch.Size([1, 7, 7])
        >>> dynamics.equation(corrector=False)
        'du/dt = -f(u), estimated from 1000 samples'
    """

    field: EmpiricalField
    limit: SGDLimit

    def __init__(
        self, model: nn.Module, loss: Loss, sampler: Sampler,
        statistics: SummaryStatistics | Mapping[str, Any], *, step_size: float, dim: int,
        lift: Callable[..., Mapping[str, Tensor]] | None = None, samples: int = 4096,
        momentum: float = 0.0, weight_decay: float = 0.0, batch_size: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        settings = SGDSettings(
            step_size, momentum, weight_decay=weight_decay, batch_size=batch_size
        )
        _checks.positive_int("dim", dim)
        if not callable(lift) and lift is not None:
            raise TypeError(f"expected lift as a function of u, got {type(lift).__name__}")
        data = _Replay(checked_sampler(sampler, model), _checks.positive_int("samples", samples))
        estimator = Estimator(model, loss, data, statistics)
        lift = Lift(model, estimator.statistics, seed=seed) if lift is None else lift
        field = EmpiricalField(
            estimator, data, lift, dim=dim, samples=samples, seed=seed, weight_decay=weight_decay
        )
        super().__init__(field, SGDLimit(settings))
        self.samples, self.seed, self.lift = samples, seed, lift

    def estimate(self, u: Float[Tensor, " k"], step_size: float | None = None) -> Estimate:
        """f, g and Sigma at u, with their standard errors, for plain SGD with batch size 1.

        Args:
            u: shape ``(k,)``.
            step_size: c_delta; by default the settings', or 1 where that is 0.

        Raises:
            ValueError, TypeError: as in `forward`, and as `torchlimits.estimate` does.
        """
        settings = self.limit.settings
        c = (settings.step_size or 1.0) if step_size is None else step_size
        return self.field.estimate(self.checked(u), float(c), float(settings.weight_decay))


class EmpiricalField(VectorField):
    """Drift and corrector estimated at parameters that a lift gives; see `EmpiricalDynamics`.

    Args:
        estimator: estimates f, g and Sigma from the samples of ``data``.
        data: serves the same samples at every evaluation.
        lift: a function u -> ``{parameter name: tensor}``.
        dim: n.
        samples: the number of samples.
        seed: the seed of the samples.
        weight_decay: alpha in the whole steps whose increments are estimated; their covariance
            depends on it to order 1/n.
    """

    #: no finer than the jumps that single samples make in the right-hand side
    rtol = 1e-3
    atol = 1e-4
    settling_time = 0.0

    def __init__(
        self, estimator: Estimator, data: _Replay, lift: Callable[..., Mapping[str, Tensor]], *,
        dim: int, samples: int, seed: int, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(estimator.names, dim)
        self.samples, self.seed, self.lift = samples, seed, lift
        self.weight_decay = weight_decay
        self.geometry = EmpiricalGeometry(self)
        self._estimator, self._data = estimator, data

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of the terms, where gradients along the statistics are of order 1."""
        return 3 / math.sqrt(self.samples)

    def estimate(
        self, u: Float[Tensor, " k"], step_size: float, weight_decay: float = 0.0
    ) -> Estimate:
        """Estimate as `EmpiricalDynamics.estimate` does, at u, c_delta and alpha."""
        self._data.restart()
        generator = torch.Generator(device=self._device).manual_seed(self.seed)
        return self._estimator(
            self.lifted(u.detach()), step_size / self.dim, self.samples, weight_decay, generator
        )

    def statistics(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The statistics of the lift at u, shape ``(..., k)``."""
        statistics = self._estimator.statistics
        rows = [statistics(self.lifted(row)) for row in u.reshape(-1, u.shape[-1])]
        return torch.stack(rows).reshape(u.shape).to(u)

    def lifted(self, u: Float[Tensor, " k"]) -> dict[str, Tensor]:
        """All parameters of the model, with those that the lift gives at u, shape ``(k,)``."""
        estimator, parameters = self._estimator, self.lift(u)
        missing = set(estimator.gradients.names) - set(parameters)
        if missing:
            raise ValueError(
                f"expected the lift to return the parameters {sorted(missing)}, got "
                f"{sorted(parameters)}"
            )
        own = {n: p.detach() for n, p in estimator.model.named_parameters()}
        wrong = {n: tuple(p.shape) for n, p in parameters.items()
                 if n not in own or p.shape != own[n].shape}  # fmt: skip
        if wrong:
            raise ValueError(
                "expected the lift to return parameters of the model in their shapes, "
                f"{ {n: tuple(p.shape) for n, p in own.items()} }, got {wrong}"
            )
        return {**own, **{n: p.detach().to(own[n]) for n, p in parameters.items()}}

    @property
    def _device(self) -> torch.device:
        return next(self._estimator.model.parameters()).device

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g; see `VectorField.terms`."""
        dual = unpack_dual(u).tangent is not None
        if dual or (u.requires_grad and torch.is_grad_enabled()):
            raise ValueError(
                "expected u without gradient, got one with: estimates have no derivative by "
                "autograd (it would miss the samples that cross a kink); use dynamics.jacobian(u)"
            )
        found = [self.estimate(row, 1.0) for row in u.reshape(-1, u.shape[-1])]
        drift, corrector = (
            torch.stack(x).reshape(u.shape).to(u)
            for x in ([e.drift.value for e in found], [e.corrector.value for e in found])
        )
        return drift, corrector

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """Du[x] at the lift."""
        rows = [self._growth(self.lifted(row.detach())) for row in u.reshape(-1, u.shape[-1])]
        return torch.stack(rows).reshape(u.shape).to(u)

    def _growth(self, parameters: dict[str, Tensor]) -> Tensor:
        jacobian = self._estimator.statistics.jacobian(parameters)
        return sum(
            (slope.flatten(1) @ parameters[name].flatten() for name, slope in jacobian.items()),
            torch.zeros(()),
        )

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """The covariance of one step; see `VectorField.increment_covariance`."""
        step_size = step_size or 1.0  # any value for gradient flow: the diffusion takes it times 0
        delta = step_size / self.dim
        rows = [
            self.estimate(row, step_size, self.weight_decay) for row in u.reshape(-1, u.shape[-1])
        ]
        found = torch.stack([e.increment_covariance.value / delta for e in rows])
        return found.reshape(*u.shape, u.shape[-1]).to(u)

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """The Jacobian by central differences of the same samples, over distances they resolve."""
        u = u.detach()
        h = _DIFFERENCE * (1 + u.abs().amax(-1))[:, None, None]
        moves = h * torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        # only as far as there are parameters, which there are not beyond R >= 0
        ahead, behind = self.statistics(u[:, None] + moves), self.statistics(u[:, None] - moves)
        rise = velocity(ahead) - velocity(behind)
        # on the CPU, whose driver does not assume full rank, which fails at R = 0
        spread, rise = (ahead - behind).cpu(), rise.cpu()
        return torch.linalg.lstsq(spread, rise).solution.mT.to(u)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError if the lift of a start has other statistics."""
        gap = (self.statistics(u0) - u0).abs().reshape(-1, u0.shape[-1]).amax(0)
        worst = int(gap.argmax())
        if float(gap[worst]) > _UNLIKE * (1 + float(u0.abs().max())):
            raise ValueError(
                f"expected a start that parameters can have, got one whose {self.names[worst]} is "
                f"{float(gap[worst]):.3g} from that of its lift: start from measured statistics"
            )

    def equation(self, corrector: bool = True) -> str:
        """The equation; see `VectorField.equation`."""
        return f"{super().equation(corrector)}, estimated from {self.samples} samples"


class EmpiricalGeometry(Geometry):
    """The space of the statistics that the lifts of a field have."""

    def __init__(self, field: EmpiricalField) -> None:
        self.field = field

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The statistics of the lift."""
        return self.field.statistics(u)


class _Replay:
    """A sampler that draws a number of samples once, and serves them from the first on."""

    def __init__(self, sampler: Sampler, samples: int) -> None:
        self._sampler, self._samples = sampler, samples
        self._data: Any = None
        self._served = 0

    def restart(self) -> None:
        """Make the first sample the next one again."""
        self._served = 0

    def __call__(self, batch: int, generator: torch.Generator | None = None) -> Any:
        if self._data is None:
            data = self._sampler(self._samples, generator=generator)
            self._data = checked_samples(data, self._samples)
        rows = slice(self._served, self._served + batch)
        self._served += batch
        return pytree.tree_map(lambda x: x[rows], self._data)

"""`EmpiricalField`: drift and corrector estimated from samples, at parameters that a lift gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from torchlimits.contracts.geometry import Geometry
from torchlimits.contracts.vector_field import VectorField
from torchlimits.estimation.estimate import Estimate, Estimator
from torchlimits.estimation.quick_check import Closing
from torchlimits.estimation.sample_error import Replay
from torchlimits.optim.sgd_limit import SGDLimit

#: in so many blocks of samples places are compared that have the same statistics
BLOCKS = 4
#: half the distance of central differences, relative to 1 + |u|
_DIFFERENCE = 0.05
#: a start is refused if its lift's statistics are off by this much, relative to 1 + |u|
_UNLIKE = 0.05


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
        self, estimator: Estimator, data: Replay, lift: Callable[..., Mapping[str, Tensor]], *,
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
        return self._at(self.lifted(u.detach()), step_size, weight_decay)

    def _at(
        self, parameters: Mapping[str, Tensor], step_size: float, weight_decay: float = 0.0
    ) -> Estimate:
        self._data.restart()
        generator = torch.Generator(device=self._device).manual_seed(self.seed)
        return self._estimator(
            parameters, step_size / self.dim, self.samples, weight_decay, generator
        )

    def of(self, data: Replay) -> EmpiricalField:
        """The same field estimated from other samples.

        Args:
            data: serves them.
        """
        own = self._estimator
        return EmpiricalField(
            Estimator(own.model, own.gradients.loss, data, own.statistics), data, self.lift,
            dim=self.dim, samples=data.samples, seed=self.seed, weight_decay=self.weight_decay,
        )  # fmt: skip

    def closing(self, u: Float[Tensor, " k"], limit: SGDLimit, places: int) -> Closing:
        """How much du/dt differs between parameters with the statistics u.

        These are lifts with remainders of their own and, if the model itself has the statistics,
        the model's.

        Args:
            u: shape ``(k,)``.
            limit: what the optimizer makes of drift and corrector.
            places: how many lifts.
        """
        generators = (torch.Generator().manual_seed(self.seed + 1 + i) for i in range(places))
        own = {n: p.detach() for n, p in self._estimator.model.named_parameters()}
        found = [{**own, **self.lift(u, generator=generator)} for generator in generators]
        here = self._estimator.statistics(own).to(u)
        if float((here - u).abs().max()) <= 1e-4 * (1 + float(u.abs().max())):
            found.append(own)
        places_here = [{n: p.to(own[n]) for n, p in place.items()} for place in found]
        c, speed = limit.step_size / limit.settings.batch_size, limit.speed
        rows = []
        for block in self._data.blocks(BLOCKS):
            part = self.of(block)
            estimates = [part._at(place, 1.0) for place in places_here]
            rate = [speed * e.drift.value + c * speed**2 * e.corrector.value for e in estimates]
            rows.append(torch.stack(rate))
        return Closing.of(torch.stack(rows).cpu(), self.names)

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

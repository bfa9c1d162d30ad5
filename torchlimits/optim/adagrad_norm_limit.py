"""`AdaGradNormLimit`: the limit of `AdaGradNorm`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.contracts.vector_field import VectorField
from torchlimits.optim.adagrad_norm import KEY, AdaGradNorm
from torchlimits.optim.adagrad_norm_field import NAME, AdaGradNormField
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.listed import listed
from torchlimits.optim.parameter_groups import Layers, settings_of
from torchlimits.optim.sgd import SGDSettings, clock
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.statistics.summary import SummaryStatistics


@dataclass(frozen=True)
class AdaGradNormLimit(OptimizerLimit):
    """SGD with c_delta = eta/sqrt(v), where v = (b/n)^2 is a part of the state.

    It is for any `VectorField` that says what the mean square of its gradient is; see
    `AdaGradNormField` for the equations, and for limit time.

    Args:
        plain: what is done to gradients besides the division by b, with eta as learning rate.
        initial: b_0.

    Example:
        >>> limit = AdaGradNormLimit(SGDLimit(SGDSettings(step_size=100.0)), initial=100.0)
        >>> limit.step_size, limit.describe()["initial"]
        (100.0, 100.0)
    """

    plain: SGDLimit
    initial: float

    def __post_init__(self) -> None:
        _checks.positive("initial", self.initial, "it is b_0, of the order of n")
        if not _checks.plain(self.plain.step_size) > 0:
            raise ValueError(
                "expected a learning rate > 0 in AdaGradNorm, got 0: limit time, the sum of "
                "learning rates, would stand still"
            )

    @classmethod
    def of(
        cls, optimizer: object, dim: int, batch_size: int = 1,
        shapes: Mapping[str, Any] | None = None,
    ) -> AdaGradNormLimit:  # fmt: skip
        """The limit of an optimizer.

        Args:
            optimizer: an `AdaGradNorm`.
            dim: n.
            batch_size: B.
            shapes: the parameters of a network, arguments of `settings_of`; None if all have the
                same settings.

        Raises:
            TypeError: if there are others beside it.
            ValueError: if its groups differ and it is not known whose they are.
            NotImplementedError: if an option requires a gradient.
        """
        alone = _alone(optimizer)
        groups = alone.param_groups
        if any(_checks.requires_grad(value) for group in groups for value in group.values()):
            raise NotImplementedError(
                "expected the options of AdaGradNorm as numbers, got a tensor that requires a "
                "gradient: derivatives by them are known for SGD alone; give float(...)"
            )
        settings = [_of_group(group, dim, batch_size) for group in groups]
        reference = settings[clock(groups)]
        initial = float(groups[0]["initial"])
        if shapes is None:
            if any(one != reference for one in settings):
                raise ValueError(
                    "expected one lr, weight_decay and maximize for all parameter groups, got "
                    "several: parameters with their own settings are known for networks "
                    "(GaussianMixture, NetworkProblem)"
                )
            return cls(SGDLimit(reference), initial)
        found = settings_of(groups, settings, **shapes)
        alike = all(one == reference for one in found.values())
        return cls(SGDLimit(reference, None if alike else Layers(reference, found)), initial)

    @property
    def step_size(self) -> float:
        """n eta, of the group whose learning rates add up to the limit time."""
        return float(self.plain.step_size)

    @property
    def speed(self) -> float:
        """1: how fast parameters move is a part of the state."""
        return 1.0

    def check_beside(self, *, ridge: float | Tensor, momentum: float | Tensor) -> None:
        """Do the check of `SGDSettings.check_beside` for the parameters that move.

        Args:
            ridge, momentum: as in that method.
        """
        one = self.plain.settings if self.plain.layers is None else self.plain.layers
        one.check_beside(ridge=ridge, momentum=momentum)

    def prepared(self, field: VectorField) -> AdaGradNormField:
        """The field with v among its statistics.

        Args:
            field: the vector field.

        Raises:
            ValueError: if it does not know the mean square of its gradient, or does not have what
                the options need.
        """
        if isinstance(field, AdaGradNormField):
            field = field.base
        kind, known = type(field), VectorField
        if (
            kind.mean_square_gradient is known.mean_square_gradient
            and kind.gradient_length is known.gradient_length
        ):
            raise ValueError(
                f"expected torch.optim.SGD for {kind.__name__}, got AdaGradNorm: the squared "
                "gradients that it adds up are not known; define mean_square_gradient(u, trained)"
            )
        if isinstance(field, GradientField) and field.scale != 1:
            raise ValueError(
                "expected convention='torch' with AdaGradNorm, got weights that are scaled by "
                f"{field.scale:g}: its steps do not scale with the gradient"
            )
        return AdaGradNormField(self.plain.prepared(field), self.plain, self.initial)

    def rates(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector; see `OptimizerLimit.rates`."""
        assert isinstance(field, AdaGradNormField)
        return field.rates(u, step_size)

    def diffusion(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> Float[Tensor, "*batch k k"]:
        """The diffusion matrix; see `OptimizerLimit.diffusion`."""
        c = _checks.plain(step_size)
        return c * field.increment_covariance(u, c)

    def check_at_rest(self, what: str) -> NoReturn:
        """Raise ValueError: v grows forever; see `OptimizerLimit`."""
        raise ValueError(
            f"expected an optimizer whose state settles for {what}, got AdaGradNorm, whose b grows "
            "without end, so that parameters slow down and never rest: take torch.optim.SGD, or "
            "follow it by solve(...)"
        )

    def check_langevin(self) -> NoReturn:
        """Raise NotImplementedError: the noise of one path after the other takes too long."""
        raise NotImplementedError(
            "expected torch.optim.SGD for Langevin dynamics and laws, got AdaGradNorm: every path "
            "has a step size of its own, and noise that is computed for each by itself; take "
            "solve(..., band=True), or run the optimizer itself"
        )

    def at_finite_n(self) -> NoReturn:
        """Raise NotImplementedError: no chain is known that has b in it."""
        raise NotImplementedError(
            "no exact chain is known for AdaGradNorm, whose b is a part of the state: take "
            "solve(..., band=True), or run the optimizer itself"
        )

    def statistics(self, parameter: str, dim: int) -> SummaryStatistics:
        """The statistic v = (b/n)^2, which the recorder reads from the optimizer's state.

        Args:
            parameter: the name of a parameter that the optimizer holds.
            dim: n.
        """
        source = f"{parameter}.{KEY}"
        return SummaryStatistics({NAME: partial(_over, source, dim)}, parameter_dims={source: 0})

    def describe(self) -> dict[str, Any]:
        """The settings."""
        facts = self.plain.describe()
        for name in ("momentum", "dampening", "normalized"):
            facts.pop(name, None)
        return {"optimizer": AdaGradNorm.__name__, **facts, "initial": self.initial}


def _alone(optimizer: object) -> AdaGradNorm:
    """The one optimizer."""
    several = listed(optimizer)
    if len(several) > 1:
        names = " and ".join(type(one).__name__ for one in several)
        raise TypeError(
            f"expected all parameters in one AdaGradNorm, got {names}: what they do beside each "
            "other is not known here (recording works: tl.track)"
        )
    return several[0]


def _of_group(group: Mapping[str, Any], dim: int, batch_size: int) -> SGDSettings:
    return SGDSettings(
        float(group["lr"]) * dim, weight_decay=float(group["weight_decay"]), batch_size=batch_size,
        maximize=bool(group["maximize"]),
    )  # fmt: skip


def _over(source: str, dim: int, p: Mapping[str, Tensor]) -> Tensor:
    """b^2 over n^2."""
    return p[source] / dim**2


def is_adagrad_norm(optimizer: object) -> bool:
    """Whether `AdaGradNorm` is among the optimizers.

    Args:
        optimizer: one, or several in a list.

    Example:
        >>> import torch
        >>> is_adagrad_norm(AdaGradNorm([torch.zeros(2, requires_grad=True)], initial=2.0))
        True
    """
    # exactly this: what derives from it may do something else
    return any(type(one) is AdaGradNorm for one in listed(optimizer))

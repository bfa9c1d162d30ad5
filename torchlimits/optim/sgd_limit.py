"""`SGDLimit`, `NormalizedLimit`: the limits of torch.optim.SGD and of `NormalizedSGD`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.vector_field import VectorField
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_step import SGDStep

Factor = Tensor | float


@dataclass(frozen=True)
class SGDLimit(OptimizerLimit):
    r"""SGD with momentum, batches, weight decay, ascent, and settings for each parameter.

    A parameter moves q times as fast as by plain SGD (`SGDSettings`), up the loss or down, and
    decays by its own alpha; so a statistic has

    .. math:: drift = q\,(\pm f_{loss} - \alpha\, Du[x]), \quad corrector = c_\delta q^2 g / B.

    Args:
        settings: what SGD does or, with layers, what it does to their reference.
        layers: what it does to each parameter, where they differ.

    Example:
        >>> limit = SGDLimit(SGDSettings(step_size=1.0, momentum=0.5))
        >>> limit.step_size, limit.describe()["momentum"]
        (1.0, 0.5)
    """

    settings: SGDSettings
    layers: Layers | None = None

    @staticmethod
    def of(settings: SGDSettings, layers: Layers | None = None) -> SGDLimit:
        """The limit that goes with the settings: `NormalizedLimit` if they say so."""
        return (NormalizedLimit if settings.normalized else SGDLimit)(settings, layers)

    def at_finite_n(self) -> SGDLimit:
        """The same limit, if its steps can be taken one by one.

        Raises:
            ValueError: if the loss is not minimised by plain SGD, or c_delta is 0, so that there
                are no steps.
        """
        for settings in (self.settings, *(self.layers.settings.values() if self.layers else ())):
            if settings is not None:
                settings.check_plain("the reduced chain")
        if self.step_size == 0:
            raise ValueError(
                "expected step_size > 0, got 0: gradient flow is a limit and takes no steps"
            )
        # steps are drawn, and what is drawn has no gradient
        return SGDLimit.of(self.settings.plain(), self.layers and self.layers.plain())

    def step(self, dim: int, name: str | None = None) -> SGDStep | None:
        """How a parameter takes its steps at dimension n; None if it does not move.

        Args:
            dim: n.
            name: that of the parameter, where they differ; None stands for the reference.
        """
        settings = self.settings
        if self.layers is not None and name is not None:
            settings = self.layers.settings[name]
        if settings is None:
            return None
        settings = settings.plain()
        return SGDStep(settings, float(settings.step_size) / dim)

    @property
    def step_size(self) -> float | Tensor:
        """c_delta of the reference."""
        return self.settings.step_size

    @property
    def speed(self) -> float:
        """q, of the reference."""
        return float(_checks.plain(self.settings.drift_factor))

    def prepared(self, field: VectorField) -> VectorField:
        """The field, refused by `check` if it lacks what the settings need."""
        self.check(field)
        return field.for_ascent() if self._second_order_speed(field) < 0 else field

    def check(self, field: VectorField) -> None:
        """Refuse weight decay where `VectorField.decay` is not known, and layers likewise.

        Raises:
            ValueError: if the field lacks one of the two and the settings need it.
        """
        name = type(field).__name__
        ridges = (
            (self.settings.weight_decay,) if self.layers is None else [*self.layers.ridges.values()]
        )
        if any(ridges) and type(field).decay is VectorField.decay:
            raise ValueError(
                f"expected weight_decay 0 for {name}, got {_checks.plain(max(ridges)):g}: the "
                "field does not say how its statistics decay; define decay(u), p u for "
                "statistics of degree p"
            )
        if self.layers is not None and field.parameter_names is None:
            raise ValueError(
                f"expected one group of settings for all parameters of {name}, got groups that "
                "differ: the field does not say which parameter is behind which statistic"
            )
        if self.layers is not None:
            lacking = {*(field.parameter_names or ())} - {*self.layers.settings}
            if lacking:
                raise ValueError(
                    f"expected settings for each parameter behind the statistics of {name}, got "
                    f"none for {', '.join(sorted(lacking))}: None says that one does not move"
                )

    def rates(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: Factor
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector; see `OptimizerLimit.rates`."""
        drift, corrector = self._terms(field, u)
        speed, sign, ridge = self._factors(field, u)
        if isinstance(sign, Tensor) or sign != 1:
            drift = sign * drift
        if isinstance(ridge, Tensor) or ridge:
            drift = drift - ridge * field.decay(u)
        return speed * drift, step_size * speed**2 / self.settings.batch_size * corrector

    def diffusion(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: Factor
    ) -> Float[Tensor, "*batch k k"]:
        """The diffusion matrix; see `OptimizerLimit.diffusion`.

        Ascent reverses the first order of an increment and not the second: apart from the signs,
        that is the covariance at -c_delta.
        """
        c = step_size / self.settings.batch_size
        signed, second = self.signed_speed(field, u, step_size)
        covariance = self._covariance(field, u, second)
        return c * torch.outer(signed, signed) * covariance

    def signed_speed(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: Factor
    ) -> tuple[Float[Tensor, " k"], float]:
        """The factor of each statistic's increment, and the step size of the second order in it.

        Args:
            field, u, step_size: as in `diffusion`.
        """
        speed, sign, _ = self._factors(field, u)
        signed = torch.as_tensor(speed * sign, dtype=u.dtype, device=u.device).expand(u.shape[-1])
        c = step_size / self.settings.batch_size
        return signed, _checks.plain(c * self._second_order_speed(field))

    def _terms(self, field: VectorField, u: Tensor) -> tuple[Tensor, Tensor]:
        return field.terms(u)

    def _covariance(self, field: VectorField, u: Tensor, step_size: float) -> Tensor:
        return field.increment_covariance(u, step_size)

    def _factors(self, field: VectorField, u: Tensor) -> tuple[Factor, Factor, Factor]:
        """Speed, sign and alpha of the parameter behind each statistic."""
        if self.layers is None:
            return self.settings.drift_factor, self.settings.sign, self.settings.weight_decay
        blocks = [(name, len(list(same))) for name, same in groupby(field.parameter_names or ())]

        def filled(count: int, value: Factor) -> Tensor:
            if isinstance(value, Tensor):
                return value.to(u).expand(count)
            # filled on u's device: the host would wait for numbers copied from it
            return u.new_full((count,), value)

        def spread(of: Mapping[str, Factor]) -> Tensor:
            return torch.cat([filled(count, of[name]) for name, count in blocks])

        layers = self.layers
        return spread(layers.speeds), spread(layers.signs), spread(layers.ridges)

    def _second_order_speed(self, field: VectorField) -> Factor:
        name = field.quadratic_in
        if self.layers is None or name is None:
            return self.settings.drift_factor * self.settings.sign
        return self.layers.speeds[name] * self.layers.signs[name]

    def describe(self) -> dict[str, Any]:
        """The settings, and those of the layers."""
        layers = {} if self.layers is None else self.layers.describe()
        return {**self.settings.describe(), **layers}


@dataclass(frozen=True)
class NormalizedLimit(SGDLimit):
    r"""SGD on gradients of length :math:`\sqrt n` (`NormalizedSGD`).

    The length of a batch's gradient tends to `VectorField.gradient_length` over
    :math:`\sqrt B`, as it is all noise in high dimension. So the loss's part of the drift
    has the factor :math:`\eta = \sqrt B / length`, corrector and diffusion :math:`\eta^2`; the
    ridge, which comes after the scaling, none.
    """

    def check(self, field: VectorField) -> None:
        """Refuse fields whose gradients have no known length, after the checks of `SGDLimit.check`.

        Raises:
            ValueError: if `VectorField.gradient_length` is not known, or increments have a second
                order as large as the first.
        """
        super().check(field)
        known = type(field).gradient_length is not VectorField.gradient_length
        if not known or field.quadratic_in is not None:
            raise ValueError(
                f"expected torch.optim.SGD for {type(field).__name__}, got NormalizedSGD: the "
                "limit of its gradient's length is not known; define gradient_length(u)"
            )

    def _terms(self, field: VectorField, u: Tensor) -> tuple[Tensor, Tensor]:
        B = self.settings.batch_size
        return self.eta(field, u) * field.terms(u)[0], B * field.normalized_corrector(u)

    def _covariance(self, field: VectorField, u: Tensor, step_size: float) -> Tensor:
        return self.eta(field, u)[..., None] ** 2 * super()._covariance(field, u, step_size)

    def eta(self, field: VectorField, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch 1"]:
        """sqrt(n) over the length of a batch's gradient at u, shape ``(..., k)``."""
        return self.settings.batch_size**0.5 / field.gradient_length(u)[..., None]

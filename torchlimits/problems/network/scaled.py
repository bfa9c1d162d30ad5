"""`Scaled`: a linear or quadratic statistic times a number."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from torchlimits.statistics.quadratic import Gradient, Parameters, Quadratic


@dataclass(frozen=True, eq=False)
class Scaled(Quadratic):
    """A statistic that is linear or quadratic in one parameter, times a number.

    Args:
        statistic: the statistic.
        factor: the number.

    Example:
        >>> import torch
        >>> from torchlimits.statistics import gram
        >>> Scaled(gram("weight"), 0.5)({"weight": torch.tensor([[2.0]])})
        tensor([[2.]])
    """

    statistic: Quadratic
    factor: float

    @property
    def parameter(self) -> str:  # type: ignore[override]
        """The name of the parameter."""
        return self.statistic.parameter

    @property
    def degree(self) -> int:  # type: ignore[override]
        """1 or 2."""
        return self.statistic.degree

    def near(self, parameters: Parameters) -> Scaled:
        """Return a copy with its tensors on the parameter's device, as `Quadratic.near` does."""
        return replace(self, statistic=self.statistic.near(parameters))

    def __call__(self, parameters: Parameters) -> Tensor:
        """The statistic times the number."""
        return self.factor * self.statistic(parameters)

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The statistic's derivative times the number."""
        return self.factor * self.statistic.along(parameters, gradient)

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The statistic's changes times the number."""
        along, *rest = self.statistic.changes(parameters, gradient, centre)
        bend, kick = (None if x is None else self.factor * x for x in rest)
        return self.factor * along, bend, kick

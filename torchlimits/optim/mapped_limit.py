"""`MappedLimit`: the limit of SGD on mapped gradients: signs, clipped ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import GradientField
from torchlimits.contracts.vector_field import VectorField
from torchlimits.optim.gradient_map import ClipNorm, GradientMap
from torchlimits.optim.mapped_field import MappedField
from torchlimits.optim.sgd_limit import SGDLimit


@dataclass(frozen=True)
class MappedLimit(SGDLimit):
    """SGD whose gradients are mapped before its step; momentum and weight decay come after.

    Args:
        settings, layers: as in `SGDLimit`.
        map: what is done to a batch's gradient.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.

    Example:
        >>> from torchlimits.optim.gradient_map import Sign
        >>> from torchlimits.optim.sgd import SGDSettings
        >>> MappedLimit(SGDSettings(step_size=1.0), map=Sign()).describe()["gradient"]
        'sign'
    """

    map: GradientMap = field(kw_only=True)
    axes: Float[Tensor, "d J"] = field(
        kw_only=True, default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64)
    )

    def prepared(self, field: VectorField) -> VectorField:
        """The field of mapped gradients.

        Args:
            field: the vector field.

        Raises:
            ValueError: if it is not that of a network with a linear first layer.
        """
        if not isinstance(field, (GradientField, MappedField)):
            raise ValueError(
                f"expected plain gradients for {type(field).__name__}, got "
                f"{self.map.describe()}: their averages are known for networks "
                "(NetworkProblem, TeacherStudent)"
            )
        base = field.base if isinstance(field, MappedField) else field
        base.check_isotropic(str(self.map.describe()))
        self.check(base)
        self.check_scale(base.scale)
        if isinstance(field, MappedField):
            return field
        return MappedField(base, self.map, batch_size=self.settings.batch_size, axes=self.axes)

    def check_scale(self, scale: float) -> None:
        """Raise ValueError if statistics are those of scaled weights.

        Args:
            scale: m and R are those of W / scale.
        """
        if scale != 1:
            raise ValueError(
                f"expected convention='torch' with {self.map.describe()}, got weights that are "
                f"scaled by {scale:g}: mapped steps do not scale with the gradient"
            )

    def at_finite_n(self) -> MappedLimit:
        """The same limit, if its steps stay in the span of weights and batch.

        Raises:
            NotImplementedError: if entries of the gradient are mapped one by one.
            ValueError: as `SGDLimit.at_finite_n`.
        """
        if not isinstance(self.map, ClipNorm):
            raise NotImplementedError(
                f"no exact chain is known for {self.map.describe()}: a function of each entry of a "
                "gradient leaves the span of weights and batch, and reads all entries, of which "
                "statistics are not enough; take dynamics(...).solve(..., band=True), or run the "
                "optimizer itself"
            )
        plain = super().at_finite_n()
        return replace(self, settings=plain.settings, layers=plain.layers)

    def describe(self) -> dict[str, object]:
        """The settings, and the map."""
        return {**super().describe(), **self.map.describe()}

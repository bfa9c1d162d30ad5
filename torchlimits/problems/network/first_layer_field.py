"""`FirstLayerField`: drift and corrector of networks with a linear first layer, from averages."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import GradientField, Parts
from torchlimits.problems.network.geometry import check_gram
from torchlimits.problems.network.layout import Layout


class FirstLayerField(GradientField):
    """The statistics (theta, b, m, R) of a network with a linear first layer, for any averages.

    Subclasses define `averages`: by sums over nodes, closed forms or rules of their own.

    Args:
        layout: the layout of the statistics.
        snr: lambda.
        dim: N.
    """

    def __init__(self, layout: Layout, *, snr: float | Tensor, dim: int) -> None:
        super().__init__(layout.names, dim)
        self.layout, self.snr = layout, snr
        self.parameter_names, self.quadratic_in = layout.parameter_names, layout.weight
        self.weight, self.bias, self.scale = layout.weight, layout.bias, layout.scale
        self.head = layout.parameter_names[: layout.size]
        self.head_shapes, self.width = layout.head, layout.width

    def parts(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """The statistics as theta, b, m and R; see `Layout.split`."""
        return self.layout.split(u)

    def of_parts(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Float[Tensor, "*batch k"]:
        """The inverse of `parts`."""
        return self.layout.join(theta, b, m, R)

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g; see `VectorField.terms`."""
        theta, bias, signal, across, gram = self.averages(u)
        drift = self.layout.join(-theta, -bias, -signal, -across - across.mT)
        still = [torch.zeros_like(x) for x in (theta, bias, signal)]
        kick = self.layout.join(still[0], still[1], still[2], gram / self.snr)
        return drift, kick

    def moves(
        self, theta: Tensor, gradient: Tensor, w: Tensor, kick: Tensor | None, *, bias: bool = True
    ) -> Float[Tensor, "*batch k"]:
        """The change of u for given gradients by theta and h, along w = (x_parallel, P)."""
        d = self.layout.directions
        dm = gradient[..., :, None] * w[..., None, :d]
        dR = gradient[..., :, None] * w[..., None, d:]
        dR = dR + dR.mT
        db = gradient if bias else torch.zeros_like(gradient)
        return self.layout.join(theta, db, dm, dR if kick is None else dR + kick)

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """theta, b, m and 2 R."""
        theta, b, m, R = self.layout.split(u)
        return self.layout.join(theta, b, m, 2 * R)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless R is positive semidefinite."""
        check_gram(self.layout.split(u0)[3])

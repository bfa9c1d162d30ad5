"""`SpikeEstimate`: the estimate x of a spike v, and its statistics.

Its overlap, and the squared length across v, are `Overlaps` and `SquaredLengths` for a vector in
place of a matrix. (Those classes would form products of matrices, which are rounded in another
order.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from torchlimits._dir import OwnNames
from torchlimits.statistics.quadratic import Gradient, Parameters, Quadratic, dense
from torchlimits.statistics.summary import SummaryStatistics


class SpikeEstimate(OwnNames, nn.Module):
    """The estimate x of the spike: one parameter ``x``, shape ``(*replicas, n)``.

    Its output is x itself, whatever the input: the data of this problem are the tensors that x is
    compared with in `SpikedTensor.loss`.
    """

    def __init__(self, x: Float[Tensor, "*replicas n"]) -> None:
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, features: Tensor | None = None) -> Float[Tensor, "*replicas n"]:
        """x."""
        return self.x


def spiked_statistics(v: Float[Tensor, " n"]) -> SummaryStatistics:
    """The statistics (m, r2) of a `SpikeEstimate` x, for a unit vector v."""
    return SummaryStatistics({"m": Overlap(v), "r2": SquaredRadius(v)}, parameter_dims={"x": 1})


@dataclass(frozen=True, eq=False)
class AboutSpike(Quadratic):
    """A statistic of x and a unit vector v."""

    v: Float[Tensor, " n"]
    parameter = "x"

    def near(self, parameters: Parameters) -> AboutSpike:
        """The same statistics with v on the device, and in the type, of x."""
        return replace(self, v=self.v.to(parameters["x"]))


class Overlap(AboutSpike):
    """m = <x, v>."""

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch"]:
        """m."""
        x = parameters["x"]
        return x @ self.v.to(x)

    def along(self, parameters: Parameters, gradient: Gradient) -> Float[Tensor, " B"]:
        """<g, v>."""
        g = dense(gradient)
        return g @ self.v.to(g)


class SquaredRadius(AboutSpike):
    """r2 = |x_perp|^2, x_perp = x - m v: |x|^2 - m^2 would lose all digits where it is small."""

    degree = 2

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch"]:
        """r2."""
        return self._across(parameters["x"]).square().sum(-1)

    def along(self, parameters: Parameters, gradient: Gradient) -> Float[Tensor, " B"]:
        """2 <g_perp, x_perp>."""
        return 2 * self._across(dense(gradient)) @ self._across(parameters["x"])

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Half of D^2 u along h is |h_perp|^2."""
        g = dense(gradient)
        kick, bend = (self._across(h).square().sum(-1) for h in (g, g - centre))
        return self.along(parameters, g), bend, kick

    def _across(self, x: Tensor) -> Float[Tensor, "*batch n"]:
        v = self.v.to(x)
        return x - (x @ v)[..., None] * v

"""`SpikeEstimate`: the network of spiked matrix and tensor PCA, which is the estimate itself."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class SpikeEstimate(nn.Module):
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

"""`MixtureField`: what the fields of two-layer networks on mixtures share, at any snr."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.mixture.layout import mixture_layout
from torchlimits.problems.network.first_layer_field import FirstLayerField


class MixtureField(FirstLayerField):
    """Statistics of a two-layer network on a Gaussian mixture, at finite and infinite snr.

    u is ``(..., K + K d + K (K + 1)/2)``: v, then m by rows, then R by rows with i <= j.

    Args:
        coordinates: the means in the orthonormal directions, shape ``(A, d)``.
        labels: y_a in {0, 1}, shape ``(A,)``.
        width, snr, dim: K, lambda, N.
        weights: the probabilities of the components, shape ``(A,)``; None if all are the same.
    """

    def __init__(
        self,
        coordinates: Float[Tensor, "A d"],
        labels: Float[Tensor, " A"],
        *,
        width: int,
        snr: float | Tensor,
        dim: int,
        weights: Float[Tensor, " A"] | None = None,
    ) -> None:
        super().__init__(mixture_layout(width, coordinates.shape[1]), snr=snr, dim=dim)
        self.width = width
        self.register_buffer("coordinates", coordinates)
        self.register_buffer("labels", labels)
        self.register_buffer("weights", weights)
        self.coordinates: Tensor
        self.labels: Tensor
        self.weights: Tensor | None

    def split(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"], Float[Tensor, "*batch K K"]]:
        """u as v, m and the full symmetric R."""
        v, _, m, R = self.layout.split(u)
        return v, m, R

    def join(
        self,
        v: Float[Tensor, "*batch K"],
        m: Float[Tensor, "*batch K d"],
        R: Float[Tensor, "*batch K K"],
    ) -> Float[Tensor, "*batch k"]:
        """The inverse of `split`."""
        return self.layout.join(v, v, m, R)

    def mean(self, values: Float[Tensor, "*batch"], dim: int) -> Float[Tensor, "*rest"]:
        """The average over the mixture.

        Args:
            values: one for each component.
            dim: the dimension of the components, counted from the last one, negative.
        """
        if self.weights is None:
            return values.mean(dim)
        weights = self.weights.to(values)
        return (values * weights.reshape(-1, *(1,) * (-dim - 1))).sum(dim)

    @abstractmethod
    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """

    def along_means(self, m: Float[Tensor, "*batch K d"]) -> Float[Tensor, "*batch K A"]:
        r"""The overlaps with the directions of the means, :math:`m_i \cdot c_a / |c_a|`."""
        return m @ self.unit_means(m).mT

    def unit_means(self, like: Tensor) -> Float[Tensor, "A d"]:
        """The directions of the means, on the device and in the dtype of another tensor."""
        c = self.coordinates.to(like)
        # a mean at 0 has no direction: nothing is along it
        return c / c.norm(dim=-1, keepdim=True).clamp_min(1e-30)

    def of_neurons(self, width: int) -> MixtureField:
        """The field of another number of neurons.

        Args:
            width: K.
        """
        return type(self)(
            self.coordinates, self.labels, width=width, snr=self.snr, dim=self.dim,
            weights=self.weights,
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Width and snr, and the weights if they differ."""
        facts = {"width": self.width, "snr": _checks.plain(self.snr)}
        return facts if self.weights is None else {**facts, "weights": self.weights.tolist()}


def squared_lengths(
    m: Float[Tensor, "*batch K d"], R: Float[Tensor, "*batch K K"]
) -> Float[Tensor, "*batch K"]:
    r""":math:`\|W_i\|^2 = |m_i|^2 + R_{ii}`."""
    return m.square().sum(-1) + R.diagonal(dim1=-2, dim2=-1)

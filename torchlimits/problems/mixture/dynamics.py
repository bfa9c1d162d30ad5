"""`MixtureDynamics`: effective dynamics of the two-layer network on a Gaussian mixture."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.mixture.field import MixtureField, squared_lengths
from torchlimits.problems.mixture.relu_field import ReluField
from torchlimits.problems.mixture.small_noise_field import SmallNoiseField


class MixtureDynamics(EffectiveDynamics):
    r"""Effective dynamics of the statistics (v, m, R), see `ReluField` and `SmallNoiseField`.

    u is ``(..., K + K d + K (K + 1)/2)``: v, then m by rows, then R by rows with i <= j.

    Args:
        coordinates: the means in the orthonormal directions, shape ``(A, d)``.
        labels: y_a in {0, 1}, shape ``(A,)``.
        width, snr, dim: K, lambda, N; at snr = inf these are the small-noise dynamics.
        settings: what the optimizer does; its weight decay is alpha.
        layers: what it does to each layer, where they differ; ``settings`` is their reference.
        schedule: c_delta(t), of the reference.
        weights: the probabilities of the components, shape ``(A,)``; None: all the same.
        level: accuracy of the Gaussian expectations at a finite snr, see `ReluField`.
    """

    field: MixtureField
    limit: SGDLimit

    def __init__(
        self,
        coordinates: Float[Tensor, "A d"],
        labels: Float[Tensor, " A"],
        *,
        width: int,
        snr: float,
        dim: int,
        settings: SGDSettings,
        layers: Layers | None = None,
        schedule: Schedule | None = None,
        weights: Float[Tensor, " A"] | None = None,
        level: int = 0,
    ) -> None:
        place: dict[str, Any] = {"width": width, "snr": snr, "dim": dim, "weights": weights}
        if snr == math.inf:
            field: MixtureField = SmallNoiseField(coordinates, labels, **place)
        else:
            field = ReluField(coordinates, labels, level=level, **place)
        super().__init__(field, SGDLimit.of(settings, layers), schedule=schedule)

    @property
    def width(self) -> int:
        """K."""
        return self.field.width

    @property
    def coordinates(self) -> Float[Tensor, "A d"]:
        """The means in the orthonormal directions."""
        return self.field.coordinates

    @property
    def labels(self) -> Float[Tensor, " A"]:
        """The labels of the means."""
        return self.field.labels

    @property
    def settings(self) -> SGDSettings:
        """What the optimizer does; with layers, to their reference."""
        return self.limit.settings

    @property
    def layers(self) -> Layers | None:
        """What the optimizer does to each layer, where they differ."""
        return self.limit.layers

    def split(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"], Float[Tensor, "*batch K K"]]:
        """u as v, m and the full symmetric R.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.field.split(u)

    def join(
        self,
        v: Float[Tensor, "*batch K"],
        m: Float[Tensor, "*batch K d"],
        R: Float[Tensor, "*batch K K"],
    ) -> Float[Tensor, "*batch k"]:
        """The inverse of `split`.

        Args:
            v, m, R: as `split` returns them.
        """
        return self.field.join(v, m, R)

    def classes(
        self, u: Float[Tensor, "*batch k"], cosine: float = 0.5**0.5
    ) -> Int[Tensor, "*batch K"]:
        r"""The mean that each neuron has turned to, shape ``(..., K)``; -1: to none.

        The number a of the mean with :math:`m_i \cdot c_a / |c_a| > cosine\, \|W_i\|`, where
        :math:`\|W_i\|^2 = |m_i|^2 + R_{ii}`: by default within 45 degrees.

        Args:
            u: statistics, shape ``(..., k)``.
            cosine: of the largest angle.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.classes(torch.tensor([0.0, 0.0, 2.0, -2.0, 0.1, 0.0, 9.0]))
            tensor([ 0, -1])
        """
        overlap, nearest = self.field.along_means(self.split(self.checked(u))[1]).max(-1)
        return torch.where(overlap > cosine * self.lengths(u), nearest, -1)

    def lengths(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch K"]:
        r"""Of the neurons, :math:`\|W_i\| = (|m_i|^2 + R_{ii})^{1/2}`, shape ``(..., K)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.lengths(torch.tensor([0.0, 0.0, 2.0, -4.0, 0.0, 0.0, 9.0]))
            tensor([2., 5.])
        """
        _, m, R = self.split(self.checked(u))
        return squared_lengths(m, R).sqrt()

    def check_plain(self, what: str) -> None:
        """ValueError unless both layers are minimised with the same settings.

        Args:
            what: what needs that.
        """
        self.settings.check_plain(what)
        if self.layers is not None:
            raise ValueError(
                f"expected one group of settings for both layers for {what}, got layers that "
                "differ: their limit is in problem.dynamics(optimizer)"
            )

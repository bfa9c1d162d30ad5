"""`MixtureDynamics`: effective dynamics of the two-layer network on a Gaussian mixture."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.mixture.chain import MixtureChain
from torchlimits.problems.mixture.field import MixtureField, squared_lengths
from torchlimits.problems.network.next_order import NextOrder


class MixtureDynamics(EffectiveDynamics):
    r"""Effective dynamics of the statistics (v, m, R), see `ReluField` and `SmallNoiseField`.

    u is ``(..., K + K d + K (K + 1)/2)``: v, then m by rows, then R by rows with i <= j.

    Args:
        field: a `ReluField`, or a `SmallNoiseField` at snr = inf.
        optimizer: an `SGDLimit`; other arguments are as in `EffectiveDynamics`.
    """

    field: MixtureField
    limit: SGDLimit

    @property
    def width(self) -> int:
        """K."""
        return self.field.width

    @property
    def coordinates(self) -> Float[Tensor, "A d"]:
        """The coordinates of the means in the orthonormal directions."""
        return self.field.coordinates

    @property
    def labels(self) -> Float[Tensor, " A"]:
        """The labels of the means."""
        return self.field.labels

    @property
    def settings(self) -> SGDSettings:
        """What the optimizer does; with layers, what it does to their reference."""
        return self.limit.settings

    @property
    def layers(self) -> Layers | None:
        """What the optimizer does to each layer, where they differ."""
        return self.limit.layers

    def reduced_chain(self) -> MixtureChain:
        """The exact chain of the same problem and optimizer."""
        return MixtureChain(self.field, self.limit.at_finite_n(), self.schedule)

    def next_order(self) -> NextOrder:
        """The same dynamics with the buffer of momentum at finite N.

        Raises:
            TypeError, ValueError: as `NextOrder`, which says of what it is known.
        """
        return NextOrder(self)

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

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.risk(torch.zeros(7))  # log 2: the logit is 0
            tensor(0.6931)
        """
        return self.field.risk(self.checked(u))

    def classes(
        self, u: Float[Tensor, "*batch k"], cosine: float = 0.5**0.5
    ) -> Int[Tensor, "*batch K"]:
        r"""The mean that each neuron has turned to, shape ``(..., K)``; -1 stands for none.

        It is the number a of the mean with :math:`m_i \cdot c_a / |c_a| > cosine\, \|W_i\|`, where
        :math:`\|W_i\|^2 = |m_i|^2 + R_{ii}`: by default within 45 degrees.

        Args:
            u: statistics, shape ``(..., k)``.
            cosine: the cosine of the largest angle.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.classes(torch.tensor([0.0, 0.0, 2.0, -2.0, 0.1, 0.0, 9.0]))
            tensor([ 0, -1])
        """
        overlap, nearest = self.field.along_means(self.split(self.checked(u))[1]).max(-1)
        return torch.where(overlap > cosine * self.lengths(u), nearest, -1)

    def lengths(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch K"]:
        r"""Lengths of the neurons, :math:`\|W_i\| = (|m_i|^2 + R_{ii})^{1/2}`, shape ``(..., K)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.

        Example:
            >>> import torch, torchlimits as tl
            >>> dynamics = tl.GaussianMixture.binary(dim=100, snr=10.0).dynamics(step_size=1.0)
            >>> dynamics.lengths(torch.tensor([0.0, 0.0, 2.0, -4.0, 0.0, 0.0, 9.0]))
            tensor([2., 5.])
        """
        _, m, R = self.split(self.checked(u))
        return squared_lengths(m, R).sqrt()

"""`BatchAverages`: averages of the gradient of a batch, as the optimizer gets it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks, _linalg
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.optim.gradient_map import GradientMap
from torchlimits.optim.mapped_batches import MappedBatches

#: steps of central differences where terms are smooth, and where nodes cross kinks
_DIFFERENCE, _DIFFERENCE_AT_KINKS = 1e-4, 2e-2
#: the error of averages over batches of nodes
_ERROR = 1e-3


class BatchMeans(NamedTuple):
    """Averages over batches of their gradients, weight decay left out.

    Attributes:
        theta, bias: their means, ``(..., P)`` and ``(..., K)``.
        signal: the mean of W's along the directions, ``(..., K, d)``.
        across: that of W's along W's own rows, ``(..., K, K)``.
        pair: the covariance of W's entries over coordinates, ``(..., K, K)``; for plain gradients
            (sigma^2/B) E[g g^T].
    """

    theta: Float[Tensor, "*batch P"]
    bias: Float[Tensor, "*batch K"]
    signal: Float[Tensor, "*batch K d"]
    across: Float[Tensor, "*batch K K"]
    pair: Float[Tensor, "*batch K K"]


class BatchVariances(NamedTuple):
    """Variances, over batches, of gradients' entries; those of rows of W are in the pairs.

    Attributes:
        theta: ``(..., P)``.
        bias: ``(..., K)``.
        axes: those of W at coordinates that are axes, ``(..., K, J)``.
    """

    theta: Float[Tensor, "*batch P"]
    bias: Float[Tensor, "*batch K"]
    axes: Float[Tensor, "*batch K J"]


class Draws(NamedTuple):
    """T draws that stand for all: a batch's gradient is the mean of ``per_batch`` independent ones.

    Attributes:
        per_batch: B for draws of single samples, 1 for draws of whole batches.
        weight: their probabilities, ``(T,)``.
        theta: the gradients of the head, ``(T, P)``.
        bias: those of b, ``(T, K)``.
        along: those of W along the directions and along W's own rows, ``(T, K, d + K)``, given
            the samples' pre-activations and labels.
        pair: what they add to `BatchMeans.pair`, ``(T, K, K)``.
        others: what W's have beside, independent of all this: with each pair of rows ``(e, d + K)``
            and a covariance ``(K, K)``, as many normal vectors with that covariance as there are
            rows, each along its row.
    """

    per_batch: int
    weight: Float[Tensor, " T"]
    theta: Float[Tensor, "T P"]
    bias: Float[Tensor, "T K"]
    along: Float[Tensor, "T K w"]
    pair: Float[Tensor, "T K K"]
    others: list[tuple[Float[Tensor, "e w"], Float[Tensor, "K K"]]]


class BatchAverages(ABC):
    """Averages of the gradient of a batch that the optimizer gets, for a network's statistics.

    Attributes:
        base: the field of plain gradients.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.
    """

    base: GradientField
    axes: Float[Tensor, "d J"]

    @property
    def error(self) -> float:
        """The absolute error of the averages where u is of order 1."""
        return self.base.error

    @property
    def tolerances(self) -> tuple[float, float]:
        """The relative and the absolute tolerance of solutions, no finer than the error."""
        return self.base.rtol, self.base.atol

    @property
    def difference(self) -> float:
        """The step of central differences that is right for derivatives of the averages."""
        return _DIFFERENCE if self.base.smooth else _DIFFERENCE_AT_KINKS

    def __call__(self, u: Float[Tensor, "*batch k"]) -> tuple[BatchMeans, BatchVariances]:
        """The averages at each point, computed once where points coincide.

        Differences by an optimizer's own state leave the network where it is.

        Args:
            u: statistics of the base, shape ``(..., k)``, float64.
        """
        flat = u.reshape(-1, u.shape[-1])
        points, place = flat, torch.arange(len(flat), device=flat.device)
        if len(flat) > 1:
            points, place = flat.unique(dim=0, return_inverse=True)
        means, variances = self.at_points(points)

        def spread(x: Tensor) -> Tensor:
            return x[place].reshape(*u.shape[:-1], *x.shape[1:])

        return BatchMeans(*map(spread, means)), BatchVariances(*map(spread, variances))

    @abstractmethod
    def at_points(self, points: Float[Tensor, "S k"]) -> tuple[BatchMeans, BatchVariances]:
        """The averages at points that differ.

        Args:
            points: statistics of the base, shape ``(S, k)``, float64.
        """

    @abstractmethod
    def draws(self, u: Float[Tensor, " k"]) -> Draws:
        """Gradients that stand for all, for the noise of one step.

        Args:
            u: statistics of the base, shape ``(k,)``, float64.
        """

    @abstractmethod
    def sequence(self, u: Float[Tensor, " k"]) -> Draws:
        """Gradients of whole batches, all of one probability, as they come in a run.

        Args:
            u: statistics of the base, shape ``(k,)``, float64.
        """


@dataclass(frozen=True, eq=False)
class PlainAverages(BatchAverages):
    """Averages of plain gradients: the mean of one sample's, and a part 1/B of its covariance.

    Args:
        base: the field of plain gradients.
        batch_size: B.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.
    """

    base: GradientField
    batch_size: int
    axes: Float[Tensor, "d J"]

    def at_points(self, points: Float[Tensor, "S k"]) -> tuple[BatchMeans, BatchVariances]:
        """The averages at points that differ; see `BatchAverages.at_points`."""
        theta, bias, signal, across, gram = self.base.averages(points)
        squares = self.base.squares(points, self.axes)

        def variance(square: Tensor, mean: Tensor) -> Tensor:
            return (square - mean.square()).clamp_min(0) / self.batch_size

        return BatchMeans(theta, bias, signal, across, self._share * gram), BatchVariances(
            variance(squares.theta, theta),
            variance(gram.diagonal(dim1=-2, dim2=-1), bias),
            variance(squares.axes, signal @ self.axes.to(signal)),
        )

    @property
    def _share(self) -> float:
        return 1 / (_checks.plain(self.base.snr) * self.batch_size)

    def draws(self, u: Float[Tensor, " k"]) -> Draws:
        """Gradients of samples; see `BatchAverages.draws`."""
        weight, theta, g, w, rest = self.base.samples(u)
        gram = g[:, :, None] * g[:, None, :]
        along = g[:, :, None] * w[:, None, :]
        others = [(rest, g.mT @ (weight[:, None] * g))]
        return Draws(self.batch_size, weight, theta, g, along, self._share * gram, others)

    def sequence(self, u: Float[Tensor, " k"]) -> Draws:
        """Gradients of batches as they come in a run; see `BatchAverages.sequence`."""
        weight, theta, bias, along, gram, rest = self.base.batches(u, self.batch_size, equal=True)
        others = [(rest, torch.einsum("t,tkl->kl", weight, gram))]
        pair = gram / _checks.plain(self.base.snr)
        return Draws(1, weight, theta, bias, along, pair, others)


class MappedAverages(BatchAverages):
    r"""Averages of gradients that are mapped by f, from whole batches.

    With a_k and C_kl of each batch (`MappedGradient`), along directions and rows they are
    :math:`a_k \frac1B \sum_b g_{bk} w_b^T`, and E f of that entry at coordinates that are axes;
    C is their covariance. :math:`f(G) - a G` is uncorrelated with x, and its covariance
    :math:`\Xi = C - a S a` is noise along all coordinates alike.

    Source: Stein's lemma over coordinates.

    Args:
        batches: the gradients of batches, mapped.
    """

    batches: MappedBatches

    def __init__(self, batches: MappedBatches) -> None:
        self.batches, self.base, self.axes = batches, batches.base, batches.axes

    @property
    def error(self) -> float:
        """The error of averages over batches, which do not converge faster than their number."""
        return max(self.base.error, _ERROR)

    @property
    def tolerances(self) -> tuple[float, float]:
        """The tolerances of solutions, which go with that error."""
        return max(self.base.rtol, _ERROR), max(self.base.atol, _ERROR / 10)

    @property
    def difference(self) -> float:
        """A long step, as maps jump at nodes, which shorter ones would see one by one."""
        return _DIFFERENCE_AT_KINKS

    def at_points(self, points: Float[Tensor, "S k"]) -> tuple[BatchMeans, BatchVariances]:
        """The averages at points that differ; see `BatchAverages.at_points`."""
        each = [self._of_draws(self.draws(point)) for point in points] or [self._nothing(points)]
        means, variances = (zip(*parts, strict=True) for parts in zip(*each, strict=True))
        count = len(points)
        return (
            BatchMeans(*(torch.stack(x)[:count] for x in means)),
            BatchVariances(*(torch.stack(x)[:count] for x in variances)),
        )

    def _of_draws(self, draws: Draws) -> tuple[BatchMeans, BatchVariances]:
        axes, weight = self.axes.to(draws.along), draws.weight
        d = len(axes)

        def mean(x: Tensor) -> Tensor:
            return torch.einsum("t,t...->...", weight, x)

        def variance(x: Tensor) -> Tensor:
            return mean((x - mean(x)).square())

        theta, bias, along, pair = map(mean, draws[2:6])
        return BatchMeans(theta, bias, along[:, :d], along[:, d:], pair), BatchVariances(
            variance(draws.theta), variance(draws.bias), variance(draws.along[..., :d] @ axes)
        )

    def _nothing(self, points: Float[Tensor, "0 k"]) -> tuple[BatchMeans, BatchVariances]:
        """Zeros of the shapes that the averages at one point have."""
        theta, b, m, R = (x.new_zeros(x.shape[1:]) for x in self.base.parts(points))
        return BatchMeans(theta, b, m, R, R), BatchVariances(theta, b, m @ self.axes.to(m))

    def draws(self, u: Float[Tensor, " k"]) -> Draws:
        """Mapped gradients of batches; see `BatchAverages.draws`."""
        return self._mapped(u, equal=False)

    def sequence(self, u: Float[Tensor, " k"]) -> Draws:
        """Mapped gradients as they come in a run; see `BatchAverages.sequence`."""
        return self._mapped(u, equal=True)

    def _mapped(self, u: Float[Tensor, " k"], equal: bool) -> Draws:
        batches, image = self.batches(u, equal=equal)
        axes, weight, slope = self.axes.to(u), batches.weight, image.slope
        d = len(axes)
        along = slope[..., None] * batches.along
        signal = along[..., :d]
        along[..., :d] = signal + (image.axes - signal @ axes) @ axes.mT
        # what is independent of pre-activations: of w itself, and f(G) - a G
        scaled = slope[..., :, None] * batches.gram * slope[..., None, :]
        variance = 1 / _checks.plain(self.base.snr)
        gram, Xi = (
            torch.einsum("t,tkl->kl", weight, x) for x in (scaled, image.pair - variance * scaled)
        )
        spread = torch.eye(d, dtype=u.dtype, device=u.device) - axes @ axes.mT
        root = torch.block_diag(spread, _linalg.psd_sqrt(self.base.parts(u)[3]))
        others = [(batches.rest, gram), (root, Xi)]
        return Draws(1, weight, image.theta, image.bias, along, image.pair, others)


def averages_of(
    base: GradientField, map: GradientMap | None, batch_size: int, axes: Float[Tensor, "d J"]
) -> BatchAverages:
    """The averages of plain gradients, or of mapped ones if there is a map.

    Args:
        base, batch_size, axes: as in `PlainAverages`.
        map: what is done to a batch's gradient; None if nothing.
    """
    if map is None:
        return PlainAverages(base, batch_size, axes)
    return MappedAverages(MappedBatches(base, map, batch_size, axes))

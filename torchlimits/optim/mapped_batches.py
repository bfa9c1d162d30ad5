"""`MappedBatches`: the gradients of batches that stand for all, and what a map makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import Batches, GradientField
from torchlimits.optim.gradient_map import BatchGradient, GradientMap, MappedGradient
from torchlimits.optim.whitening import whitening


@dataclass(frozen=True, eq=False)
class MappedBatches:
    """The gradients of batches, mapped.

    Args:
        base: the field of plain gradients.
        map: f.
        batch_size: B.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.
    """

    base: GradientField
    map: GradientMap
    batch_size: int
    axes: Float[Tensor, "d J"]

    def __call__(
        self, u: Float[Tensor, " k"], *, equal: bool = False
    ) -> tuple[Batches, MappedGradient]:
        """Batches, and the map of their gradients.

        Args:
            u: statistics of the base, shape ``(k,)``, float64.
            equal: as in `GradientField.batches`.
        """
        batches = self.base.batches(u, self.batch_size, equal=equal)
        d, axes = len(self.axes), self.axes.to(u)
        S = batches.gram / _checks.plain(self.base.snr)
        square = self._square(u, batches, S)
        at_axes = batches.along[..., :d] @ axes
        return batches, self.map(BatchGradient(batches.theta, batches.bias, at_axes, S, square))

    def _square(self, u: Tensor, batches: Batches, S: Tensor) -> Float[Tensor, " T"]:
        """|G|^2 / N at finite N, of the parameters that count."""
        base = self.base
        theta = torch.tensor([self.map.counts(name) for name in base.head], dtype=torch.bool)
        square = batches.theta[:, theta.to(u.device)].square().sum(-1) / base.dim
        if self.map.counts(base.bias):
            square = square + batches.bias.square().sum(-1) / base.dim
        return square + self._of_rows(u, batches, S) if self.map.counts(base.weight) else square

    def _of_rows(self, u: Tensor, batches: Batches, S: Tensor) -> Float[Tensor, " T"]:
        """W's part of |G|^2 / N: N - K - d coordinates are normal, the others are known."""
        d, K, N = len(self.axes), self.base.width, self.base.dim
        trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
        R = self.base.parts(u)[3]
        whiten = whitening(R, d)
        known = (batches.along @ whiten).square().sum((-2, -1))
        unknown = (batches.rest @ whiten).square().sum() * batches.gram.diagonal(
            dim1=-2, dim2=-1
        ).sum(-1)
        return trace * (N - K - d) / N + (known + unknown) / N

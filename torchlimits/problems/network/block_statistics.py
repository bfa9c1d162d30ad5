"""The statistics of a first layer in blocks of the covariance: overlaps and Gram matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.data.blocks import Blocks
from torchlimits.statistics.quadratic import (
    Gradient,
    OuterGradient,
    Parameters,
    Quadratic,
    dense,
)
from torchlimits.statistics.ready_made import Overlaps


@dataclass(frozen=True, eq=False)
class BlockOverlaps(Quadratic):
    """Overlaps <W_i, e_j> with the unit vectors of blocks as one row of entries, (..., K d).

    Args:
        overlaps: those of the vectors, ``(..., K, d)``.
        order: where each entry of the row is in the matrix.

    Example:
        >>> import torch
        >>> m = BlockOverlaps(Overlaps("weight", torch.eye(2)), torch.tensor([0, 2, 1, 3]))
        >>> m({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
        tensor([1., 3., 2., 4.])
    """

    overlaps: Overlaps
    order: Tensor

    @property
    def parameter(self) -> str:  # type: ignore[override]
        """The name of the weight."""
        return self.overlaps.parameter

    def near(self, parameters: Parameters) -> BlockOverlaps:
        """Return a copy with its tensors where the parameter is, as `Quadratic.near` does."""
        device = parameters[self.parameter].device
        return replace(self, overlaps=self.overlaps.near(parameters), order=self.order.to(device))

    def __call__(self, parameters: Parameters) -> Tensor:
        """m, in the order of the entries."""
        return self._row(self.overlaps(parameters))

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The gradient's overlaps."""
        return self._row(self.overlaps.along(parameters, gradient))

    def _row(self, matrix: Float[Tensor, "*batch K d"]) -> Float[Tensor, "*batch Kd"]:
        return matrix.flatten(-2)[..., self.order.to(matrix.device)]


@dataclass(frozen=True, eq=False)
class BlockGrams(Quadratic):
    r"""Gram matrices of the neurons in blocks, :math:`R_l = W A_l W^T - M A_l M^T`.

    M is the projection of W on the blocks' vectors, so that in eigenspaces R_l is the Gram matrix
    of the rest, and over groups of eigenvalues :math:`\sum_l \lambda_l R_l` is exact. One row of
    entries, those with i <= j of each block, ``(..., L K (K + 1)/2)``.

    Args:
        parameter: the name of the weight W, ``(..., K, N)``.
        blocks: the blocks, which say A_l.

    Example:
        >>> import torch, torchlimits as tl
        >>> two = Blocks.of(tl.Covariance.of([(4.0, 0.5), (1.0, 0.5)], 4), torch.eye(1, 4).double())
        >>> BlockGrams("weight", two)({"weight": torch.tensor([[1.0, 2.0, 3.0, 4.0]])})
        tensor([ 4., 25.])
    """

    parameter: str
    blocks: Blocks
    degree = 2

    def __call__(self, parameters: Parameters) -> Tensor:
        """R_l, upper triangles."""
        rows = self._divided(parameters[self.parameter])
        return self._products(rows, rows)

    def along(self, parameters: Parameters, gradient: Gradient) -> Tensor:
        """The change of R_l along g, symmetrised."""
        rows = self._divided(parameters[self.parameter])
        if isinstance(gradient, OuterGradient):
            a, x = gradient.left, self._divided(gradient.right)
            within = self._sums(_Divided(x.rest[:, None], x.along[:, None]), rows)  # (B, K, L)
            i, j = self._pairs(a.shape[1], a.device)
            each = a[:, i, None] * within[:, j] + a[:, j, None] * within[:, i]
            return each.mT.flatten(-2)
        g = self._divided(gradient)
        return self._products(g, rows) + self._products(rows, g)

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Half of D^2 u along h is R_l of h itself."""
        whole = dense(gradient)
        g, h = self._divided(whole), self._divided(whole - centre)
        return self.along(parameters, gradient), self._products(h, h), self._products(g, g)

    def _divided(self, rows: Float[Tensor, "*batch N"]) -> _Divided:
        e, covariance = self.blocks.directions.to(rows), self.blocks.covariance
        along = (rows @ e.mT) @ e
        return _Divided(covariance.coordinates(rows - along), covariance.coordinates(along))

    def _products(self, left: _Divided, right: _Divided) -> Float[Tensor, "*batch entries"]:
        i, j = self._pairs(left.rest.shape[-2], left.rest.device)
        left, right = left.rows(i), right.rows(j)
        return self._sums(left, right).mT.flatten(-2)

    def _sums(self, left: _Divided, right: _Divided) -> Float[Tensor, "*batch L"]:
        products = left.rest * right.rest
        if self.blocks.grouped:  # inside an eigenspace what follows is 0
            products = products + left.rest * right.along + left.along * right.rest
        return self.blocks.sums(products)

    def _pairs(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        i, j = torch.triu_indices(width, width, device=device)
        return i, j


class _Divided(NamedTuple):
    """Rows in the eigenbasis: their projection on the blocks' vectors, and the rest."""

    rest: Float[Tensor, "*batch N"]
    along: Float[Tensor, "*batch N"]

    def rows(self, which: Tensor) -> _Divided:
        return _Divided(self.rest[..., which, :], self.along[..., which, :])

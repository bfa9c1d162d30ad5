"""`BlockLayout`: the statistics of networks whose inputs have a covariance in blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _linalg
from torchlimits.problems.data.blocks import Blocks
from torchlimits.problems.network.block_statistics import BlockGrams, BlockOverlaps
from torchlimits.problems.network.layout import Layout, Parts
from torchlimits.statistics.ready_made import Overlaps
from torchlimits.statistics.summary import SummaryStatistics


@dataclass(frozen=True)
class BlockLayout(Layout):
    """The layout of u = (theta, b, m, R) with R of every block.

    ``m[l,i,j]`` is the overlap of neuron i with the part of direction j in block l, and
    ``R[l,i,j]``, i <= j, the Gram matrix of what is in block l orthogonal to these parts.

    Args:
        blocks: the blocks and their vectors, as many as ``directions``.

    Example:
        >>> import torch, torchlimits as tl
        >>> two = Blocks.of(tl.Covariance.of([(4.0, 0.5), (1.0, 0.5)], 4), torch.eye(1, 4).double())
        >>> layout = BlockLayout({}, width=1, directions=1, blocks=two)
        >>> layout.names
        ['m[0,0,0]', 'R[0,0,0]', 'R[1,0,0]']
        >>> layout.split(torch.tensor([1.0, 2.0, 3.0]))[3].shape
        torch.Size([2, 1, 1])
    """

    blocks: Blocks = field(kw_only=True)

    @property
    def stack(self) -> tuple[int, ...]:
        """(L,)."""
        return (len(self.blocks),)

    @property
    def typical(self) -> tuple[Tensor | float, Tensor | float]:
        """Sizes with which all blocks together give pre-activations noise of order 1."""
        return self.blocks.typical, self.blocks.fractions[:, None, None]

    @cached_property
    def _order(self) -> Int[Tensor, " Kd"]:
        """Where each entry of the row of overlaps is in the matrix, ``(K, d)``."""
        d, block, number = self.directions, self.blocks.block, self.blocks.number
        keys = [
            (int(block[j]), i, int(number[j]), i * d + j)
            for j in range(d)
            for i in range(self.width)
        ]
        return torch.tensor([key[-1] for key in sorted(keys)], dtype=torch.long, device="cpu")

    @cached_property
    def _place(self) -> Int[Tensor, " Kd"]:
        """Where each entry of the matrix is in the row."""
        return self._order.argsort()

    @property
    def overlap_indices(self) -> list[str]:
        """What stands between the brackets of each m."""
        d, block, number = self.directions, self.blocks.block, self.blocks.number
        places = ((int(place) // d, int(place) % d) for place in self._order)
        return [f"{int(block[j])},{i},{int(number[j])}" for i, j in places]

    @property
    def gram_indices(self) -> list[str]:
        """What stands between the brackets of each R."""
        K = self.width
        return [
            f"{block},{i},{j}"
            for block in range(len(self.blocks))
            for i in range(K)
            for j in range(i, K)
        ]

    @property
    def names(self) -> list[str]:
        """The names of the statistics, in the order of u."""
        return [
            *self._own_names,
            *(f"m[{index}]" for index in self.overlap_indices),
            *(f"R[{index}]" for index in self.gram_indices),
        ]

    def split(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """The statistics as theta, b, m ``(..., K, d)`` and R ``(..., L, K, K)``."""
        theta, b, row, upper = u.split(self._sizes, dim=-1)
        if not self.bias:
            b = u.new_zeros(*u.shape[:-1], self.width)
        m = row[..., self._place.to(u.device)]
        m = m.unflatten(-1, (self.width, self.directions))
        R = _linalg.unpacked(upper.unflatten(-1, (len(self.blocks), -1)), self.width)
        return theta, b, self.scale * m, self.scale**2 * R

    @cached_property
    def whole(self) -> Layout:  # type: ignore[override]
        """The layout of the statistics over all blocks."""
        return Layout(
            self.head, self.width, len(self.blocks.turn), weight=self.weight, bias=self.bias,
            scale=self.scale, called=self.called,
        )  # fmt: skip

    def over_all(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """theta, b, m along the given directions and R ``(..., K, K)`` over all blocks."""
        theta, b, own, R = self.split(u)
        m = own @ self.blocks.turn.to(own).mT
        return theta, b, m, R.sum(-3) + own @ own.mT - m @ m.mT

    def join(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Float[Tensor, "*batch k"]:
        """The inverse of `split`."""
        biases = [b] if self.bias else []
        row = m.flatten(-2)[..., self._order.to(m.device)] / self.scale
        upper = _linalg.packed(R).flatten(-2) / self.scale**2
        return torch.cat([theta, *biases, row, upper], dim=-1)

    def statistics(self, directions: Float[Tensor, "d N"]) -> SummaryStatistics:
        """The summary statistics of a module with these parameters.

        Args:
            directions: the blocks' own.
        """
        functions, dims = self._own_statistics()
        indices: dict[str, list[str]] = {"R": self.gram_indices}
        weight = self.weight
        if self.directions:
            functions["m"] = self._scaled(
                BlockOverlaps(Overlaps(weight, directions), self._order), 1
            )
            indices["m"] = self.overlap_indices
        functions["R"] = self._scaled(BlockGrams(weight, self.blocks), 2)
        dims[weight] = 2
        return SummaryStatistics(functions, parameter_dims=dims, indices=indices)

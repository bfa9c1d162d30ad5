"""`LinearLabels`: the best linear prediction of labels, as a function of a few coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: directions that are shorter than this part of the longest are in the span of the others
_SPANNED = 1e-10


@dataclass(frozen=True)
class LinearLabels:
    """Labels <w*, x - mean> + offset for a `torchlimits.NetworkProblem`; they can be pickled.

    Attributes:
        directions: orthonormal rows that span w* and the mean, ``(d, N)``.
        matrix: w* in these, ``(q, d)``.
        centre: the mean in these, ``(d,)``.
        offset: the mean of the labels, ``(q,)``.

    Example:
        >>> slopes, offset = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([1.0])
        >>> labels = LinearLabels.of(slopes, torch.zeros(1, 3), offset)
        >>> x = torch.tensor([[1.0, 1.0, 5.0]])
        >>> labels(x @ labels.directions.mT, torch.tensor([0]))
        tensor([[8.]])
    """

    directions: Float[Tensor, "d N"]
    matrix: Float[Tensor, "q d"]
    centre: Float[Tensor, " d"]
    offset: Float[Tensor, " q"]

    @classmethod
    def of(
        cls, slopes: Float[Tensor, "q N"], mean: Float[Tensor, "1 N"], offset: Float[Tensor, " q"]
    ) -> LinearLabels:
        """The labels of w* for inputs less their mean."""
        rows = torch.cat([slopes, mean])
        scaled = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        _, sizes, spanning = torch.linalg.svd(scaled, full_matrices=False)
        directions = spanning[sizes > _SPANNED * sizes[0]]
        return cls(directions, slopes @ directions.mT, directions @ mean[0], offset)

    def __call__(
        self, x_parallel: Float[Tensor, "n d"], component: Int[Tensor, " n"]
    ) -> Float[Tensor, "n q"]:
        """Labels of inputs with these coordinates along the directions, whatever the component."""
        del component
        deviation = x_parallel - self.centre.to(x_parallel)
        return deviation @ self.matrix.to(x_parallel).mT + self.offset.to(x_parallel)

"""`Levels`: the distinct eigenvalues of a covariance, and how many dimensions each has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits.problems.data.covariance import Covariance


@dataclass(frozen=True, eq=False)
class Levels:
    r"""The levels of :math:`\Lambda = \sum_l \lambda_l \Pi_l`, the projections with ranks N_l.

    Args:
        eigenvalues: the distinct lambda_l, shape ``(L,)``, float64.
        place: the level of each eigenvector, shape ``(N,)``.

    Example:
        >>> import torch
        >>> levels = Levels.of(Covariance.of([(4.0, 0.25), (1.0, 0.75)], dim=8))
        >>> levels.counts.tolist(), levels.fractions.tolist(), levels.dim
        ([2, 6], [0.25, 0.75], 8)
        >>> levels.sums(torch.ones(8))
        tensor([2., 6.])
        >>> levels.counts_at(100).tolist()
        [25, 75]
    """

    eigenvalues: Float[Tensor, " L"]
    place: Int[Tensor, " N"]

    @classmethod
    def of(cls, covariance: Covariance) -> Levels:
        """The levels of a covariance that all data share.

        Raises:
            ValueError: if components have eigenvalues of their own.
        """
        if covariance.components > 1:
            raise ValueError(
                "expected one covariance of all inputs, got eigenvalues of "
                f"{covariance.components} components: a linear model has no components; give the "
                "mean of their covariances"
            )
        values, place = covariance.levels
        return cls(values[:, 0], place)

    @property
    def dim(self) -> int:
        """N."""
        return len(self.place)

    @property
    def counts(self) -> Int[Tensor, " L"]:
        """N_l, the number of dimensions of each level."""
        return torch.bincount(self.place, minlength=len(self.eigenvalues))

    @property
    def fractions(self) -> Float[Tensor, " L"]:
        """f_l = N_l / N."""
        return self.counts.double() / self.dim

    def counts_at(self, dim: int) -> Int[Tensor, " L"]:
        """The numbers of dimensions at another N: nearest to f_l N, with the sum N."""
        ends = (self.fractions.cumsum(0) * dim).round().long()
        return ends.diff(prepend=ends.new_zeros(1))

    def sums(self, values: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch L"]:
        """The sum over the dimensions of each level.

        Args:
            values: one for each eigenvector, along the last dimension.
        """
        empty = values.new_zeros(*values.shape[:-1], len(self.eigenvalues))
        return empty.index_add(-1, self.place.to(values.device), values)

"""`Errors`: the squared error of a linear model in each level of the covariance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.linear.levels import Levels
from torchlimits.problems.linear.module import WEIGHT
from torchlimits.statistics.summary import SummaryStatistics


@dataclass(frozen=True, eq=False)
class Errors:
    r"""D_l = :math:`|\Pi_l (w - w^*)|^2` of the parameter ``first.weight``.

    Args:
        levels: the levels of the covariance.
        target: w*, shape ``(N,)``.
        basis: the eigenvectors as rows, ``(N, N)``; None for the axes.
    """

    levels: Levels
    target: Float[Tensor, " N"]
    basis: Float[Tensor, "N N"] | None

    def __call__(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "*batch L"]:
        """The D_l of weights of shape ``(*batch, 1, N)``."""
        weight = parameters[WEIGHT]
        error = weight[..., 0, :] - self.target.to(weight)
        if self.basis is not None:
            error = error @ self.basis.to(error).mT
        return self.levels.sums(error.square())

    def near(self, parameters: Mapping[str, Tensor]) -> Errors:
        """The same with all tensors on the device, and in the type, of the weight."""
        weight = parameters[WEIGHT]
        basis = None if self.basis is None else self.basis.to(weight)
        levels = replace(self.levels, place=self.levels.place.to(weight.device))
        return Errors(levels, self.target.to(weight), basis)


def errors(
    levels: Levels, target: Float[Tensor, " N"], basis: Float[Tensor, "N N"] | None
) -> SummaryStatistics:
    """The D_l as summary statistics; arguments as those of `Errors`.

    Example:
        >>> import torch
        >>> levels = Levels(torch.tensor([2.0, 1.0]), torch.tensor([0, 1, 1]))
        >>> statistics = errors(levels, torch.ones(3), None)
        >>> statistics({"first.weight": torch.zeros(1, 3)})
        tensor([1., 2.])
    """
    return SummaryStatistics({"D": Errors(levels, target, basis)}, parameter_dims={WEIGHT: 2})

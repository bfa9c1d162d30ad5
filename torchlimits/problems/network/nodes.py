"""`Nodes`: points and weights of Gaussian integrals, the same ones at every evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._threads import constant

#: up to this many dimensions a tensor rule of Gauss-Hermite has enough points on each axis
HERMITE_DIMS = 3
#: more points on an axis gain nothing
_MOST_ON_AN_AXIS = 64
#: gradients of nodes are divided by their weights
_SMALLEST = 1e-17


class Nodes(NamedTuple):
    """Points ``(n, dims)`` and weights ``(n,)``, float64, of integrals over standard normals."""

    points: Float[Tensor, "n dims"]
    weights: Float[Tensor, " n"]

    def to(self, like: Tensor) -> Nodes:
        """The same nodes on the device of a tensor.

        Args:
            like: a tensor on that device.
        """
        return Nodes(self.points.to(like.device), self.weights.to(like.device))


@constant
def gauss_hermite(dims: int, count: int) -> Nodes:
    """The tensor rule of Gauss and Hermite with at most ``count`` points, for smooth integrands.

    Args:
        dims: the number of normals.
        count: the most points in all.

    Example:
        >>> points, weights = gauss_hermite(2, 100)
        >>> points.shape, (weights @ points.square().prod(-1)).item()  # E[x^2 y^2] = 1
        (torch.Size([100, 2]), 1.0...)
    """
    order = min(_MOST_ON_AN_AXIS, int(count ** (1 / dims) + 1e-9)) if dims else 1
    line, weight = np.polynomial.hermite_e.hermegauss(max(1, order))
    axes = [torch.from_numpy(line)] * dims
    shares = [torch.from_numpy(weight / weight.sum())] * dims
    if not dims:
        cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        return Nodes(torch.zeros(1, 0, **cpu), torch.ones(1, **cpu))
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dims)
    weights = torch.stack(torch.meshgrid(*shares, indexing="ij"), -1).reshape(-1, dims).prod(-1)
    kept = weights > _SMALLEST
    return Nodes(points[kept], weights[kept] / weights[kept].sum())


@constant
def sobol(dims: int, count: int, seed: int) -> Nodes:
    """Scrambled Sobol points, of equal weights, for integrands with kinks or many dimensions.

    Args:
        dims: the number of normals.
        count: the number of points; powers of 2 are best.
        seed: the seed of the scrambling.

    Example:
        >>> points, weights = sobol(5, 1024, seed=0)
        >>> bool((weights @ points.square() - 1).abs().max() < 0.01)
        True
    """
    if not dims:
        return gauss_hermite(0, 1)
    engine = torch.quasirandom.SobolEngine(dims, scramble=True, seed=seed)
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    weights = torch.full((count,), 1 / count, dtype=torch.float64, device="cpu")
    return Nodes(torch.special.ndtri(uniform), weights)


class Rule(NamedTuple):
    """The nodes of an integral, and others from which its error is estimated.

    Args:
        dims: the number of normals.
        most: the largest number of nodes.
        seed: the seed of Sobol points.
        smooth: whether the integrand is smooth; then up to three dimensions have a Gauss-Hermite
            rule.

    Example:
        >>> Rule(2, 100, seed=0, smooth=True).nodes.points.shape
        torch.Size([100, 2])
    """

    dims: int
    most: int
    seed: int
    smooth: bool

    @property
    def hermite(self) -> bool:
        """Whether this is a Gauss-Hermite rule."""
        return self.smooth and self.dims <= HERMITE_DIMS

    @property
    def nodes(self) -> Nodes:
        """The nodes."""
        if self.hermite:
            return gauss_hermite(self.dims, self.most)
        return sobol(self.dims, self.most, self.seed)

    def other(self) -> Rule:
        """A rule whose results differ from this one's by about the error, or more.

        It has Sobol points of another seed, or a Gauss-Hermite rule with fewer points on every
        axis.
        """
        if not self.hermite:
            return self._replace(seed=self.seed + 1)
        order = round(len(self.nodes.weights) ** (1 / max(1, self.dims)))
        return self._replace(most=max(1, order - 3) ** self.dims)

    def of_count(self, count: int) -> Rule:
        """The same rule with another number of nodes."""
        return self._replace(most=count)

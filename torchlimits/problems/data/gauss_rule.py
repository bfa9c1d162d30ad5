"""`gauss_rule`: one or two points that stand for many, by the Gauss rule of their law."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: points within this part of their mean are one
_ONE = 1e-9


def gauss_rule(points: Float[Tensor, " n"]) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"]]:
    r"""Nodes and weights with which sums over the points of cubic polynomials are exact.

    With mean mu, standard deviation s and skewness g the two nodes are
    :math:`\mu + s (g/2 \pm \sqrt{g^2/4 + 1})`; they lie inside the range of the points, and
    weights are positive. One point stands for points that are all the same.

    Source: the two-point Gauss rule of a discrete measure, by its first four moments.

    Args:
        points: the n points.

    Returns:
        Nodes, ascending, and weights with the sum n.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
        >>> nodes, weights = gauss_rule(x)
        >>> [round(float(weights @ nodes**p), 10) for p in range(4)]
        [4.0, 12.0, 46.0, 198.0]
        >>> [float(sum(x**p)) for p in range(4)]
        [4.0, 12.0, 46.0, 198.0]
    """
    mean, count = points.mean(), float(len(points))
    deviation = points - mean
    size = deviation.square().mean().sqrt()
    if float(size) <= _ONE * float(mean.abs()):
        return mean[None], torch.full_like(mean[None], count)
    half = (deviation / size).pow(3).mean() / 2
    root = (half.square() + 1).sqrt()
    nodes = mean + size * torch.stack([half - root, half + root])
    upper = (mean - nodes[0]) / (nodes[1] - nodes[0])
    return nodes, count * torch.stack([1 - upper, upper])

r"""`half_space`: :math:`E[1\{y > 0\} (\sum_c a_c x_c^+)^2]` in closed form."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.orthants import (
    divided,
    extended,
    given,
    root_and_quarter,
    spread,
)


def half_space(
    S: Float[Tensor, "*batch L L"], p: Float[Tensor, "*batch L"], a: Float[Tensor, "*batch L"]
) -> Float[Tensor, "*batch"]:
    r""":math:`E[1\{y > 0\} (\sum_c a_c x_c^+)^2]` for Gaussian fields x and y ~ N(0, 1).

    With D = S - p p^T and the probabilities P of being positive,

    .. math:: E[1\{y > 0\} c^+ d^+] = \frac{p_c \sqrt{D_{dd}} + p_d \sqrt{D_{cc}} +
        \sqrt{S_{cc} S_{dd} - S_{cd}^2}}{4 \pi} + S_{cd} P(y, c, d > 0),

    .. math:: P(y, c, d > 0) = (P(y, c > 0) + P(y, d > 0) + P(c, d > 0)) / 2 - 1/4.

    Args:
        S: the covariance of the x, shape ``(..., L, L)``.
        p: covariances of y and the x, shape ``(..., L)``.
        a: weights, shape ``(..., L)``.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> half_space(torch.eye(1), one, one), half_space(torch.eye(1), 0 * one, one)
        (tensor(0.5000), tensor(0.2500))
    """
    with torch.no_grad():
        variance = S.diagonal(dim1=-2, dim2=-1)
        D = given(S, p)
        sigma = spread(D)
        root, both = root_and_quarter(S, variance[..., :, None], variance[..., None, :])
        own = root_and_quarter(p, torch.ones_like(p), variance)[1]
        orthant = (own[..., :, None] + own[..., None, :] + both) / 2 - 0.25
        cross = p[..., :, None] * sigma[..., None, :]
        weighted = a[..., :, None] * a[..., None, :]
        V = (cross + cross.mT + root) / (4 * math.pi) + S * orthant
        value = (weighted * V).sum((-2, -1))
        # dV_cd/dp_c and dV_cd/dS_cc, which share the condition that c is 0
        beside = (sigma[..., None, :] + divided(D, sigma[..., :, None])) / (4 * math.pi)
        at_zero = p[..., None, :] * variance[..., :, None] - p[..., :, None] * S
        height = root + divided(at_zero, sigma[..., :, None])
        own_slope = divided(height, variance[..., :, None]) / (8 * math.pi)
        by_p = 2 * (weighted * beside).sum(-1)
        by_variance = 2 * (weighted * own_slope).sum(-1)
        by_a = 2 * (V @ a[..., None])[..., 0]
    slopes = [(a, by_a), (p, by_p), (S, weighted * orthant)]
    slopes.append((S.diagonal(dim1=-2, dim2=-1), by_variance))
    return extended(value, slopes)

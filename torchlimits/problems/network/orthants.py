r"""Averages over orthants of two and three jointly Gaussian fields, for the ReLU.

A correlation rho enters as :math:`P = 1/4 + \arcsin(\rho) / 2\pi`, the probability that two fields
are positive. It has no derivative at rho = 1, where the averages of interest have one: those of
three fields come with derivatives of their own, which are averages over orthants again.

Source: Plackett's identity, dE[F]/dS_cd = E[d^2 F/dc dd], and Stein's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.closed_form import outer

#: variances and determinants below this part of the terms they come from are rounding
_ROUNDING = 4e-15


def root_and_quarter(covariance: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the determinant, and P(both > 0), of two fields; P = 1/4 where one is constant.

    Derivatives are left out where the determinant is 0 to rounding.

    Args:
        covariance: that of the two fields, of any shape.
        one, other: their variances.

    Example:
        >>> import torch
        >>> one = torch.ones(())
        >>> root_and_quarter(one, one, one)
        (tensor(0.), tensor(0.5000))
    """
    product = one * other
    determinant = product - covariance.square()
    regular = determinant > _ROUNDING * product
    safe = determinant.where(regular, 1.0).sqrt()
    angle = torch.atan2(covariance.where(regular, 0.0), safe)
    aligned = covariance.detach().sign() * (math.pi / 2)
    return safe.where(regular, 0.0), 0.25 + angle.where(regular, aligned) / (2 * math.pi)


def divided(numerator: Tensor, root: Tensor) -> Tensor:
    """numerator / root, and 0 where root is 0.

    Args:
        numerator: a tensor of any shape.
        root: a tensor that is at least 0.

    Example:
        >>> import torch
        >>> divided(torch.ones(2), torch.tensor([0.0, 2.0]))
        tensor([0.0000, 0.5000])
    """
    positive = root > 0
    return (numerator / root.where(positive, 1.0)).where(positive, 0.0)


def spread(S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L"]:
    """Standard deviations, roots of the diagonal; 0, without a derivative, where that is negative.

    Args:
        S: a covariance, shape ``(..., L, L)``.

    Example:
        >>> import torch
        >>> spread(4 * torch.eye(2))
        tensor([2., 2.])
    """
    variance = S.diagonal(dim1=-2, dim2=-1)
    positive = variance > 0
    return variance.where(positive, 1.0).sqrt().where(positive, 0.0)


def given(
    S: Float[Tensor, "*batch L L"], *loads: Float[Tensor, "*batch L"]
) -> Float[Tensor, "*batch L L"]:
    """The fields' covariance, given orthonormal fields that they have these covariances with.

    Args:
        S: the fields' covariance, ``(..., L, L)``.
        loads: covariances with each of the given fields, ``(..., L)``.

    Example:
        >>> import torch
        >>> given(torch.eye(2), torch.tensor([1.0, 0.0]))
        tensor([[0., 0.],
                [0., 1.]])
    """
    left = S
    for load in loads:
        left = left - outer(load)
    # a given field has no variance left, not even from rounding
    variances = S.diagonal(dim1=-2, dim2=-1)
    kept = (left.diagonal(dim1=-2, dim2=-1) > _ROUNDING * variances).to(S)
    return left * outer(kept)


def extended(value: Tensor, slopes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """A value with the derivatives that it is known to have.

    Args:
        value: ``(...)``.
        slopes: pairs (x, dvalue/dx) of one shape ``(..., *rest)``.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> extended(torch.tensor(9.0), [(x, torch.tensor([6.0]))]).backward()
        >>> x.grad
        tensor([6.])
    """
    value = value.detach()
    for x, slope in slopes:
        change = slope.detach() * (x - x.detach())
        value = value + (change.flatten(value.ndim).sum(-1) if x.ndim > value.ndim else change)
    return value

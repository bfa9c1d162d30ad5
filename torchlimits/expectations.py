"""The Gaussian expectations behind the closed forms of the two-layer network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.quadrature import line_nodes

#: batch members times lines that are evaluated at once
_BATCH_LINES = 4096


class ReluMoments(NamedTuple):
    """E[1_i s], E[xi_j 1_i s] and E[1_i 1_j s^2]."""

    T0: Float[Tensor, "*batch K"]
    T1: Float[Tensor, "*batch K K"]
    T2: Float[Tensor, "*batch K K"]


def relu_moments(
    mean: Float[Tensor, "*batch K"],
    factor: Float[Tensor, "*#batch K K"],
    v: Float[Tensor, "*#batch K"],
    label: Float[Tensor, "*#batch"],
    *,
    lines: int = 4096,
    nodes: int | None = None,
) -> ReluMoments:
    r"""Moments of the residual of a ReLU network under a Gaussian input.

    With :math:`h = mean + factor\,\xi`, xi ~ N(0, I_K), 1_i the indicator of h_i >= 0 and
    s = sigmoid(sum_i v_i relu(h_i)) - label:

    .. math:: T0_i = E[1_i s], \quad T1_{ij} = E[\xi_j 1_i s], \quad T2_{ij} = E[1_i 1_j s^2]

    by the line rule of `torchlimits.quadrature`. Deterministic; a point's value does not depend on
    the rest of the batch; right derivatives in all arguments by autograd and torch.func.

    Args:
        mean: shape ``(..., K)``.
        factor: any square root of the covariance of h, singular ones included, ``(..., K, K)``.
        v: second-layer weights, shape ``(..., K)``.
        label: y, shape ``(...,)``.
        lines: lines of the rule for K >= 3; every factor of 4 divides the error by about 5.
        nodes: Gauss-Legendre nodes a segment; by default 20, 14, 8 for K = 1, 2, >= 3.

    Returns:
        `ReluMoments`, in the dtype of ``mean`` (float32 is computed in float64).

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> moments = relu_moments(one, one[None], 0 * one, one.sum())   # s = -1/2, h > 0: Phi(1)
        >>> round(float(moments.T0), 8)
        -0.42067237
    """
    K = mean.shape[-1]
    batch = torch.broadcast_shapes(mean.shape[:-1], factor.shape[:-2], v.shape[:-1], label.shape)
    flat = (
        mean.expand(*batch, K).reshape(-1, K).double(),
        factor.expand(*batch, K, K).reshape(-1, K, K).double(),
        v.expand(*batch, K).reshape(-1, K).double(),
        label.expand(batch).reshape(-1).double(),
    )
    nodes = nodes or {1: 20, 2: 14}.get(K, 8)
    size = max(1, _BATCH_LINES // {1: 1, 2: 3 * (nodes + 6)}.get(K, lines))
    pieces = [
        _moments(*rows, lines=lines, nodes=nodes)
        for rows in zip(*(tensor.split(size) for tensor in flat), strict=True)
    ]
    T0, T1, T2 = (torch.cat(parts).to(mean.dtype) for parts in zip(*pieces, strict=True))
    return ReluMoments(T0.reshape(*batch, K), T1.reshape(*batch, K, K), T2.reshape(*batch, K, K))


def _moments(
    mean: Tensor, factor: Tensor, v: Tensor, label: Tensor, *, lines: int, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    T0 = torch.zeros_like(mean)
    T1 = torch.zeros_like(factor)
    T2 = torch.zeros_like(factor)
    for rule in line_nodes(mean, factor, v, lines=lines, nodes=nodes):
        s = torch.sigmoid(rule.logit) - label[:, None, None, None]
        first = rule.weight * s
        active = rule.active.flatten(1, 2)  # (B, lines * segments, K)
        residual = first.sum(-1)
        along = (first * rule.t).sum(-1).flatten(1)
        squared = (first * s).sum(-1).flatten(1)
        T0 = T0 + (residual.flatten(1)[:, None, :] @ active)[:, 0]
        on_line = (residual[..., None, :] @ rule.active)[..., 0, :]  # (B, lines, K)
        turned = torch.cat(
            [active.mT @ along[..., None], on_line.mT @ rule.across.expand(len(mean), -1, -1)], -1
        )
        T1 = T1 + turned @ rule.rotation.mT
        T2 = T2 + active.mT @ (squared[..., None] * active)
    return T0, T1, T2


def factor_gaussian(
    m: Float[Tensor, "*batch K d"], R: Float[Tensor, "*batch K K"], snr: float
) -> tuple[Float[Tensor, "*batch K K"], Float[Tensor, "*batch K d+K"]]:
    r"""L and Q with :math:`[m, \sqrt R]/\sqrt\lambda = L Q`, Q with orthonormal rows.

    L is the square root of the covariance (m m^T + R)/lambda of h = W X; and for z, z' standard
    normals of size d and K, E[(z, z') F(h)] = Q^T E[xi F(h)]. By a QR decomposition: nothing is
    inverted, R may be singular (aligned neurons, R = 0).

    Derivatives in m and R are right wherever [m, sqrt(R)] has rank K; below, the expectations are
    not differentiable in R (they grow like its square root), and what autograd gives is finite and
    keeps only the directions inside the range.

    Args:
        m: overlaps, ``(..., K, d)``.
        R: positive semidefinite, ``(..., K, K)``; negative eigenvalues count as 0.
        snr: lambda.
    """
    T = torch.cat([m, psd_sqrt(R)], dim=-1) / snr**0.5
    fixed = T.detach()
    Q, triangle = torch.linalg.qr(fixed.mT)
    Q, L = Q.mT, triangle.mT
    # First order in dT = T - fixed (zero in value): L + dL, Q + dQ with dL Q + L dQ = dT. torch's
    # own derivative of QR divides by the diagonal of L, which vanishes once neurons align.
    change = T - fixed
    dL = change @ Q.mT
    dQ = torch.linalg.pinv(L, rtol=1e-7) @ (change - dL @ Q)
    return L + dL, Q + dQ


def psd_sqrt(R: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch K K"]:
    r"""The symmetric square root S of a positive semidefinite R, negative eigenvalues taken as 0.

    The derivative solves dS S + S dS = dR in R's eigenbasis: dR_ij/(s_i + s_j), and 0 where both
    are 0. torch's derivative of eigh divides by differences of eigenvalues: infinite at R = I.

    Example:
        >>> import torch
        >>> psd_sqrt(torch.diag(torch.tensor([4.0, 0.0])))
        tensor([[2., 0.],
                [0., 0.]])
    """
    fixed = R.detach()
    values, U = torch.linalg.eigh(fixed)
    roots = values.clamp_min(0).sqrt()
    S = (U * roots[..., None, :]) @ U.mT
    total = roots[..., :, None] + roots[..., None, :]
    floor = 1e-8 * roots[..., -1:, None] + 1e-150
    inverse = torch.where(total > floor, 1 / total.clamp_min(1e-150), torch.zeros_like(total))
    return S + U @ ((U.mT @ (R - fixed) @ U) * inverse) @ U.mT


def lines_for(width: int, snr: float, level: int = 0) -> int:
    """Lines for K >= 3 that reach the stated accuracy; small snr, a sharper sigmoid, takes more."""
    base = 2**12 if snr >= 10 else 2**14 if snr >= 1 else 2**16
    return base * 4**level


def tolerance(width: int, level: int = 0) -> float:
    """The relative tolerance of an ODE solver that fits the error of the expectations."""
    return 1e-6 if width <= 2 else 1e-4 * 4.0**-level

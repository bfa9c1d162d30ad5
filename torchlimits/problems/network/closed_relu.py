"""`ReLU`: Gaussian averages of networks with phi(x) = max(x, 0)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.closed_form import ClosedForm, first_rows
from torchlimits.problems.network.half_space import half_space
from torchlimits.problems.network.orthants import divided, root_and_quarter, spread
from torchlimits.problems.network.sector import sector

#: roughly the most numbers in one tensor of the sectors' integrals
_AT_ONCE = 2**21


class ReLU(ClosedForm):
    r"""phi(x) = max(x, 0): arc-cosine kernels.

    With P the probability that two fields are positive,

    .. math:: E[\phi(x_p) \phi(x_q)] = \sqrt{S_{pp} S_{qq} - S_{pq}^2} / 2\pi + S_{pq} P_{pq}.

    All averages are closed forms but one: off the diagonal, `gram` is an integral over one angle,
    done by quadrature, see `sector`.

    Source: Y. Cho and L. Saul, Kernel methods for deep learning, NIPS 2009, for the kernel.

    Example:
        >>> import torch
        >>> ReLU().kernel(torch.eye(2, dtype=torch.float64))
        tensor([[0.5000, 0.1592],
                [0.1592, 0.5000]], dtype=torch.float64)
    """

    error = 1e-8
    kinked = True

    def activation(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return torch.relu(x)

    def kernel(self, S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L L"]:
        """The arc-cosine kernel of first order."""
        root, P = _pairs(S)
        return root / (2 * math.pi) + S * P

    def response(
        self, S: Float[Tensor, "*batch L L"], a: Float[Tensor, "*batch L"], K: int
    ) -> Float[Tensor, "*batch K L"]:
        """a_p P_ip + delta_ip E[e delta(h_i)]."""
        root, P = _pairs(S)
        own = (a[..., None, :] * root[..., :K, :]).sum(-1) / (2 * math.pi)
        own = divided(own, S.diagonal(dim1=-2, dim2=-1)[..., :K])
        return a[..., None, :] * P[..., :K, :] + own[..., None] * first_rows(S, K)

    def gram(
        self,
        S: Float[Tensor, "*batch L L"],
        a: Float[Tensor, "*batch L"],
        K: int,
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch K K"]:
        """Averages over a half space on the diagonal, over sectors off it."""
        a = a.expand(S.shape[:-1])
        sigma = spread(S)[..., :K]
        p = divided(S[..., :K, :], sigma[..., None].expand_as(S[..., :K, :]))
        rows = a[..., None, :].expand_as(p)
        whole = torch.diag_embed(half_space(_for_each(S, p), p, rows))
        if K > 1:
            whole = whole + _off_diagonal(S, p, divided(p[..., :K], sigma[..., None, :]), rows)
        return whole + variance * _pairs(S[..., :K, :K])[1]


def _pairs(S: Tensor) -> tuple[Tensor, Tensor]:
    variance = S.diagonal(dim1=-2, dim2=-1)
    return root_and_quarter(S, variance[..., :, None], variance[..., None, :])


def _for_each(S: Tensor, rows: Tensor) -> Tensor:
    """S once more for each of some rows, without copies."""
    return S[..., None, :, :].expand(*rows.shape, -1)


def _off_diagonal(S: Tensor, p: Tensor, r: Tensor, a: Tensor) -> Tensor:
    """The symmetric matrix of averages over the sectors of pairs i < j, 0 on the diagonal.

    Args:
        S: ``(..., L, L)``.
        p: covariances with the normalised h_i, ``(..., K, L)``.
        r: correlations of the h_i, ``(..., K, K)``.
        a: weights, a row for each h_i, ``(..., K, L)``.
    """
    K, L = p.shape[-2:]
    i, j = torch.triu_indices(K, K, 1, device=S.device)
    p_i, r_ij, a = p[..., i, :], r[..., i, j], a[..., i, :]
    sine = (1 - r_ij.square()).clamp_min(0).sqrt()
    # where h_i and h_j are the same, any direction will do: take that of a separate field
    aligned = sine.square() < 1e-15
    q = (p[..., j, :] - r_ij[..., None] * p_i) / sine.where(~aligned, 1.0)[..., None]
    q = q.where(~aligned[..., None], 0.0)
    size = max(1, _AT_ONCE // max(1, 128 * L * L * p[..., 0, 0].numel()))
    chunks = [
        sector(
            _for_each(S, p_i[..., k, :]), p_i[..., k, :], q[..., k, :], r_ij[..., k], a[..., k, :]
        )
        for k in torch.arange(len(i), device=S.device).split(size)
    ]
    upper = torch.zeros_like(r)
    upper[..., i, j] = torch.cat(chunks, dim=-1)
    return upper + upper.mT

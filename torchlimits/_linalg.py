"""Small matrices, any number of them, on any device: eigenvalues, inverses, roots, packing."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: derivatives up to this order are those of the functions
_ORDERS = 3
#: matrices at once on CUDA: cuSOLVER fails for more than some 32,000
#: (https://github.com/mujocolab/mjlab/pull/732; seen with 100,000 on an H100)
_AT_ONCE = 2**14


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(..., K)``, ascending, and eigenvectors ``(..., K, K)`` in columns.

    Args:
        matrices: symmetric, ``(..., K, K)``.

    Example:
        >>> values, vectors = eigh(torch.diag(torch.tensor([2.0, 1.0])))
        >>> values
        tensor([1., 2.])
    """
    values, vectors = zip(*(torch.linalg.eigh(piece) for piece in _pieces(matrices)), strict=True)
    shape = matrices.shape
    return torch.cat(values).reshape(shape[:-1]), torch.cat(vectors).reshape(shape)


def eigvalsh(matrices: Tensor) -> Tensor:
    """Eigenvalues ``(..., K)``, ascending.

    Args:
        matrices: symmetric, ``(..., K, K)``.

    Example:
        >>> eigvalsh(torch.diag(torch.tensor([2.0, 1.0])))
        tensor([1., 2.])
    """
    values = [torch.linalg.eigvalsh(piece) for piece in _pieces(matrices)]
    return torch.cat(values).reshape(matrices.shape[:-1])


def pinv(matrices: Tensor, rtol: float | None = None, *, hermitian: bool = False) -> Tensor:
    """Pseudo-inverses ``(..., N, M)``.

    Args:
        matrices: ``(..., M, N)``.
        rtol: singular values below this fraction of the largest count as 0; by default those below
            rounding.
        hermitian: whether they are symmetric.

    Example:
        >>> pinv(torch.diag(torch.tensor([2.0, 0.0])), rtol=1e-7)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
    options: dict[str, Any] = {"rtol": rtol, "hermitian": hermitian}
    inverses = [torch.linalg.pinv(piece, **options) for piece in _pieces(matrices)]
    return torch.cat(inverses).reshape(matrices.mT.shape)


def psd_sqrt(matrix: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch K K"]:
    r"""The symmetric square root S of a positive semi-definite R, S S = R.

    Derivative: the Sylvester equation S dS + dS S = dR, in the eigenbasis
    :math:`dS_{ij} = dR_{ij} / (s_i + s_j)`, which equal eigenvalues do not disturb (that of
    torch.linalg.eigh is not defined there); 0 where :math:`s_i + s_j = 0`. Two further steps of
    Newton's method, S dS + dS S = R - S S, zero in value, make second and third derivatives right.

    Args:
        matrix: R, symmetric; eigenvalues below 0 (rounding) count as 0.

    Example:
        >>> import torch
        >>> psd_sqrt(torch.diag(torch.tensor([4.0, 0.0])))
        tensor([[2., 0.],
                [0., 0.]])
    """
    symmetric = (matrix + matrix.mT) / 2
    fixed = symmetric.detach()
    values, vectors = eigh(fixed)
    roots = values.clamp_min(0).sqrt()
    root = (vectors * roots[..., None, :]) @ vectors.mT
    total = roots[..., :, None] + roots[..., None, :]
    # eigenvalues below rounding are zeros: nothing may be divided by their roots
    solvable = total > 1e-7 * roots[..., -1:, None]
    inverse = torch.where(solvable, 1 / total.where(solvable, 1.0), 0.0)
    # zero in value, with the derivatives of the root; each round makes one order more right
    change = vectors @ ((vectors.mT @ (symmetric - fixed) @ vectors) * inverse) @ vectors.mT
    for _ in range(_ORDERS - 1):
        rest = _zero(symmetric - (root + change) @ (root + change))
        change = change + vectors @ ((vectors.mT @ rest @ vectors) * inverse) @ vectors.mT
    return root + change


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric square root S of a positive semi-definite matrix, without a derivative.

    `psd_sqrt` has one, and takes longer.

    Args:
        matrix: symmetric, ``(..., K, K)``; eigenvalues below 0 (rounding) count as 0.

    Returns:
        S with S S^T = matrix, ``(..., K, K)``.

    Example:
        >>> symmetric_root(torch.diag(torch.tensor([4.0, -1e-9])))
        tensor([[2., 0.],
                [0., 0.]])
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT


def packed(matrix: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch entries"]:
    """The entries ij of a symmetric matrix with i <= j, row by row: K (K + 1)/2 numbers.

    Args:
        matrix: ``(..., K, K)``.

    Example:
        >>> packed(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        tensor([1., 2., 3.])
    """
    K = matrix.shape[-1]
    i, j = torch.triu_indices(K, K, device=matrix.device)
    return matrix[..., i, j]


def unpacked(upper: Float[Tensor, "*batch entries"], K: int) -> Float[Tensor, "*batch K K"]:
    """The symmetric K x K matrix whose entries `packed` returns.

    Args:
        upper: ``(..., K (K + 1)/2)``.
        K: the number of rows.

    Example:
        >>> unpacked(torch.tensor([1.0, 2.0, 3.0]), 2)
        tensor([[1., 2.],
                [2., 3.]])
    """
    i, j = torch.triu_indices(K, K, device=upper.device)
    position = torch.zeros(K, K, dtype=torch.long, device=upper.device)
    position[i, j] = position[j, i] = torch.arange(len(i), device=upper.device)
    return upper[..., position]


def factor_gaussian(
    m: Float[Tensor, "*#batch K d"],
    gram: Float[Tensor, "*#batch K K"],
    snr: Float[Tensor, "*#batch"] | float,
    *,
    derivatives: bool = True,
) -> tuple[Float[Tensor, "*batch K K"], Float[Tensor, "*batch K e"]]:
    r"""L and Q with :math:`[m, S] / \sqrt{snr} = L Q`, S = sqrt(R), Q Q^T = I, e = d + K.

    The pre-activations are h = m c + L xi, and the e standard normals zeta of the data (first d:
    along the means) satisfy E[zeta g(h)] = Q^T E[xi g(h)].

    Args:
        m: overlaps with the means' directions, shape ``(..., K, d)``.
        gram: R, shape ``(..., K, K)``, symmetric positive semi-definite; singular is fine.
        snr: lambda, shape ``(...)``.
        derivatives: whether to have right derivatives, which take two thirds of the time.

    Returns:
        L and Q. Values are right for every R >= 0. Derivatives up to the third are right where
        [m, S] has rank K. At aligned neurons or R = 0 the drift has none in R (it grows like
        R^{-1/2} towards the edge of the cone); what is returned is finite and drops directions
        outside the range.

    Example:
        >>> import torch
        >>> L, Q = factor_gaussian(torch.zeros(2, 1), torch.eye(2), 4.0)
        >>> L @ L.mT
        tensor([[0.2500, 0.0000],
                [0.0000, 0.2500]])
    """
    scale = torch.as_tensor(snr, dtype=gram.dtype, device=gram.device).sqrt()[..., None, None]
    root = psd_sqrt(gram) if derivatives else symmetric_root(gram)
    batch = torch.broadcast_shapes(m.shape[:-2], root.shape[:-2], scale.shape[:-2])
    blocks = [x.expand(*batch, *x.shape[-2:]) for x in (m, root)]
    T = torch.cat(blocks, -1) / scale
    fixed = T.detach()
    q, r = torch.linalg.qr(fixed.mT)
    L, Q = r.mT, q.mT
    if not derivatives:
        return L, Q
    # Orders in dT = T - fixed, which is zero in value. T = (L + dL) Q + N with dL = dT Q^T, and N
    # orthogonal to Q; with (L + dL) C = N it is (L + dL) (Q + C), and dividing Q + C by the root of
    # its Gram matrix I + C C^T makes rows orthonormal.
    # torch's derivative of QR divides by the diagonal of L, which vanishes where neurons align.
    dT = T - fixed
    dL = dT @ q
    N, inverse = dT - dL @ Q, pinv(L, rtol=1e-7)
    turned = inverse @ N  # C
    for _ in range(_ORDERS - 1):
        turned = inverse @ (N - dL @ turned)
    half = turned @ turned.mT / 2  # of second order, and the next term of the root is of fourth
    lower, rows = L + dL, Q + turned
    return lower + lower @ half, rows - half @ rows


def _zero(x: Tensor) -> Tensor:
    """Zero in value, with the derivatives of x."""
    return x - x.detach()


def _pieces(matrices: Tensor) -> tuple[Tensor, ...]:
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return flat.split(_AT_ONCE) if flat.is_cuda else (flat,)

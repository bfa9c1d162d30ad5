"""`eigh`, `eigvalsh`, `pinv`: of as many small matrices as there are, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
        rtol: singular values below this part of the largest count as 0; by default those below
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


def _pieces(matrices: Tensor) -> tuple[Tensor, ...]:
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return flat.split(_AT_ONCE) if flat.is_cuda else (flat,)

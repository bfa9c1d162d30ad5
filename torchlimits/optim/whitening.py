"""`whitening`: coordinates along directions and rows of W, made those of an orthonormal basis."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg

#: relative size of R's eigenvalues that count as 0
_NO_ROOM = 1e-7


def whitening(R: Float[Tensor, "*batch K K"], d: int) -> Float[Tensor, "*batch w w"]:
    """The inverse root of the Gram matrix of d orthonormal directions and the rows of W_perp.

    The products of a vector with these, times it, have the length of the vector's part in their
    span.

    Args:
        R: the Gram matrix of the rows of W_perp.
        d: the number of directions.

    Example:
        >>> whitening(torch.tensor([[4.0]]), 1)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """
    w = d + R.shape[-1]
    whole = torch.eye(w, dtype=R.dtype, device=R.device).expand(*R.shape[:-2], w, w).clone()
    whole[..., d:, d:] = _linalg.pinv(_linalg.psd_sqrt(R), rtol=_NO_ROOM, hermitian=True)
    return whole

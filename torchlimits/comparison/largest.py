"""`largest`: the largest value of each column, and where it is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest(sizes: Float[Tensor, "T k"]) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The largest value of each column that is not NaN, if there is one, and its row.

    Args:
        sizes: values >= 0.

    Example:
        >>> largest(torch.tensor([[1.0], [torch.nan], [3.0], [2.0]]))
        (tensor([3.]), tensor([2]))
    """
    rows = sizes.nan_to_num(nan=-1.0, posinf=torch.inf).argmax(dim=0)
    return sizes.gather(0, rows[None])[0], rows

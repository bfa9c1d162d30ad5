"""`LinearPredictor`: one output that is linear in the input, an ordinary `nn.Module`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits._dir import OwnNames
from torchlimits.problems.two_layer import MatrixProduct

#: the name of the one parameter
WEIGHT = "first.weight"


class LinearPredictor(OwnNames, nn.Module):
    """x -> <w, x>, starting at w = 0.

    Args:
        dim: N.
        replicas: leading dimensions of independent copies, ``()`` for one.
        device, dtype: of w.

    Parameters: ``first.weight`` (*replicas, 1, N), that of an nn.Linear where there are no
    replicas.

    Example:
        >>> import torch
        >>> model = LinearPredictor(dim=5)
        >>> model(torch.ones(7, 5)).shape, model.first
        (torch.Size([7]), Linear(in_features=5, out_features=1, bias=False))
        >>> LinearPredictor(dim=5, replicas=(2,))(torch.ones(2, 7, 5)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self, dim: int, *, replicas: tuple[int, ...] = (),
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        zeros = torch.zeros(*replicas, 1, dim, device=device, dtype=dtype)
        if replicas:
            self.first: nn.Module = MatrixProduct(zeros)
        else:
            layer = nn.Linear(dim, 1, bias=False, device="meta", dtype=dtype)
            layer.weight = nn.Parameter(zeros)
            self.first = layer

    def forward(self, x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
        """One output for each input; x is ``(*replicas, batch, N)`` where there are replicas."""
        return self.first(x).squeeze(-1)

"""`TwoLayerNetwork`: one hidden layer without biases, an ordinary `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchlimits._dir import OwnNames


class TwoLayerNetwork(OwnNames, nn.Module):
    r"""Logit :math:`\hat y(X) = v \cdot \sigma(W X)`, K hidden units, no biases.

    Source: sections 4 and 5 of arXiv 2206.04030 (there sigma is the ReLU).

    Args:
        dim: the input dimension N.
        width: the number of hidden units K.
        replicas: leading dimensions of independent copies, ``()`` for one network. With the loss
            summed over them, one step of torch.optim.SGD is one step of each copy on its own.
        activation: sigma, entrywise.
        generator, device, dtype: of the Gaussian start v ~ N(0, 1), W ~ N(0, 1/N) per entry.

    Parameters: ``first.weight`` (*replicas, K, N) and ``second.weight`` (*replicas, 1, K).

    Example:
        >>> import torch
        >>> network = TwoLayerNetwork(dim=5, width=3)
        >>> network(torch.zeros(7, 5)).shape
        torch.Size([7])
        >>> TwoLayerNetwork(dim=5, width=3, replicas=(2,))(torch.zeros(2, 7, 5)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self, dim: int, width: int, *, replicas: tuple[int, ...] = (),
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation = activation
        normal: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        self.first = MatrixProduct(torch.randn(*replicas, width, dim, **normal) / dim**0.5)
        self.second = MatrixProduct(torch.randn(*replicas, 1, width, **normal))

    def forward(self, x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
        """The logit of every input; x is ``(*replicas, batch, N)`` where there are replicas."""
        return self.second(self.activation(self.first(x))).squeeze(-1)


class MatrixProduct(OwnNames, nn.Module):
    """x -> x W^T with a weight (*replicas, out, in), which nn.Linear does not allow."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """X W^T."""
        W = self.weight
        if x.shape[-1:] != W.shape[-1:]:
            raise ValueError(
                f"expected inputs of shape (..., {W.shape[-1]}) for a weight of shape "
                f"{tuple(W.shape)}, got {tuple(x.shape)}"
            )
        if W.shape[-2] == 1:  # one output: torch takes longer for many small products
            return (x * W).sum(-1, keepdim=True)
        if torch.compiler.is_compiling() and W.ndim == x.ndim == 3 and x.shape[-2] == 1:
            # the compiler makes one loop of this and what follows, backward too
            return (W * x).sum(-1).unsqueeze(-2)
        # (W X^T)^T: with one sample a replica, backward is 8 times as fast as through X W^T, and
        # matmul would spend as long on views as on the product
        product = torch.bmm(W, x.mT) if W.ndim == x.ndim == 3 else W @ x.mT
        return product.mT

    def extra_repr(self) -> str:
        """The weight's shape."""
        return f"weight={tuple(self.weight.shape)}"


def logistic_loss(output: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """Binary cross-entropy of logits: the mean over the batch, *summed* over replicas.

    Args:
        output: the logits, shape ``(*replicas, batch)``.
        target: the labels 0 or 1, of the same shape.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import torch
        >>> logistic_loss(torch.zeros(3, 2), torch.ones(3, 2))  # 3 log 2
        tensor(2.0794)
    """
    if output.shape != target.shape:
        raise ValueError(
            f"expected output and target of one shape, got {tuple(output.shape)} and "
            f"{tuple(target.shape)}: the model returns one logit an input"
        )
    total = functional.binary_cross_entropy_with_logits(output, target, reduction="sum")
    batch = target.shape[-1]
    return total / batch if batch > 1 else total

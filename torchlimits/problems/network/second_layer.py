"""`SecondLayer`: one output, the weighted sum of the neurons' activations."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from torchlimits._dir import OwnNames


class SecondLayer(OwnNames, nn.Module):
    r"""h -> :math:`\sum_i v_i \phi(h_i)`, the head of a two-layer network with one output.

    Args:
        activation: phi, entrywise.
        weight: v, ``(K,)``.
        trained: whether v is trained.
        drawn: whether `reset_parameters` draws v ~ N(0, I); else v stays.

    Parameters: ``weight`` (K,), which requires no gradient where it is not trained.

    Example:
        >>> import torch
        >>> head = SecondLayer(torch.relu, torch.ones(3), trained=False)
        >>> head(torch.tensor([[1.0, -1.0, 2.0]]))
        tensor([3.])
    """

    def __init__(
        self, activation: Callable[[Tensor], Tensor], weight: Float[Tensor, " K"], *,
        trained: bool, drawn: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(weight.clone(), requires_grad=trained)
        self.drawn = drawn

    def forward(self, h: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch"]:
        """The outputs."""
        return (self.activation(h) * self.weight).sum(-1)

    def reset_parameters(self) -> None:
        """Draw v anew if `drawn`."""
        if self.drawn:
            nn.init.normal_(self.weight)

    def extra_repr(self) -> str:
        """The activation, and whether the weights are trained."""
        name = getattr(self.activation, "__name__", type(self.activation).__name__)
        return f"{name}, {len(self.weight)}, trained={self.weight.requires_grad}"

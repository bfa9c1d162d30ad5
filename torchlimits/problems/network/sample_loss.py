"""`SampleLoss`: the loss of each sample, from a loss that is the mean over a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]


class SampleLoss:
    """The loss of every sample of a batch, and its derivative by the output.

    Args:
        loss: loss(output ``(B, *out)``, target ``(B, ...)``) -> the mean over the batch.

    Example:
        >>> import torch
        >>> losses = SampleLoss(torch.nn.functional.mse_loss)
        >>> losses(torch.tensor([1.0, 2.0]), torch.zeros(2))
        tensor([1., 4.])
        >>> losses.slopes(torch.tensor([1.0, 2.0]), torch.zeros(2))
        tensor([2., 4.])
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss
        self._copies: dict[tuple[torch.device, torch.dtype], Loss] = {}

    def loss(self, output: Tensor, target: Tensor) -> Any:
        """The mean over a batch; modules are copied to the outputs' device and dtype.

        Args:
            output, target: as in a call.
        """
        if not isinstance(self._loss, nn.Module):
            return self._loss(output, target)
        key = (output.device, output.dtype)
        if key not in self._copies:  # its weights are those of training, perhaps in float32
            self._copies[key] = copy.deepcopy(self._loss).to(*key)
        return self._copies[key](output, target)

    def __call__(self, output: Tensor, target: Tensor) -> Float[Tensor, " M"]:
        """The losses of M samples.

        Args:
            output: ``(M, *out)``.
            target: ``(M, ...)``.

        Raises:
            ValueError: if the loss has no losses of samples.
        """

        def one(o: Tensor, y: Tensor) -> Tensor:
            return self.loss(o[None], y[None])

        try:
            return torch.func.vmap(one)(output, target)
        except Exception as error:
            raise ValueError(
                "expected loss(output, target) as the mean over a batch of losses of samples, got "
                f"{type(error).__name__} for one sample, output {tuple(output.shape[1:])} and "
                f"target {tuple(target.shape[1:])} {target.dtype}: {error}"
            ) from error

    def slopes(self, output: Tensor, target: Tensor) -> Tensor:
        """dl/d(output) of each sample, in the output's shape; it can be differentiated again.

        Args:
            output, target: as in a call.
        """
        graph = output.requires_grad
        with torch.enable_grad():
            leaf = output if graph else output.detach().requires_grad_()
            # of the mean over the batch, which the loss is: half the time of the samples' own
            total = len(leaf) * self.loss(leaf, target)
            (slopes,) = torch.autograd.grad(total, leaf, create_graph=graph, materialize_grads=True)
        return slopes

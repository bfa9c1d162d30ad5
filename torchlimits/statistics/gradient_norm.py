"""`gradient_norm`: the length of the gradient of the mean loss on fixed data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchlimits.statistics.fixed_data import (
    FixedData,
    Inputs,
    Loss,
    OnData,
    check_loss,
    mean_loss,
)
from torchlimits.statistics.of_model import Evaluation, OfModel
from torchlimits.statistics.private_copy import PrivateCopy, transformed


def gradient_norm(loss: Loss, inputs: Inputs, targets: Tensor, batch: int | None = None) -> OfModel:
    r"""The Euclidean norm of the gradient of the mean loss, :math:`|\nabla_\theta \hat L|`.

    :math:`\hat L` is what `held_out` records, :math:`\theta` are the parameters that required
    gradients when `tl.track` was called. The network is in evaluation mode; the trained
    parameters' own ``.grad`` is neither read nor written.

    Cost: a forward and a backward pass of n samples a recorded step; for many steps at once by
    `torch.func.vmap` where the network allows that and memory suffices, as in `of_model`; one by
    one where it has autograd functions of its own that do not work with `torch.func`.

    Args:
        loss: ``loss(output, target)`` -> the *mean* over the samples it is given.
        inputs: as in `held_out`.
        targets: ``(n, ...)``.
        batch: how many samples the network gets at once; by default all.

    Returns:
        A statistic for `tl.track`, a scalar, as `of_model` returns it.

    Raises:
        TypeError: if the loss is not callable, or inputs or targets are not tensors.
        ValueError: if they differ in n, batch is not an int >= 1, or, at `tl.track`, no parameter
            requires a gradient or the loss is not one number.

    Example:
        >>> import torch, torchlimits as tl
        >>> mse, x, y = torch.nn.functional.mse_loss, torch.ones(1, 1), torch.zeros(1, 1)
        >>> slope = tl.statistics.gradient_norm(mse, x, y)
        >>> slope.bound(torch.nn.Linear(1, 1, bias=False))({"weight": torch.tensor([[3.0]])})
        tensor(6.)
    """
    check_loss(loss)
    return _GradientNorm(FixedData.with_targets(inputs, targets, batch), loss)


@dataclass(frozen=True, eq=False)
class _GradientNorm(OnData):
    loss: Loss

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        check_trainable(private)
        return lambda tensors: self._norm(private, tensors)

    def _norm(self, private: PrivateCopy, tensors: Mapping[str, Tensor]) -> Tensor:
        try:
            gradient = self._by_func(private, tensors)
        except RuntimeError as error:
            if transformed() or isinstance(error, torch.OutOfMemoryError):
                raise
            # an autograd.Function that torch.func does not take, reentrant checkpoints ...
            gradient = self._by_backward(private, tensors)
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(g).to(gradient[0].device) for g in gradient])
        )

    def _by_func(self, private: PrivateCopy, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        own = {name: tensors[name] for name in private.trainable}
        sums: list[Tensor] = []
        for part, fraction in self.data.parts():

            def of(own: dict[str, Tensor], part: FixedData = part) -> Tensor:
                return mean_loss(self.loss, private.holding({**tensors, **own}), part)

            gradient: Any = torch.func.grad(of)(own)
            new = [g * fraction for g in gradient.values()]
            sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        return sums

    def _by_backward(self, private: PrivateCopy, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        module = private.holding(tensors)
        with torch.enable_grad():
            for part, fraction in self.data.parts():
                (mean_loss(self.loss, module, part) * fraction).backward()
        parameters = dict(module.named_parameters())
        found = [parameters[name] for name in private.trainable]
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in found]


def check_trainable(private: PrivateCopy) -> None:
    """Raise ValueError unless at least one parameter requires a gradient."""
    if not private.trainable:
        raise ValueError(
            "expected a module with parameters that require gradients, got none: call "
            "requires_grad_() of those that are trained"
        )

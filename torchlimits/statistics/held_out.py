"""`held_out`: the mean loss of a network on fixed data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from torchlimits.statistics.fixed_data import (
    FixedData,
    Inputs,
    Loss,
    OnData,
    check_loss,
    mean,
    mean_loss,
)
from torchlimits.statistics.of_model import Evaluation, OfModel
from torchlimits.statistics.private_copy import PrivateCopy


def held_out(loss: Loss, inputs: Inputs, targets: Tensor, batch: int | None = None) -> OfModel:
    r"""The mean loss on fixed data, :math:`\frac1n \sum_{s=1}^n \ell(f_\theta(x_s), y_s)`.

    The network is in evaluation mode. Inputs are copied, and moved to the device of the parameters;
    floats get the dtype in which the statistics get the parameters (half precision in float32).

    Cost: a forward pass of n samples a recorded step, for many steps at once by `torch.func.vmap`
    where the network allows that and memory suffices, as in `of_model`; with many samples, give a
    ``batch`` and record less often (``every``).

    Args:
        loss: ``loss(output, target)`` -> the *mean* over the samples it is given.
        inputs: ``(n, ...)``, a tuple of such tensors (the module's arguments), or a dict of them by
            the names of these arguments.
        targets: ``(n, ...)``.
        batch: how many samples the network gets at once; by default all.

    Returns:
        A statistic for `tl.track`, a scalar, as `of_model` returns it.

    Raises:
        TypeError: if the loss is not callable, or inputs or targets are not tensors.
        ValueError: if they differ in n, batch is not an int >= 1, or, at `tl.track`, the loss is
            not one number.

    Example:
        >>> import torch, torchlimits as tl
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> loss = tl.statistics.held_out(torch.nn.functional.cross_entropy, x, y)
        >>> loss.bound(torch.nn.Linear(2, 2))({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
        tensor(0.6931)
    """
    check_loss(loss)
    return _HeldOut(FixedData.with_targets(inputs, targets, batch), loss)


@dataclass(frozen=True, eq=False)
class _HeldOut(OnData):
    loss: Loss

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        def of(tensors: Mapping[str, Tensor]) -> Tensor:
            module = private.holding(tensors)
            return mean(lambda part: mean_loss(self.loss, module, part), self.data)

        return of

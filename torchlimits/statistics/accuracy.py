"""`accuracy`: the fraction of fixed data that a network classifies correctly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlimits.statistics.fixed_data import FixedData, Inputs, OnData, mean
from torchlimits.statistics.of_model import Evaluation, OfModel
from torchlimits.statistics.private_copy import PrivateCopy

_OTHERS = "take another accuracy by tl.statistics.of_model"


def accuracy(inputs: Inputs, targets: Tensor, batch: int | None = None) -> OfModel:
    r"""The fraction of fixed data that the network classifies correctly, :math:`\hat y_s = y_s`.

    With outputs ``(n, C, ...)`` of C > 1 classes and integer targets ``(n, ...)``, as
    `torch.nn.functional.cross_entropy` has them, the class is that of the largest output. With one
    output, ``(n,)`` or ``(n, 1)``, it is the output's sign: positive for targets 1, negative or 0
    for targets 0, or -1. It is NaN where an output is NaN.

    Cost: as `held_out`.

    Args:
        inputs: as in `held_out`.
        targets: the classes; with one output 0 and 1, or -1 and 1.
        batch: how many samples the network gets at once; by default all.

    Returns:
        A statistic for `tl.track`, a scalar, as `of_model` returns it.

    Raises:
        TypeError: if inputs or targets are not tensors.
        ValueError: if they differ in n, batch is not an int >= 1, or, at `tl.track`, targets do not
            fit the outputs.

    Example:
        >>> import torch, torchlimits as tl
        >>> right = tl.statistics.accuracy(torch.tensor([[1.0], [-2.0], [3.0]]), torch.ones(3))
        >>> right.bound(torch.nn.Linear(1, 1))({"weight": torch.eye(1), "bias": torch.zeros(1)})
        tensor(0.6667)
    """
    data = FixedData.with_targets(inputs, targets, batch)
    return _Accuracy(data, set(data.targets.unique().tolist()))  # type: ignore[union-attr]


@dataclass(frozen=True, eq=False)
class _Accuracy(OnData):
    classes: set[float]

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        def of(tensors: Mapping[str, Tensor]) -> Tensor:
            module = private.holding(tensors)
            return mean(lambda part: self._right(module, part), self.data)

        return of

    def _right(self, module: nn.Module, data: FixedData) -> Tensor:
        output, target = data.output(module), data.targets
        if not isinstance(output, Tensor):
            raise TypeError(
                f"expected the module to return a tensor, got {type(output).__name__}: {_OTHERS}"
            )
        assert target is not None
        hits = self._hits(output, target).to(torch.promote_types(output.dtype, torch.float32))
        return torch.where(output.isnan().any(), torch.nan, hits.mean())

    def _hits(self, output: Tensor, target: Tensor) -> Tensor:
        if output.ndim > 1 and output.shape[1] > 1 and output.shape != target.shape:
            if output.shape[:1] + output.shape[2:] != target.shape or target.is_floating_point():
                raise ValueError(
                    "expected class numbers, integers (n, ...), for outputs (n, C, ...), got "
                    f"targets {tuple(target.shape)} {target.dtype} for outputs "
                    f"{tuple(output.shape)}: {_OTHERS}"
                )
            return output.argmax(1) == target
        if output.numel() != len(output) or target.numel() != len(target):
            raise ValueError(
                "expected outputs (n, C, ...) with targets (n, ...), or one output a sample, got "
                f"outputs {tuple(output.shape)} with targets {tuple(target.shape)}: {_OTHERS}"
            )
        if not (self.classes <= {0, 1} or self.classes <= {-1, 1}):
            raise ValueError(
                "expected targets 0 and 1, or -1 and 1, for a module with one output, got "
                f"{sorted(self.classes)[:5]}: {_OTHERS}"
            )
        return (output.reshape(-1) > 0) == (target.reshape(-1) > 0)

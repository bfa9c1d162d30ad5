"""`replicate`: many independent copies of any module, in one module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state

from torchlimits import _checks
from torchlimits._dir import OwnNames
from torchlimits._stateless import called, places
from torchlimits.statistics.summary import SummaryStatistics


class Replicated(OwnNames, nn.Module):
    """R copies of a module: parameters and buffers under the same names, each ``(R, *shape)``.

    Made by `replicate`, which has an example. The forward takes inputs ``(R, ...)``, one for each
    copy, and returns outputs ``(R, ...)``, by `torch.func.vmap`.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        parameters, buffers = stack_module_state(list(modules))
        # not registered, so that names stay those of one module
        self.__dict__["_template"] = copy.deepcopy(modules[0])
        whole = copy.deepcopy(modules[0])
        stacked = {
            id(p): nn.Parameter(parameters[name].detach(), requires_grad=p.requires_grad)
            for name, p in whole.named_parameters()
        }
        # a weight that two layers share stays one weight
        for name, parameter in list(whole.named_parameters(remove_duplicate=False)):
            _replace(whole, name, stacked[id(parameter)])
        for name, buffer in buffers.items():
            _replace(whole, name, buffer)
        self._modules.update(whole._modules)
        self._parameters.update(whole._parameters)
        self._buffers.update(whole._buffers)
        self.replicas = len(modules)

    @property
    def _one(self) -> nn.Module:
        return self.__dict__["_template"]

    def forward(self, *inputs: Tensor, **options: Tensor) -> Any:
        """The outputs of all copies, ``(R, ...)``, for inputs ``(R, ...)``; dropout differs."""
        for value in (*inputs, *options.values()):
            if not isinstance(value, Tensor) or value.shape[:1] != (self.replicas,):
                what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"expected inputs of shape ({self.replicas}, ...), one for each replica, got "
                    f"{what}: expand an input that all share"
                )
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        at = places(self._one)

        def one(tensors: dict[str, Tensor], inputs: Any, options: Any) -> Any:
            return called(self._one, tensors, inputs, options, at=at)

        return torch.func.vmap(one, randomness="different")(tensors, inputs, options)

    def statistics(self, statistics: SummaryStatistics) -> SummaryStatistics:
        """Turn statistics of one module into statistics of all copies; `tl.track` calls it."""
        statistics = statistics.bound(self._one)
        parts = [*self._one.named_parameters(), *self._one.named_buffers()]
        return statistics.of_copies({name: x.ndim for name, x in parts})


def replicate(model: nn.Module | Sequence[nn.Module], replicas: int | None = None) -> Replicated:
    """One module that holds R independent copies of a module, with a leading dimension R.

    With the loss *summed* over copies, one step of an optimizer that acts entry by entry (SGD with
    all its options, Adam) is one step of each. `tl.track` records ``(runs, T, k)``.

    Args:
        model: a module, whose values all copies start from; or R modules of one architecture,
            each copy's start.
        replicas: R, with a single module.

    Raises:
        ValueError: if R is not an int >= 1, or the modules' parameters differ in name or shape.
        TypeError: if ``model`` is neither a module nor several.

    Example:
        >>> import torch
        >>> networks = [torch.nn.Linear(3, 1) for _ in range(5)]
        >>> model = replicate(networks)
        >>> model.weight.shape, model(torch.zeros(5, 7, 3)).shape
        (torch.Size([5, 1, 3]), torch.Size([5, 7, 1]))
    """
    if isinstance(model, nn.Module):
        modules = [model] * _checks.positive_int("replicas", replicas or 0)
    else:
        modules = list(model) if isinstance(model, Sequence) else []
        if not modules or not all(isinstance(one, nn.Module) for one in modules):
            raise TypeError(
                f"expected a torch.nn.Module, or a list of them, got {type(model).__name__}"
            )
    shapes = [{name: p.shape for name, p in one.state_dict().items()} for one in modules]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("expected modules of one architecture, got parameters that differ")
    try:
        return Replicated(modules)
    except RuntimeError as error:  # of torch.func.stack_module_state
        raise ValueError(
            "expected modules of one class, all in training or all in evaluation mode, with the "
            f"same parameters frozen: {error}"
        ) from error


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, value)

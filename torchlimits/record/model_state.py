"""`ModelState`: every tensor of a training that a statistic may read, by the user's own names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from torchlimits.record.own_names import is_sharded, own_name, reshard
from torchlimits.record.sources import (
    Buffer,
    Gradient,
    OptimizerState,
    Parameter,
    Shard,
    Source,
    slow_variable_of,
)
from torchlimits.statistics.slow_variable import KEY


class ModelState(Mapping[str, Tensor]):
    """The present tensors of a model and its optimizers, whole, detached, by the user's own names.

    These are the parameters; the buffers; the gradient of a parameter as ``"<name>.grad"``; what
    the optimizer keeps for a parameter, as ``"<name>.exp_avg_sq"`` and the like; and the slow
    variable of SGD's momentum or Adam's, ``"<name>.slow_variable"``. To iterate
    gives parameters and floating-point buffers; all others have to be asked for by name. What
    several processes share (DTensor: of ``fully_shard``, tensor parallelism) is gathered whenever
    it is read, by all of them together.

    Args:
        model: any module.
        optimizers: those that train it.

    Raises:
        ValueError: if the model is sharded by the first FSDP.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> state = ModelState(torch.nn.DataParallel(model), [optimizer])
        >>> list(state)  # doctest: +NORMALIZE_WHITESPACE
        ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
        >>> state["1.num_batches_tracked"], state["0.bias.grad"], state["0.bias.exp_avg"]
        (tensor(0), tensor([0., 0.]), tensor([0., 0.]))
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> None:
        reshard(model)
        self.model, self.optimizers = model, list(optimizers)
        #: the parameters as they are in the model, sharded ones in shards
        self.parameters: dict[str, nn.Parameter] = {}
        self._places: dict[str, tuple[dict[str, Any], str]] = {}
        self._paths: dict[str, str] = {}
        for path, parameter in model.named_parameters():
            self.parameters[self._noted(path, "_parameters")] = parameter
        for path, _ in model.named_buffers():
            self._noted(path, "_buffers")
        #: whether a parameter has to be gathered
        self.sharded = any(is_sharded(p) for p in self.parameters.values())

    def _noted(self, path: str, kind: str) -> str:
        owner, _, leaf = path.rpartition(".")
        name = own_name(self.model, path)
        self._places[name] = (getattr(self.model.get_submodule(owner), kind), leaf)
        self._paths[name] = path
        return name

    def source(self, name: str) -> Source:
        """Where the tensor of a name is found, now and after later steps.

        Raises:
            KeyError: if there is none of that name.
        """
        if name in self.parameters:
            parameter = self.parameters[name]
            shared = is_sharded(parameter)
            return Shard(name, parameter) if shared else Parameter(name, *self._places[name])
        if name in self._places:
            return Buffer(name, *self._places[name])
        owner, _, key = name.rpartition(".")
        if owner not in self.parameters:
            raise KeyError(name)
        parameter = self.parameters[owner]
        if key == "grad":
            return Gradient(name, parameter)
        for optimizer in self.optimizers:
            if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                if key == KEY:
                    return slow_variable_of(name, optimizer, parameter)
                return OptimizerState(name, optimizer, parameter, key)
        raise KeyError(name)

    def __getitem__(self, name: str) -> Tensor:
        """Raise KeyError for an unknown name, ValueError for a tensor on the meta device."""
        return self.source(name).whole()

    def __iter__(self) -> Iterator[str]:
        for name, (tensors, leaf) in self._places.items():
            if name in self.parameters or tensors[leaf].is_floating_point():
                yield name

    def __len__(self) -> int:
        return len(list(iter(self)))

    def live(self, *, optimizers: bool = True) -> dict[str, Tensor]:
        """All tensors that the training has now, those of the ``optimizers`` included."""
        tensors = {name: owner[leaf] for name, (owner, leaf) in self._places.items()}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                tensors[f"{name}.grad"] = parameter.grad
            for optimizer in self.optimizers if optimizers else []:
                for key, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        tensors[f"{name}.{key}"] = value
        return tensors

    def links(self, names: Iterable[str]) -> list[tuple[dict[str, Any], str, Any]]:
        """(where, name, what is there) of all modules on the way to tensors, and of parameters."""
        found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
        for name in names:
            # gradients and optimizer state are on the way of their parameter
            own = name if name in self._paths else name.rpartition(".")[0]
            owner = self.model
            for module in self._paths[own].split(".")[:-1]:
                found[id(owner), module] = (owner._modules, module, owner._modules[module])  # pyright: ignore[reportPrivateUsage]
                owner = owner.get_submodule(module)
            if own in self.parameters:
                place, leaf = self._places[own]
                found[id(owner), leaf] = (place, leaf, place[leaf])
        return list(found.values())

    def places(self) -> list[dict[str, Any]]:
        """The dicts in which all modules keep what they consist of."""
        return [
            place
            for module in self.model.modules()
            for place in (module._modules, module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
        ]

    @property
    def leads(self) -> bool:
        """Whether this is the first of the processes that train the model, or the only one."""
        shared: list[Any] = [p for p in self.parameters.values() if is_sharded(p)]
        groups = [
            module.process_group
            for module in self.model.modules()
            if isinstance(module, DistributedDataParallel)
        ]
        return not any(any(one.device_mesh.get_coordinate()) for one in shared) and not any(
            distributed.get_rank(group) for group in groups
        )

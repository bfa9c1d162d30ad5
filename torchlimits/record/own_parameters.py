"""`OwnParameters`: the parameters of a model whole, by the names that its user gave them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: what torch.compile, Fabric and activation checkpointing call the module that they wrap
_INSIDE = ("_orig_mod", "_forward_module", "_checkpoint_wrapped_module")
#: what the first FSDP does
_FLATTENED = "_fsdp_wrapped_module"


class OwnParameters(Mapping[str, Tensor]):
    """The parameters of a model, whole and by the user's own names, whatever is around it.

    Names have no ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile) or
    ``_forward_module.`` (Fabric) in them. A parameter that several processes share (DTensor: of
    ``fully_shard``, tensor parallelism) is gathered whenever it is read, by all of them together.

    Args:
        model: any module.
        names: the parameters that matter; by default all of them.

    Raises:
        ValueError: if the model is sharded by the first FSDP.

    Example:
        >>> import torch
        >>> wrapped = torch.nn.DataParallel(torch.nn.Linear(3, 2))
        >>> [name for name, _ in wrapped.named_parameters()]
        ['module.weight', 'module.bias']
        >>> list(OwnParameters(wrapped))
        ['weight', 'bias']
    """

    def __init__(self, model: nn.Module, names: Iterable[str] | None = None) -> None:
        _reshard(model)
        self._model = model
        paths = {_own_name(model, path): path for path, _ in model.named_parameters()}
        if names is not None:
            paths = {name: paths[name] for name in names}
        #: as they are in the model, sharded ones in shards
        self.tensors: dict[str, Tensor] = {
            name: model.get_parameter(path) for name, path in paths.items()
        }
        #: whether one has to be gathered
        self.sharded = any(_is_sharded(p) for p in self.tensors.values())
        # fully_shard itself replaces sharded ones, see _reshard
        self._links = [] if self.sharded else _links(model, paths.values())

    def __getitem__(self, name: str) -> Tensor:
        parameter = self.tensors[name]
        if parameter.is_meta:
            raise ValueError(
                f"expected parameters with values, got {name!r} on the meta device: call "
                "model.to_empty(device=...) and initialise it, or remove the tracker before"
            )
        return whole(parameter)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def select(self, names: Iterable[str]) -> OwnParameters:
        """The parameters of these names only."""
        return OwnParameters(self._model, names)

    def replaced(self) -> bool:
        """Whether the model now has other tensors, or other layers, in the place of these."""
        # at every step: any() of a generator takes twice as long
        for children, name, child in self._links:  # noqa: SIM110
            if children.get(name) is not child:
                return True
        return False

    def versions(self) -> dict[str, int]:
        """How often each parameter was changed in place."""
        # tensors of inference mode are not counted
        return {n: 0 if p.is_inference() else p._version for n, p in self.tensors.items()}

    @property
    def leads(self) -> bool:
        """Whether this is the first of the processes that train the model, or the only one."""
        meshes = [p.device_mesh for p in self.tensors.values() if _is_sharded(p)]  # type: ignore[attr-defined]
        groups = [
            module.process_group
            for module in self._model.modules()
            if isinstance(module, DistributedDataParallel)
        ]
        return not any(any(mesh.get_coordinate()) for mesh in meshes) and not any(
            distributed.get_rank(group) for group in groups
        )


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter; if processes share it, all of them have to ask at the same time."""
    parameter = parameter.detach()
    return parameter.full_tensor() if _is_sharded(parameter) else parameter  # type: ignore[attr-defined]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module."""
    while (inside := _inside(model)) is not None:
        model = model.get_submodule(inside)
    return model


def _is_sharded(parameter: Tensor) -> bool:
    # a DTensor: importing it to ask would take half a second
    return hasattr(parameter, "full_tensor")


def _reshard(model: nn.Module) -> None:
    """Have the trained parameters in their place: a forward pass under fully_shard leaves others.

    Those come back when they are needed; `state_dict` does the same.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return  # then there is no fully_shard, and the import would take half a second
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _inside(module: nn.Module) -> str | None:
    """Where a wrapper has the module that it wraps, or None."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    return next((name for name in _INSIDE if name in module._modules), None)  # pyright: ignore[reportPrivateUsage]


def _own_name(model: nn.Module, path: str) -> str:
    """The name that a parameter has in the user's own modules."""
    kept, owner = [], model
    *modules, leaf = path.split(".")
    if _FLATTENED in modules:
        raise ValueError(
            "expected a model sharded by torch.distributed.fsdp.fully_shard, got one in the older "
            "FullyShardedDataParallel, which keeps pieces of flattened parameters: use fully_shard"
        )
    for name in modules:
        if name != _inside(owner):
            kept.append(name)
        owner = owner.get_submodule(name)
    return ".".join([*kept, leaf])


def _links(model: nn.Module, paths: Iterable[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """(where, name, what is there) of all modules on the way to the parameters, and of these."""
    found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
    for path in paths:
        owner = model
        *modules, leaf = path.split(".")
        for name in modules:
            found[id(owner), name] = (owner._modules, name, owner._modules[name])  # pyright: ignore[reportPrivateUsage]
            owner = owner.get_submodule(name)
        found[id(owner), leaf] = (owner._parameters, leaf, owner._parameters[leaf])  # pyright: ignore[reportPrivateUsage]
    return list(found.values())

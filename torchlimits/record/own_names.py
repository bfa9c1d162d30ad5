"""The names that the user gave a model's tensors, whatever has been wrapped around it since."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

#: what torch.compile, Fabric and activation checkpointing call the module that they wrap
_INSIDE = ("_orig_mod", "_forward_module", "_checkpoint_wrapped_module")
#: what the first FSDP does
_FLATTENED = "_fsdp_wrapped_module"


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module.

    Example:
        >>> import torch
        >>> unwrapped(torch.nn.DataParallel(torch.nn.Linear(3, 2)))
        Linear(in_features=3, out_features=2, bias=True)
    """
    while (inside := _inside(model)) is not None:
        model = model.get_submodule(inside)
    return model


def own_name(model: nn.Module, path: str) -> str:
    """The name that a tensor has in the user's own modules.

    There is no ``module.`` (DistributedDataParallel), ``_orig_mod.`` (torch.compile) or
    ``_forward_module.`` (Fabric) in it.

    Raises:
        ValueError: if the model is sharded by the first FSDP.

    Example:
        >>> import torch
        >>> own_name(torch.nn.DataParallel(torch.nn.Linear(3, 2)), "module.weight")
        'weight'
    """
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


def _inside(module: nn.Module) -> str | None:
    """Where a wrapper has the module that it wraps, or None."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    return next((name for name in _INSIDE if name in module._modules), None)  # pyright: ignore[reportPrivateUsage]


def is_sharded(tensor: Tensor) -> bool:
    """Whether several processes share a tensor."""
    # a DTensor: importing it to ask would take half a second
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; if processes share it, all of them have to ask for it at the same time."""
    tensor = tensor.detach()
    shared: Any = tensor
    return shared.full_tensor() if is_sharded(tensor) else tensor


def reshard(model: nn.Module) -> None:
    """Put the trained parameters in their place, where a forward pass of fully_shard leaves others.

    The others come back when they are needed; `state_dict` does the same.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return  # then there is no fully_shard, and the import would take half a second
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

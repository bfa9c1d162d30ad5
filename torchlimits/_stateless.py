"""Modules called with other parameters and buffers, also where parts have several names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


def places(module: nn.Module) -> dict[str, str]:
    """Map every place of a parameter or buffer to its name in ``named_parameters()``.

    A part that has two names gives one place for each of its tensors, as it is one part; a tensor
    that two parts share is in two places.

    Args:
        module: whose tensors they are.

    Example:
        >>> shared, other = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        >>> other.weight = shared.weight
        >>> places(nn.Sequential(shared, other, shared))
        {'0.weight': '0.weight', '0.bias': '0.bias', '1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for prefix, part in module.named_modules():
        own = [
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            place = f"{prefix}.{name}" if prefix else name
            found[place] = first.setdefault(id(tensor), place)
    return found


def called(
    module: nn.Module, tensors: Mapping[str, Tensor], inputs: Any,
    options: dict[str, Any] | None = None, *, at: Mapping[str, str] | None = None,
) -> Any:  # fmt: skip
    """What a module returns with other tensors in place of its own.

    `torch.func.functional_call`, left to find the names itself, replaces the tensors of a part that
    has two names twice, and then puts the first replacement back instead of what was there.

    Args:
        module: the module, which is the same afterwards.
        tensors: the replacements by the names that ``named_parameters()`` and ``named_buffers()``
            have for them; all other tensors stay as they are.
        inputs: the positional arguments.
        options: the keyword arguments.
        at: the module's `places`, if they are known.

    Example:
        >>> import torch
        >>> part = nn.Linear(1, 1, bias=False)
        >>> module, weight = nn.Sequential(part, part), part.weight
        >>> called(module, {"0.weight": torch.full((1, 1), 3.0)}, (torch.ones(1, 1),)).item()
        9.0
        >>> part.weight is weight
        True
    """
    at = places(module) if at is None else at
    everywhere = {place: tensors[name] for place, name in at.items() if name in tensors}
    return functional_call(module, everywhere, inputs, options, tie_weights=False)

"""`plain`: results as numbers, texts, tensors, and lists and dicts of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def plain(value: Any) -> Any:
    """Return a result in types that a file can hold; a dataclass becomes a dict of its fields.

    Args:
        value: the result; tensors are copied to the CPU, without their graph.

    Raises:
        TypeError: if it is, or contains, anything else.

    Example:
        >>> import torchlimits as tl
        >>> plain({"found": (tl.success.Proportion(3, 4), None)})
        {'found': [{'successes': 3, 'trials': 4}, None]}
    """
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(
        "expected function to return numbers, texts, tensors, lists, dicts with names, or "
        f"dataclasses of these, which a file can hold, got {type(value).__name__}: return what "
        "you need of it"
    )

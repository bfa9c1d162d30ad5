"""`identity`: what tells a function and its settings from others, in a form that JSON can hold."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def identity(value: object, inside: frozenset[int] = frozenset()) -> Any:
    """Describe a function, or a setting of one, so that another has another description.

    A function is described by its name, its code, its defaults and what it encloses; a
    `functools.partial` by its function and arguments; a tensor by its content; a problem by what
    its ``describe()`` says. Other objects are known by their type alone, and global variables that
    a function reads are not looked at.

    Args:
        value: the function or setting.
        inside: the ids of what is being described already.

    Example:
        >>> from functools import partial
        >>> identity(partial(max, 1, key=None))
        {'function': 'builtins.max', 'arguments': [1], 'keywords': {'key': None}}
        >>> identity(lambda x: x + 1) == identity(lambda x: x + 2)
        False
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in inside:
        return "itself"
    within = functools.partial(identity, inside=inside | {id(value)})
    if isinstance(value, (Tensor, np.ndarray)):
        return _content(torch.as_tensor(value).detach().cpu())
    if isinstance(value, functools.partial):
        own = {"arguments": within(value.args), "keywords": within(value.keywords)}
        whole = within(value.func)
        return {**(whole if isinstance(whole, dict) else {"function": whole}), **own}
    if isinstance(value, MethodType):
        return {"method": within(value.__func__), "of": within(value.__self__)}
    if isinstance(value, FunctionType):
        parts = [value.__defaults__, value.__kwdefaults__, _enclosed(value)]
        return {"function": _name(value), "code": _code(value.__code__), "with": within(parts)}
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return _name(value)
    if isinstance(value, Mapping):
        return {str(key): within(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [within(one) for one in value]
    return {"type": _name(type(value)), **_told(value, within)}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _told(value: Any, within: Any) -> dict[str, Any]:
    """What an object says of itself."""
    if callable(getattr(value, "describe", None)):
        return {"describes": within(value.describe())}
    if dataclasses.is_dataclass(value):
        return {f.name: within(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {}


def _enclosed(function: FunctionType) -> list[Any]:
    found: list[Any] = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # it is not filled yet
            found.append(None)
    return found


def _content(tensor: Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {_digest([data])}"


def _code(code: CodeType) -> str:
    """A digest of what a function does: neither of its lines nor of its comments."""
    inner = [
        _code(constant) if isinstance(constant, CodeType) else repr(constant)
        for constant in code.co_consts
    ]
    parts = [*inner, *code.co_names, *code.co_varnames, *code.co_freevars]
    return _digest([code.co_code, *(part.encode(errors="replace") for part in parts)])


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

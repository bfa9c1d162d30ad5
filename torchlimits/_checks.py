"""Input checks and warnings that several modules make: what was expected, what came, what to do."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

#: what numpy cuts off the end of a text, what csv does not quote, and what UTF-8 cannot hold
_NO_TEXT = re.compile("[\0\r\ud800-\udfff]")

#: the package, and what checks its arguments in tests
_NOT_THE_USERS = {"torchlimits", "jaxtyping", "beartype"}


def warn(message: str) -> None:
    """Give a RuntimeWarning in the name of the calling module: no user's line is at fault."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def warn_user(message: str) -> None:
    """Give a UserWarning that points to the user's own line, the first one outside the package."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_back and _package_of(frame) in _NOT_THE_USERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def _package_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".")[0]


def positive(name: str, value: float, hint: str = "") -> float:
    """A finite number > 0, or ValueError (TypeError if it is not a number)."""
    number = _number(name, value, hint)
    return _in_range(name, number, 0 < number < math.inf, "a finite number > 0", hint)


def non_negative(name: str, value: float, hint: str = "") -> float:
    """A finite number >= 0, or ValueError (TypeError if it is not a number)."""
    number = _number(name, value, hint)
    return _in_range(name, number, 0 <= number < math.inf, "a finite number >= 0", hint)


def graph_or_positive(name: str, value: float | Tensor, hint: str = "") -> float | Tensor:
    """Check `positive`; a tensor of shape () that requires a gradient stays one, in float64."""
    if not requires_grad(value):
        return positive(name, plain(value), hint)
    positive(name, plain(kept(name, value)), hint)
    return kept(name, value)


def graph_or_non_negative(name: str, value: float | Tensor, hint: str = "") -> float | Tensor:
    """Check `non_negative`; a tensor of shape () that requires a gradient stays one."""
    if not requires_grad(value):
        return non_negative(name, plain(value), hint)
    non_negative(name, plain(kept(name, value)), hint)
    return kept(name, value)


def requires_grad(value: object) -> bool:
    """Whether a value is a tensor that requires a gradient."""
    return isinstance(value, Tensor) and value.requires_grad


def plain(value: Any) -> Any:
    """A tensor of one number that requires a gradient as a float; anything else as it is."""
    if requires_grad(value) and value.numel() == 1:
        return float(value.detach())
    return value


def kept(name: str, value: Any) -> Tensor:
    """A tensor that requires a gradient with its graph, in float64 on the CPU, of shape ()."""
    if value.ndim:
        raise ValueError(f"expected {name} of shape (), one number, got {tuple(value.shape)}")
    return value.to("cpu", torch.float64)


def positive_int(name: str, value: int) -> int:
    """An int >= 1, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected {name} to be an int >= 1, got {value!r}")
    return value


def float64(name: str, value: object, *, graph: bool = False) -> Tensor:
    """A float64 tensor on the CPU made from a tensor, array or nested list, or TypeError.

    With ``graph`` it keeps the graph that it may have.
    """
    try:
        # neither the default device nor the precision of the default dtype applies to the value
        tensor = value if isinstance(value, Tensor) else _on_cpu(value)
        tensor = tensor if graph else tensor.detach()
        if not tensor.is_complex():
            return tensor.to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"expected {name} as a tensor or numbers in lists, got {value!r}: {error}"
        ) from error
    raise TypeError(f"expected {name} as real numbers, got {tensor.dtype}: take .real or .abs()")


def _on_cpu(value: object) -> Tensor:
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        return torch.as_tensor(np.asarray(value), device="cpu")
    try:
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except TypeError:  # complex numbers, or no numbers at all
        return torch.as_tensor(value, device="cpu")


def names(values: Iterable[object]) -> list[str]:
    """Names that every file can hold, or TypeError or ValueError."""
    result: list[str] = []
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"expected names as str, got {value!r}: give str(...)")
        if _NO_TEXT.search(value):
            raise ValueError(
                "expected names without NUL, carriage returns and lone surrogates, "
                f"got {value!r}: rename it"
            )
        result.append(value)
    return result


def json_text(name: str, value: Mapping[str, Any]) -> str:
    """A dict as JSON, or TypeError."""
    try:
        return json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"expected {name} as a dict of numbers, texts, lists and dicts, as JSON has them, "
            f"got {value!r}: {error}"
        ) from error


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """The names, shapes and types of the first twenty tensors, for a message."""
    few = itertools.islice(tensors.items(), 20)
    told = [f"{n} {tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for n, x in few]
    rest = len(tensors) - len(told)
    return ", ".join([*told, f"{rest} others"] if rest else told)


def device(value: torch.device | str) -> torch.device:
    """A device that torch knows, or ValueError."""
    try:
        result = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"expected device as 'cpu', 'cuda', 'cuda:1' ..., got {value!r}"
        ) from error
    if result.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"expected a device that is there, got {value!r}: torch sees no CUDA here")
    return result


def path(name: str, value: object) -> None:
    """None or a path, or TypeError."""
    if not isinstance(value, (str, os.PathLike, type(None))):
        raise TypeError(f"expected {name} as a path or None, got {value!r}: give a str or a Path")


def increasing(name: str, values: object) -> list[int]:
    """Several ints >= 1 that increase, or TypeError or ValueError."""
    if not isinstance(values, Iterable):
        raise TypeError(
            f"expected {name} as several ints, got {type(values).__name__}: give a list of them"
        )
    found = [positive_int(name, value) for value in values]
    if any(b <= a for a, b in itertools.pairwise(found)):
        raise ValueError(f"expected increasing {name}, got {found}")
    return found


def generator(value: torch.Generator | None, device: torch.device) -> None:
    """None, or a torch.Generator on the device; otherwise TypeError or ValueError."""
    if not isinstance(value, (torch.Generator, type(None))):
        raise TypeError(f"expected a torch.Generator or None, got {type(value).__name__}")
    if value is not None and value.device.type != device.type:
        raise ValueError(
            f"expected a generator on the device {device}, got one on {value.device}: "
            f"make it with torch.Generator(device={str(device)!r})"
        )


def all_finite(values: Tensor) -> bool:
    """Whether all numbers are finite, mostly without an array of their size."""
    # beside infinity or NaN a sum is not finite; that of large numbers need not be
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def ordered_times(times: object) -> Tensor:
    """Times as a float64 tensor (T,) that may repeat and do not fall, or ValueError."""
    result = float64("times", times)
    if result.ndim != 1 or len(result) == 0 or not all_finite(result):
        raise ValueError(
            f"expected times to be a non-empty list of finite numbers, shape (T,), got "
            f"{'non-finite values' if result.ndim == 1 and len(result) else tuple(result.shape)}"
        )
    never_fall("times", result)
    return result


def never_fall(name: str, values: Tensor) -> None:
    """Numbers (T,) none of which is less than the one before, or ValueError."""
    falls = values[1:] < values[:-1]
    if bool(falls.any()):
        i = int(falls.nonzero()[0]) + 1
        raise ValueError(
            f"expected {name} that do not fall, got {name}[{i}] = {values[i].item()!r} after "
            f"{values[i - 1].item()!r}: sort the rows"
        )


def statistics(u: object, k: int) -> Tensor:
    """Finite statistics ``(..., k)`` in float64, on their device, or ValueError."""
    if not isinstance(u, Tensor) or u.ndim == 0 or u.shape[-1] != k:
        what = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
        raise ValueError(f"expected a tensor of statistics of shape (..., {k}), got {what}")
    if not bool(u.isfinite().all()):
        raise ValueError("expected finite statistics, got NaN or infinity in them")
    return u.detach().double()


def _number(name: str, value: object, hint: str) -> float:
    if requires_grad(value):
        raise TypeError(
            f"expected {name} as a number, got a tensor that requires a gradient, which does not "
            "flow through it: give it without one, x.detach()"
        )
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"expected {name} to be a number, got {value!r}{hint and ': ' + hint}")
    return float(value)


def _in_range(name: str, value: float, holds: bool, expected: str, hint: str) -> float:
    if not holds:
        raise ValueError(f"expected {name} to be {expected}, got {value!r}{hint and ': ' + hint}")
    return value

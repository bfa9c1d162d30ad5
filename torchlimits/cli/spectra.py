"""`spectrum_of`: the covariance that an option of the command line stands for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchlimits.problems.data.covariance import Covariance

_FORMS = (
    "0.5:0.4,1:0.4,4:0.2 (eigenvalue:fraction), power:1 (the i-th of i^(-1), scaled to mean 1) or "
    "a file .npy, .npz or .pt with a spectrum (N,) or a matrix (N, N)"
)
_FILES = {".npy", ".npz", ".pt"}


def is_file(text: str) -> bool:
    """Whether a spectrum is given by a file.

    Args:
        text: as on the command line.

    Example:
        >>> is_file("power:1"), is_file("lambda.npy")
        (False, True)
    """
    return Path(text).suffix in _FILES


def spectrum_of(text: str, dim: int) -> Covariance:
    """The covariance of inputs that a text stands for.

    Args:
        text: ``0.5:0.4,1:0.4,4:0.2``, ``power:1``, or the path of a file.
        dim: N.

    Raises:
        ValueError: if the text is of none of these forms, numbers are out of their range, or a file
            is not there or has another dimension.

    Example:
        >>> spectrum_of("0.5:0.5,1.5:0.5", dim=10)
        Covariance(dim=10, 2 levels from 0.5 to 1.5, trace 10)
        >>> spectrum_of("power:1", dim=100)
        Covariance(dim=100, 100 levels from 0.193 to 19.3, trace 100)
    """
    from torchlimits.problems.data.covariance import Covariance

    if is_file(text):
        given = _loaded(Path(text))
    elif text.startswith("power:"):
        given = _power_law(text, dim)
    else:
        given = [_pair(part, text) for part in text.split(",")]
    try:
        return Covariance.of(given, dim)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--spectrum {text}: {error}") from error


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"expected --spectrum as {_FORMS}, got {whole}: {text!r} is no number")
    return number


def _pair(part: str, whole: str) -> tuple[float, float]:
    value, colon, fraction = part.partition(":")
    if not colon:
        raise ValueError(f"expected --spectrum as {_FORMS}, got {whole}")
    return _number(value, whole), _number(fraction, whole)


def _power_law(text: str, dim: int) -> Any:
    import torch

    exponent = _number(text.partition(":")[2], text)
    if exponent < 0:
        raise ValueError(f"expected --spectrum power:EXPONENT with an exponent >= 0, got {text}")
    values = torch.arange(1, dim + 1, dtype=torch.float64) ** -exponent
    return values / values.mean()


def _loaded(path: Path) -> Any:
    """The one array of a file."""
    import numpy as np
    import torch

    if not path.is_file():
        raise ValueError(f"expected --spectrum as {_FORMS}, got {path}: there is no such file")
    try:
        if path.suffix == ".pt":
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = np.load(path, allow_pickle=False)
            if path.suffix == ".npz":
                found = {name: found[name] for name in found.files}
    except Exception as error:
        reason = re.split(r"[.\n]", str(error))[0]
        raise ValueError(
            f"expected an array in {path} for --spectrum, but it cannot be read: {reason}"
        ) from error
    if isinstance(found, dict):
        if len(found) != 1:
            raise ValueError(
                f"expected one array in {path} for --spectrum, got {len(found)}: "
                f"{', '.join(map(str, found))}"
            )
        (found,) = found.values()
    array = torch.as_tensor(found) if isinstance(found, np.ndarray | torch.Tensor) else None
    if array is None or tuple(array.shape) not in {(*array.shape[:1],), 2 * array.shape[:1]}:
        what = type(found).__name__ if array is None else f"shape {tuple(array.shape)}"
        raise ValueError(
            f"expected a spectrum (N,) or a matrix (N, N) in {path} for --spectrum, got {what}"
        )
    return array

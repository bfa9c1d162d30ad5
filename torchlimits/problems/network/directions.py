"""Orthonormal directions, and the coordinates of a mixture's means along them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks

#: orthonormality and "in the span" are checked to this
_TOLERANCE = 1e-6


def unit_directions(
    count: int, dim: int, kind: str, generator: torch.Generator | None
) -> Float[Tensor, "count dim"]:
    """Orthonormal rows: the first axes (``"axis"``), or uniformly random ones (``"random"``)."""
    _checks.positive_int("dim", dim)
    if dim < count:
        raise ValueError(f"expected dim >= {count}, the number of directions, got {dim}")
    if kind == "axis":
        return torch.eye(count, dim, dtype=torch.float64, device="cpu")
    if kind == "random":
        normal = torch.randn(dim, count, generator=generator, dtype=torch.float64, device="cpu")
        return torch.linalg.qr(normal).Q.mT.contiguous()
    raise ValueError(f"expected directions to be 'axis' or 'random', got {kind!r}")


def distinct_up_to_sign(means: Float[Tensor, "A N"]) -> Float[Tensor, "d N"]:
    """The means that are not zero, each once, and +c and -c counted once.

    Raises:
        ValueError: if all means are zero.
    """
    kept: list[Tensor] = []
    for mean in means:
        twin = any((mean - k).norm() < _TOLERANCE or (mean + k).norm() < _TOLERANCE for k in kept)
        if not twin and mean.norm() > _TOLERANCE:
            kept.append(mean)
    if not kept:
        raise ValueError("expected at least one mean that is not zero, or directions=")
    return torch.stack(kept)


def coordinates_of(means: Float[Tensor, "A N"], directions: Tensor) -> Float[Tensor, "A d"]:
    """The means in the basis of the directions, shape ``(d, N)``.

    Raises:
        ValueError: if the directions are not orthonormal, or the means not in their span.
    """
    if directions.ndim != 2 or directions.shape[1] != means.shape[1]:
        raise ValueError(
            f"expected directions of shape (d, {means.shape[1]}), got {tuple(directions.shape)}"
        )
    if len(directions) == 0 and not bool(means.any()):
        return means[:, :0]
    eye = torch.eye(len(directions), dtype=directions.dtype, device=directions.device)
    defect = (directions @ directions.mT - eye).abs().max()
    if not float(defect) < _TOLERANCE:
        raise ValueError(
            f"expected means along orthonormal directions, got a Gram matrix {float(defect):.2g} "
            "away from the identity: scale the means to length 1 and make them orthogonal, or "
            "give orthonormal rows that span them as directions="
        )
    coordinates = means @ directions.mT
    outside = (means - coordinates @ directions).norm(dim=1).max()
    if float(outside) > _TOLERANCE:
        raise ValueError(
            f"expected means in the span of the directions, got one {float(outside):.2g} outside: "
            "add the missing direction"
        )
    return coordinates

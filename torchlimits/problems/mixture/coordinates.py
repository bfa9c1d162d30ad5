"""Coordinates of a mixture: its means along orthonormal directions, and the names of u."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks, _linalg
from torchlimits.statistics import gram, overlaps, second_layer
from torchlimits.statistics.summary import SummaryStatistics

#: orthonormality and "in the span" are checked to this
_TOLERANCE = 1e-6


def mixture_names(width: int, directions: int) -> list[str]:
    """v[i], m[i,j], R[i,j] (i <= j) of K neurons and d directions, in the order of u.

    Example:
        >>> mixture_names(2, 1)
        ['v[0]', 'v[1]', 'm[0,0]', 'm[1,0]', 'R[0,0]', 'R[0,1]', 'R[1,1]']
    """
    neurons = range(width)
    return [
        *(f"v[{i}]" for i in neurons),
        *(f"m[{i},{j}]" for i in neurons for j in range(directions)),
        *(f"R[{i},{j}]" for i in neurons for j in range(i, width)),
    ]


def split(
    u: Float[Tensor, "*batch k"], width: int, directions: int
) -> tuple[Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"], Float[Tensor, "*batch K K"]]:
    """The statistics u as v, m and the full symmetric R, in the order of `mixture_names`."""
    K, d = width, directions
    v, m, upper = u.split([K, K * d, K * (K + 1) // 2], dim=-1)
    return v, m.unflatten(-1, (K, d)), _linalg.unpacked(upper, K)


def join(
    v: Float[Tensor, "*batch K"], m: Float[Tensor, "*batch K d"], R: Float[Tensor, "*batch K K"]
) -> Float[Tensor, "*batch k"]:
    """The inverse of `split`."""
    return torch.cat([v, m.flatten(-2), _linalg.packed(R)], dim=-1)


def mixture_statistics(directions: Float[Tensor, "d N"]) -> SummaryStatistics:
    """The statistics (v, m, R) of a `TwoLayerNetwork`."""
    return SummaryStatistics(
        {
            "v": second_layer("second.weight"),
            "m": overlaps("first.weight", directions),
            "R": gram("first.weight", perpendicular_to=directions),
        },
        symmetric=["R"],
        parameter_dims={"first.weight": 2, "second.weight": 2},
    )


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

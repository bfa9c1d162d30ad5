"""`central_differences`: derivatives of averages whose nodes stay the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def central_differences(
    velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"], steps: Float[Tensor, "S k"]
) -> Float[Tensor, "S k k"]:
    """The Jacobian at each of S points, all of them in one evaluation.

    Args:
        velocity: ``(rows, k)`` -> ``(rows, k)``, row by row.
        u: the points.
        steps: how far each statistic is moved, at each point.

    Example:
        >>> import torch
        >>> u = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> central_differences(lambda u: u**2, u, torch.full_like(u, 0.5))
        tensor([[[2., 0.],
                 [0., 4.]]], dtype=torch.float64)
    """
    with torch.no_grad():
        shift = torch.diag_embed(steps)
        ends = torch.stack([u[:, None] + shift, u[:, None] - shift])
        above, below = velocity(ends.flatten(0, 2)).reshape(ends.shape)
    return ((above - below) / (2 * steps[..., None])).mT

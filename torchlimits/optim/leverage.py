"""`axes_in`: coordinates of x that lie in the span of the directions."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

#: a coordinate with more leverage is an axis
_AXIS = 1 - 1e-6
#: a coordinate with less is one of many
_SPREAD = 0.02


def axes_in(
    directions: Float[Tensor, "d N"],
) -> tuple[Int[Tensor, " J"], Float[Tensor, "d J"]]:
    r"""The coordinates j whose axis is in the span of the directions e_a.

    The leverage of a coordinate is :math:`l_j = \sum_a e_{aj}^2`. An optimizer that scales entries
    one by one treats an axis (leverage 1) by a second moment of its own, and coordinates that have
    next to nothing of the directions all alike; in between neither is right, and the error is
    about 0.3 l_j.

    Args:
        directions: orthonormal rows, ``(d, N)``.

    Returns:
        The numbers of the coordinates, and their axes in the basis of the directions.

    Raises:
        ValueError: if a coordinate is neither an axis nor spread; the message has its number.

    Example:
        >>> import torch
        >>> places, axes = axes_in(torch.eye(2, 5)[1:])
        >>> places, axes
        (tensor([1]), tensor([[1.]]))
        >>> axes_in(torch.full((1, 4), 0.5))
        Traceback (most recent call last):
        ValueError: expected directions that lie on axes or are spread over many coordinates, ...
    """
    leverage = directions.square().sum(0)
    between = ((leverage >= _SPREAD) & (leverage <= _AXIS)).nonzero().flatten()
    if len(between):
        j = int(between[0])
        raise ValueError(
            "expected directions that lie on axes or are spread over many coordinates, as the "
            f"optimizer scales coordinates one by one, got coordinate {j} with leverage "
            f"{float(leverage[j]):.3g} (sum_a e_aj^2; at most {_SPREAD} or at least 1 - 1e-6): "
            f"the prediction would be off by about {0.3 * float(leverage[j]):.2g}. Rotate the "
            "data, or take SGD, which does not see axes"
        )
    places = (leverage > _AXIS).nonzero().flatten()
    return places, directions[:, places]

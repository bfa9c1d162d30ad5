"""The layout of the statistics (v, m, R) of a two-layer network without biases."""

from __future__ import annotations

from torchlimits.problems.network.layout import Layout


def mixture_layout(width: int, directions: int) -> Layout:
    """v[i], m[i,j], R[i,j] (i <= j) of K neurons and d directions, in the order of u.

    Args:
        width: K.
        directions: d.

    Example:
        >>> mixture_layout(2, 1).names
        ['v[0]', 'v[1]', 'm[0,0]', 'm[1,0]', 'R[0,0]', 'R[0,1]', 'R[1,1]']
    """
    row = "second.weight"
    return Layout({row: (1, width)}, width=width, directions=directions, called={row: "v"})

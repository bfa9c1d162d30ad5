"""Coordinates of a mixture: its means along orthonormal directions, and the names of u."""

from __future__ import annotations


def mixture_names(width: int, directions: int) -> list[str]:
    """v[i], m[i,j], R[i,j] (i <= j), in the order of u.

    Args:
        width: K.
        directions: d.

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

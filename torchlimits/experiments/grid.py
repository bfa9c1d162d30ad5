"""`Grid`: the points of a sweep, every combination of the values of its axes."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

#: a value of an axis
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Grid:
    """Axes with values; of the points, the last axis changes fastest.

    Attributes:
        axes: the names and values.

    Example:
        >>> grid = Grid.of({"snr": [1.0, 2.0], "width": [2, 4]})
        >>> grid.points()[1], grid.shape
        ({'snr': 1.0, 'width': 4}, (2, 2))
    """

    axes: dict[str, list[Value]]

    @classmethod
    def of(cls, grid: object) -> Grid:
        """Return the grid that a user has given.

        Raises:
            TypeError: if it is not a dict of names and values.
            ValueError: if it, or an axis, is empty, or values repeat or are NaN.
        """
        if not isinstance(grid, Mapping) or not all(isinstance(name, str) for name in grid):
            raise TypeError(
                'expected grid as a dict of names and their values, such as {"snr": [1.0, 2.0]}, '
                f"got {grid!r}"
            )
        if not grid:
            raise ValueError("expected grid with one axis at least, got an empty one")
        return cls({str(name): _values(str(name), values) for name, values in grid.items()})

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return tuple(len(values) for values in self.axes.values())

    def points(self) -> list[dict[str, Value]]:
        """Return the parameters of every point."""
        return [
            dict(zip(self.axes, values, strict=True))
            for values in itertools.product(*self.axes.values())
        ]


def named(point: Mapping[str, Value]) -> str:
    """Return a point as a text: "snr=1.0, width=4"."""
    return ", ".join(f"{name}={value!r}" for name, value in point.items())


def seed_of(point: Mapping[str, Value], seed: int) -> int:
    """Return the seed of a point, which depends on its parameters and the seed alone."""
    text = json.dumps([seed, sorted(point.items())])
    # as large as torch, numpy and Python all take
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _values(name: str, values: object) -> list[Value]:
    listed = values.tolist() if isinstance(values, (Tensor, np.ndarray)) else values
    if isinstance(listed, (str, Mapping)) or not isinstance(listed, Iterable):
        raise TypeError(f"expected the values of {name} in a list, got {values!r}")
    found: list[Any] = [v.item() if isinstance(v, (Tensor, np.generic)) else v for v in listed]
    wrong = [v for v in found if not isinstance(v, (bool, int, float, str, type(None)))]
    if wrong:
        raise TypeError(
            f"expected numbers or texts as values of {name}, got {wrong[0]!r}: make what the "
            "function needs of them inside it"
        )
    if not found:
        raise ValueError(f"expected one value of {name} at least, got none")
    if any(v != v for v in found):
        raise ValueError(f"expected values of {name} that are not NaN, got {found}: leave it out")
    repeated = [v for i, v in enumerate(found) if v in found[:i]]
    if repeated:
        raise ValueError(
            f"expected different values of {name}, got {repeated[0]!r} twice: each point is "
            "computed once"
        )
    return found

"""`Layout`: the order and names of the statistics of a network with a linear first layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits.problems.network.scaled import Scaled
from torchlimits.statistics import entries, gram, overlaps, second_layer
from torchlimits.statistics.entry_names import entry_names
from torchlimits.statistics.quadratic import Quadratic
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    r"""u = (theta, b, m, R): the head's parameters, the biases, the overlaps, the Gram matrix.

    Every entry of the head's parameters is a statistic under the parameter's own name, in the
    order of ``named_parameters()``; then ``b[i]`` (where the first layer has a bias), ``m[i,j]``
    by rows, and ``R[i,j]`` with i <= j.

    Args:
        head: ``{name: shape}`` of the head's trained parameters.
        width: K.
        directions: d.
        weight: the name of W.
        bias: the name of b; None if there is none.
        scale: m and R are those of W / scale.
        called: other names for statistics of the head's parameters that are rows, (1, K) or (K,).

    Example:
        >>> layout = Layout({"head.weight": (1, 2)}, width=2, directions=1, bias="first.bias")
        >>> layout.names[:5]
        ['head.weight[0,0]', 'head.weight[0,1]', 'b[0]', 'b[1]', 'm[0,0]']
        >>> layout.names[5:], len(layout.parameter_names)
        (['m[1,0]', 'R[0,0]', 'R[0,1]', 'R[1,1]'], 9)
    """

    head: Mapping[str, tuple[int, ...]]
    width: int
    directions: int
    weight: str = "first.weight"
    bias: str | None = None
    scale: float = 1.0
    called: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """P, the number of entries of the head's parameters."""
        return sum(prod(shape) for shape in self.head.values())

    @property
    def _sizes(self) -> list[int]:
        K, grams = self.width, prod(self.stack)
        return [self.size, K if self.bias else 0, K * self.directions, grams * K * (K + 1) // 2]

    @property
    def names(self) -> list[str]:
        """The names of the statistics, in the order of u."""
        K, d = self.width, self.directions
        overlaps = entry_names("m", (K, d), False) if d else []
        return [*self._own_names, *overlaps, *entry_names("R", (K, K), True)]

    @property
    def _own_names(self) -> list[str]:
        """Names of the head's parameters and of the biases."""
        shapes = [
            *((self.called[n], s[-1:]) if n in self.called else (n, s) for n, s in self._head),
            *([("b", (self.width,))] if self.bias else []),
        ]
        return [entry for name, shape in shapes for entry in entry_names(name, shape, False)]

    @property
    def _head(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(shape)) for name, shape in self.head.items()]

    @property
    def stack(self) -> tuple[int, ...]:
        """How many Gram matrices there are; () stands for one, R ``(..., K, K)``."""
        return ()

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shape of each parameter, in the order of modules; None stands for N."""
        bias: dict[str, tuple[int | None, ...]] = {self.bias: (self.width,)} if self.bias else {}
        return {self.weight: (self.width, None), **bias, **self.head}

    @property
    def parameter_names(self) -> list[str]:
        """The name of the parameter behind each statistic."""
        _, biases, overlaps, grams = self._sizes
        return [
            *(name for name, shape in self.head.items() for _ in range(prod(shape))),
            *[self.bias or ""] * biases,
            *[self.weight] * (overlaps + grams),
        ]

    @property
    def typical(self) -> tuple[Tensor | float, Tensor | float]:
        """Sizes of m and R beside 1, of random points of the space of statistics."""
        return 1.0, 1.0

    def split(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """The statistics as theta ``(..., P)``, b ``(..., K)``, m ``(..., K, d)`` and R.

        b is 0 where there are no biases; m and R are those of W, R the full symmetric matrix.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        theta, b, m, upper = u.split(self._sizes, dim=-1)
        if not self.bias:
            b = u.new_zeros(*u.shape[:-1], self.width)
        m, R = m.unflatten(-1, (self.width, self.directions)), _linalg.unpacked(upper, self.width)
        return (
            (theta, b, m, R) if self.scale == 1 else (theta, b, self.scale * m, self.scale**2 * R)
        )

    @property
    def whole(self) -> Layout:
        """The layout of the statistics over all blocks; of one without blocks, itself."""
        return self

    def over_all(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """theta, b, m and R over all blocks, R the Gram matrix orthogonal to all directions.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.split(u)

    def join(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Float[Tensor, "*batch k"]:
        """The inverse of `split`.

        Args:
            theta, b, m, R: as `split` returns them.
        """
        biases, upper = [b] if self.bias else [], _linalg.packed(R)
        if self.scale != 1:
            m, upper = m / self.scale, upper / self.scale**2
        return torch.cat([theta, *biases, m.flatten(-2), upper], dim=-1)

    def statistics(self, directions: Float[Tensor, "d N"]) -> SummaryStatistics:
        """The summary statistics of a module with these parameters.

        Args:
            directions: the orthonormal rows e_j, shape ``(d, N)``.
        """
        functions, dims = self._own_statistics()
        if self.directions:
            functions["m"] = self._scaled(overlaps(self.weight, directions), 1)
        perpendicular = directions if self.directions else None
        functions["R"] = self._scaled(gram(self.weight, perpendicular_to=perpendicular), 2)
        dims[self.weight] = 2
        return SummaryStatistics(functions, symmetric=["R"], parameter_dims=dims)

    def _own_statistics(self) -> tuple[dict[str, StatisticFunction], dict[str, int]]:
        """The functions of the head's parameters and biases, and their dimensions."""
        functions: dict[str, StatisticFunction] = {
            self.called.get(name, name): second_layer(name)
            if name in self.called and len(shape) == 2
            else entries(name)
            for name, shape in self._head
        }
        dims = {name: len(shape) for name, shape in self._head}
        if self.bias:
            functions["b"], dims[self.bias] = entries(self.bias), 1
        return functions, dims

    def _scaled(self, statistic: Quadratic, degree: int) -> Quadratic:
        return statistic if self.scale == 1 else Scaled(statistic, self.scale**-degree)

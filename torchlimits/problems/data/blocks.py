"""`Blocks`: the eigenspaces of a covariance, or groups of them, and directions inside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.data.covariance import Covariance
from torchlimits.problems.data.gauss_rule import gauss_rule

#: up to this many levels have a block each, and more are grouped
FEW = 16
#: parts of directions that are shorter than this are rounding
_NOTHING = 1e-9


@dataclass(frozen=True, eq=False)
class Blocks:
    r"""L blocks of a covariance :math:`\Lambda = \sum_l \lambda_l A_l`, and d unit vectors in them.

    A block is an eigenspace, :math:`A_l = \Pi_l`; or, where there are many eigenvalues, they are
    grouped in logarithmic bins with two blocks each: the eigenvalues of the two are the nodes of
    the Gauss rule of the bin's spectrum, and :math:`A_l = \sum_n \ell_l(\lambda_n) u_n u_n^T` with
    the linear functions :math:`\ell_l` that are 1 at one node and 0 at the other. So
    :math:`\sum_l A_l = I` and :math:`\sum_l \lambda_l A_l = \Lambda` either way, and statistics of
    blocks can be measured.

    The given directions are divided among the blocks; those in bins, into the parts that the
    Gauss rule of their own spectrum has (the Ritz vectors of two steps of the block Lanczos
    method).

    Args:
        covariance: Lambda.
        eigenvalues: the lambda_l of every component, ``(A, L)``, or ``(1, L)`` if they share them.
        fractions: f_l, the share of the N dimensions, ``(L,)``.
        sizes: N_l; empty where eigenvalues are grouped.
        place, share: the one or two blocks in which each u_n is, ``(N, 2)``, and
            :math:`\ell_l(\lambda_n)`.
        directions: the unit vectors as rows, ``(d, N)``.
        along: their eigenvalues, ``(A, d)`` or ``(1, d)``.
        block: the (first) block of each, ``(d,)``.
        number: which of the given directions it is a part of, or its number in its bin, ``(d,)``.
        turn: the coordinates of the given directions along the unit vectors, which span them.
        error: what grouping changes in the response to a kick,
            :math:`\sum_l f_l \lambda_l e^{-2 \lambda_l t}`, at most, relative to its start; 0
            without grouping.

    Example:
        >>> import torch, torchlimits as tl
        >>> two = tl.Covariance.of([(4.0, 0.25), (1.0, 0.75)], dim=8)
        >>> blocks = Blocks.of(two, torch.ones(1, 8).double() / 8**0.5)
        >>> blocks.fractions.tolist(), blocks.sizes
        ([0.25, 0.75], (2, 6))
        >>> blocks.along, blocks.block.tolist()  # the direction has a part in both
        (tensor([[4.0000, 1.0000]], dtype=torch.float64), [0, 1])
        >>> power_law = tl.Covariance(1 / torch.arange(1, 1001))
        >>> grouped = Blocks.of(power_law, torch.zeros(0, 1000).double())
        >>> len(grouped), grouped.error < 1e-4
        (16, True)
        >>> len(Blocks.of(power_law, torch.zeros(0, 1000).double(), None))
        1000
    """

    covariance: Covariance
    eigenvalues: Float[Tensor, "A L"]
    fractions: Float[Tensor, " L"]
    sizes: tuple[int, ...]
    place: Int[Tensor, "N 2"]
    share: Float[Tensor, "N 2"]
    directions: Float[Tensor, "d N"]
    along: Float[Tensor, "A d"]
    block: Int[Tensor, " d"]
    number: Int[Tensor, " d"]
    turn: Float[Tensor, "given d"]
    error: float

    @classmethod
    def of(
        cls, covariance: Covariance, directions: Float[Tensor, "d N"], most: int | None = FEW
    ) -> Blocks:
        """The blocks of a covariance, a level each if there are no more than ``most``.

        Args:
            covariance: Lambda.
            directions: vectors that parts of are wanted of, as orthonormal rows.
            most: the number of blocks; None stands for all levels.

        Raises:
            ValueError: if ``most`` is neither None nor an int > 1.
        """
        levels, level = covariance.levels
        if most is not None and _checks.positive_int("blocks", most) < 2:
            raise ValueError("expected blocks >= 2, or 'all' for one a level, got 1")
        grouped = most is not None and len(levels) > most
        bins = (
            _bins(levels, most // 2)
            if grouped and most
            else torch.arange(len(levels), device="cpu")
        )
        coordinates = covariance.coordinates(directions.double())
        parts = list(_parts(covariance, coordinates, bins[level]))
        first = torch.tensor([0, *(len(p.fractions) for p in parts[:-1])], device="cpu").cumsum(0)
        place = torch.zeros(covariance.dim, 2, dtype=torch.long, device="cpu")
        share = torch.zeros(covariance.dim, 2, dtype=torch.float64, device="cpu")
        for part, begin in zip(parts, first.tolist(), strict=True):
            count = len(part.fractions)
            place[part.members, 0], place[part.members, 1] = begin, begin + count - 1
            share[part.members, :count] = part.share
        eigenvalues = torch.cat([p.eigenvalues for p in parts], 1)
        fractions = torch.cat([p.fractions for p in parts])
        vectors = torch.cat([p.vectors for p in parts])
        own = [len(p.vectors) for p in parts]
        return cls(
            covariance, eigenvalues, fractions,
            () if grouped else tuple(len(p.members) for p in parts),
            place, share, covariance.vectors(vectors), torch.cat([p.along for p in parts], 1),
            first.repeat_interleave(torch.tensor(own, device="cpu")),
            torch.cat([p.number for p in parts]), coordinates @ vectors.mT,
            _error(covariance, eigenvalues, fractions) if grouped else 0.0,
        )  # fmt: skip

    @cached_property
    def typical(self) -> Float[Tensor, " d"]:
        """The sizes of overlaps with the unit vectors that give h noise of order 1 together."""
        mean = self.covariance.eigenvalues.mean()
        parts = max(1.0, len(self.along.mT) / max(1, len(self.turn)))
        return (mean / self.along.mean(0) / parts).sqrt()

    def __len__(self) -> int:
        return len(self.fractions)

    @property
    def grouped(self) -> bool:
        """Whether blocks stand for more eigenvalues than there are blocks."""
        return not self.sizes

    def sums(self, products: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch L"]:
        """Sums over each block's share of every u_n.

        Args:
            products: numbers that belong to the u_n.
        """
        out = products.new_zeros(*products.shape[:-1], len(self))
        place, share = self.place.to(products.device), self.share.to(products)
        if not self.grouped:
            return out.index_add(-1, place[:, 0], products)
        out = out.index_add(-1, place[:, 0], products * share[:, 0])
        return out.index_add(-1, place[:, 1], products * share[:, 1])


@dataclass(frozen=True, eq=False)
class _Part:
    """An eigenspace or a bin: its u_n, its one or two blocks, and the parts of directions."""

    members: Int[Tensor, " n"]
    eigenvalues: Float[Tensor, "A l"]
    fractions: Float[Tensor, " l"]
    share: Float[Tensor, "n l"]
    vectors: Float[Tensor, "e N"]
    along: Float[Tensor, "A e"]
    number: Int[Tensor, " e"]


def _bins(levels: Float[Tensor, "L A"], count: int) -> Int[Tensor, " L"]:
    """The logarithmic bin of each level, without the empty ones."""
    logs = levels.mean(1).log()
    low, high = logs.min(), logs.max()
    # the smallest eigenvalue belongs to the last bin
    number = ((high - logs) / (high - low) * count).long().clamp_max(count - 1)
    return number.unique(return_inverse=True)[1]


def _parts(
    covariance: Covariance, coordinates: Float[Tensor, "d N"], bins: Int[Tensor, " N"]
) -> Iterator[_Part]:
    """The parts, one bin after the other."""
    order = bins.argsort(stable=True)
    for members in order.split(bins.bincount().tolist()):
        values = covariance.eigenvalues[:, members]
        mean = values.mean(0)
        nodes, weights = gauss_rule(mean)
        share = mean.new_ones(len(mean), 1)
        if len(nodes) == 2:
            upper = (mean - nodes[0]) / (nodes[1] - nodes[0])
            share = torch.stack([1 - upper, upper], 1)
        own = values @ share / share.sum(0)
        inside, number = _vectors(coordinates[:, members], mean, krylov=len(nodes) > 1)
        vectors = coordinates.new_zeros(len(inside), covariance.dim)
        vectors[:, members] = inside
        along = values @ inside.mT.square()
        yield _Part(members, own, weights / covariance.dim, share, vectors, along, number)


def _vectors(
    inside: Float[Tensor, "d n"], mean: Float[Tensor, " n"], *, krylov: bool
) -> tuple[Float[Tensor, "e n"], Int[Tensor, " e"]]:
    """Orthonormal vectors in a bin of which directions consist, and their numbers."""
    kept: list[Tensor] = []
    number: list[int] = []
    for j, vector in enumerate([*inside, *((inside * mean) if krylov else ())]):
        size = float(vector.norm())
        rest = vector
        for _ in range(2):  # once more against rounding
            for other in kept:
                rest = rest - (rest @ other) * other
        if float(rest.norm()) > _NOTHING * max(size, 1e-300) and size > _NOTHING:
            kept.append(rest / rest.norm())
            number.append(j)
    if not kept:
        return inside[:0], torch.zeros(0, dtype=torch.long, device="cpu")
    rows = torch.stack(kept)
    if not krylov:
        return rows, torch.tensor(number, device="cpu")
    _, turn = torch.linalg.eigh((rows * mean) @ rows.mT)
    return turn.mT @ rows, torch.arange(len(rows), device="cpu")


def _error(
    covariance: Covariance, eigenvalues: Float[Tensor, "A L"], fractions: Float[Tensor, " L"]
) -> float:
    """The largest difference of the response to a kick, relative to the response at once."""
    values, grouped = covariance.eigenvalues.mean(0), eigenvalues.mean(0)
    times = torch.logspace(-2, 2, 60, dtype=torch.float64, device="cpu")[:, None] / values.mean()

    def response(rates: Tensor, shares: Tensor) -> Tensor:
        return (shares * rates * torch.exp(-2 * rates * times)).sum(-1)

    exact = response(values, torch.full_like(values, 1 / len(values)))
    return float((exact - response(grouped, fractions)).abs().max() / values.mean())

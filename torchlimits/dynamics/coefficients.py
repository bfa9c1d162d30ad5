"""`Coefficients`: derivatives and noise of the dynamics along a solution, known at some times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _linalg
from torchlimits.dynamics.flow import POINTS, Flow


@dataclass(frozen=True)
class Curve:
    """A solution, and how far along it each row is: in time and in length, half each.

    Args:
        flow: the dynamics.
        grid: times.
        u: the solution there.
    """

    flow: Flow
    grid: Float[Tensor, " G"]
    u: Float[Tensor, "*batch G k"]

    #: the most intervals between rows at which anything is evaluated, and the fewest
    FINEST: ClassVar[int] = 40
    COARSEST: ClassVar[int] = 8

    def progress(self) -> Float[Tensor, " G"]:
        """It rises from 0 by 1 with the time and by 1 with the length, for the fastest start.

        Where the field has a pace of its own (`VectorField.pace`), it rises by 1 with that, too.
        """
        grid = self.grid
        length = self.u.diff(dim=-2).norm(dim=-1).reshape(-1, len(grid) - 1).amax(0).cpu()
        travelled = torch.cat([length.new_zeros(1), length.cumsum(0)])
        elapsed = ((grid - grid[0]) / (grid[-1] - grid[0])).cpu()
        own = self.flow.field.pace(self.u).diff(dim=-1).abs().reshape(-1, len(grid) - 1).amax(0)
        paced = torch.cat([length.new_zeros(1), own.cumsum(0).cpu()])
        far = (travelled, paced)
        return elapsed + sum(way / way[-1].clamp_min(1e-300) for way in far)

    def rows(self, intervals: int = FINEST) -> Int[Tensor, " M"]:
        """41 rows of the grid, evenly spread; there can be the same one twice.

        Args:
            intervals: one less than the number of rows.
        """
        progress = self.progress()
        marks = torch.linspace(
            0, float(progress[-1]), intervals + 1, dtype=progress.dtype, device="cpu"
        )
        rows = torch.searchsorted(progress, marks).clamp_max(len(progress) - 1)
        rows[0], rows[-1] = 0, len(progress) - 1
        return rows.to(self.grid.device)

    def coefficients(
        self, rows: Int[Tensor, " M"], known: Coefficients | None = None
    ) -> Coefficients:
        """A and D at some rows.

        Args:
            rows: rows of the grid; they may repeat and do not fall.
            known: those of some of the rows, which are not evaluated again.
        """
        rows = rows.unique()
        if known is None:
            return Coefficients(self.progress(), rows, *self._evaluated(rows))
        new = rows[~torch.isin(rows, known.rows)]
        if not len(new):
            return known
        A, D = self._evaluated(new)
        order = torch.cat([known.rows, new]).argsort()
        return Coefficients(
            known.progress,
            torch.cat([known.rows, new])[order],
            torch.cat([known.A, A], dim=-3)[..., order, :, :],
            torch.cat([known.D, D], dim=-3)[..., order, :, :],
        )

    def _evaluated(
        self, rows: Int[Tensor, " M"]
    ) -> tuple[Float[Tensor, "*batch M k k"], Float[Tensor, "*batch M k k"]]:
        coarse = self.flow.on(self.flow.field.for_band())
        u = self.u[..., rows, :]
        if coarse.schedule is None:
            return _at(coarse, u, 0.0)
        moments = zip(self.grid[rows].tolist(), u.unbind(-2), strict=True)
        pairs = [_at(coarse, point, t) for t, point in moments]
        A, D = (torch.stack(matrices, dim=-3) for matrices in zip(*pairs, strict=True))
        return A, D


def _at(
    flow: Flow, u: Float[Tensor, "*batch k"], t: float
) -> tuple[Float[Tensor, "*batch k k"], Float[Tensor, "*batch k k"]]:
    flat = u.reshape(-1, u.shape[-1])
    A = flow.jacobian(flat, t)
    D = torch.cat([flow.diffusion(piece, t) for piece in flat.split(POINTS)])
    shape = (*u.shape, u.shape[-1])
    return A.reshape(shape), D.reshape(shape)


@dataclass(frozen=True)
class Coefficients:
    """The Jacobians A and diffusion matrices D along a curve.

    Args:
        progress: how far along the curve each row of the grid is.
        rows: the rows at which they are known.
        A, D: one matrix for each of these rows.
    """

    progress: Float[Tensor, " G"]
    rows: Int[Tensor, " M"]
    A: Float[Tensor, "*batch M k k"]
    D: Float[Tensor, "*batch M k k"]

    def between(
        self, rows: Int[Tensor, " R"], *, nonnegative: bool = True
    ) -> tuple[Float[Tensor, "*batch R-1 k k"], Float[Tensor, "*batch R-1 k k"]]:
        """A and D halfway between neighbouring rows, by Akima's cubic pieces, which do not swing.

        Args:
            rows: rows of the grid.
            nonnegative: whether D is made positive semidefinite, which interpolation does not keep.
        """
        along = self.progress[rows.cpu()]
        middle = (along[1:] + along[:-1]) / 2
        A, D = (self._interpolated(values, middle) for values in (self.A, self.D))
        if nonnegative:
            values, vectors = _linalg.eigh((D + D.mT) / 2)
            return A, (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT
        return A, D

    def _interpolated(
        self, values: Float[Tensor, "*batch M k k"], at: Float[Tensor, " R"]
    ) -> Float[Tensor, "*batch R k k"]:
        # imported here: scipy takes a second
        from scipy.interpolate import Akima1DInterpolator

        known = self.progress[self.rows.cpu()].numpy()
        curve = Akima1DInterpolator(known, values.detach().cpu().numpy(), axis=-3, method="makima")
        return torch.as_tensor(curve(at.numpy()), device="cpu").to(values)

"""`Moments`: second and fourth moments of data, and which learning rates these allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.data.rows import Rows, blocks

#: directions whose variance is below this part of the largest one do not vary
_COLLINEAR = 1e-10
#: the power iteration for the mean-square limit stops at this relative change, or after so many
_CHANGE, _ITERATIONS = 5e-4, 40


@dataclass(frozen=True)
class Moments:
    r"""Moments of rows v in the eigenbasis u_n of their covariance.

    The residual r is what the best linear prediction of y from x leaves.

    Attributes:
        coordinates: <v, u_n>, ``(M, N)``.
        eigenvalues: lambda_n, falling, ``(N,)``.
        basis: the u_n as rows, ``(N, N)``.
        slopes: the best linear prediction's coefficients <w*, u_n>, ``(q, N)``, or None.
        residuals: y - <w*, x>, ``(M, q)``, or None.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(4000, 3, generator=generator) * torch.tensor([2.0, 1.0, 1.0])
        >>> moments = Moments.of(Rows.of(x, x[:, 0] + 1))
        >>> [round(x, 1) for x in moments.eigenvalues.tolist()]
        [4.0, 1.0, 1.0]
        >>> moments.fourth[0][0, 0] / moments.eigenvalues[0] ** 2  # 3 for a Gaussian
        tensor(3.0..., dtype=torch.float64)
        >>> 0 < moments.sufficient < moments.mean_square < 2 / 6
        True
    """

    coordinates: Float[Tensor, "M N"]
    eigenvalues: Float[Tensor, " N"]
    basis: Float[Tensor, "N N"]
    slopes: Float[Tensor, "q N"] | None
    residuals: Float[Tensor, "M q"] | None

    @classmethod
    def of(cls, rows: Rows) -> Moments:
        """The moments of rows, or ValueError where these span fewer than N dimensions."""
        v, y = rows.deviations, rows.numbers
        values, columns = torch.linalg.eigh(v.mT @ v / len(v))
        flat = int((values <= _COLLINEAR * values[-1]).sum())
        if flat:
            kept = len(values) - flat
            raise ValueError(
                f"expected features that are not collinear, got {flat} of {len(values)} directions "
                f"without variance{' within classes' if rows.classes is not None else ''}: leave "
                f"features out, or project on the other directions, as by x @ "
                f"torch.pca_lowrank(x, {kept})[2]"
            )
        values, columns = values.flip(0), columns.flip(1)
        coordinates = v @ columns
        basis = columns.mT.contiguous()
        if y is None:
            return cls(coordinates, values, basis, None, None)
        if rows.classes is not None:
            # between classes, too, a linear prediction uses the differences of the means
            slopes, fitted = _line_through(rows, y)
            return cls(coordinates, values, basis, slopes.mT @ columns, y - fitted)
        slopes = (coordinates.mT @ y / len(y) / values[:, None]).mT
        return cls(coordinates, values, basis, slopes, y - coordinates @ slopes.mT)

    def chunks(self) -> Iterator[tuple[Tensor, slice]]:
        """The coordinates of so many rows at a time as fit a temporary array, and which."""
        for which in blocks(self.coordinates):
            yield self.coordinates[which], which

    @cached_property
    def squares(self) -> Float[Tensor, " M"]:
        """|v|^2 of each row."""
        return torch.cat([x.square().sum(1) for x, _ in self.chunks()])

    @cached_property
    def squared_residuals(self) -> Float[Tensor, " M"]:
        """r^2 of each row, the sum over the outputs."""
        assert self.residuals is not None
        return self.residuals.square().sum(1)

    @cached_property
    def fourth(self) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"] | None]:
        """E[<u_n, v>^2 <u_m, v>^2], and E[r^2 <u_n, v>^2] or None without y."""
        total = torch.zeros_like(self.basis)
        noise = torch.zeros_like(self.eigenvalues)
        for x, which in self.chunks():
            squares = x.square()
            total.addmm_(squares.mT, squares)
            if self.residuals is not None:
                noise += squares.mT @ self.squared_residuals[which]
        count = len(self.coordinates)
        return total / count, None if self.residuals is None else noise / count

    @cached_property
    def concentration(self) -> tuple[float, float]:
        """sd(|v|^2) / E|v|^2, and its standard error."""
        s = self.squares / self.squares.mean()
        spread = float(s.std())
        # the influence of each row on the ratio
        influence = ((s - 1).square() - spread**2) / (2 * spread) - spread * (s - 1)
        return spread, float(influence.std()) / len(s) ** 0.5

    @property
    def gaussian_concentration(self) -> float:
        """sd(|v|^2) / E|v|^2 of Gaussian data of the same covariance."""
        return float((2 * self.eigenvalues.square().sum()).sqrt() / self.eigenvalues.sum())

    @cached_property
    def kappa(self) -> tuple[float, float]:
        """E[r^2 |v|^2] / (E r^2 E|v|^2), and its standard error; 1 if they are independent."""
        s, r = self.squares / self.squares.mean(), self.squared_residuals
        r = r / r.mean()
        value = float((r * s).mean())
        return value, float((r * s - value * (r + s - 1)).std()) / len(s) ** 0.5

    @cached_property
    def sufficient(self) -> float:
        r"""The learning rate below which least squares contract at every step, in the mean.

        E|w - w*|^2 falls at each step of online least squares without noise, whatever w, iff
        lr E[|v|^2 v v^T] < 2 Lambda: lr < 2 over the largest eigenvalue of the first matrix,
        whitened.
        """
        whitened = torch.zeros_like(self.basis)
        scale = self.eigenvalues.rsqrt()
        for x, which in self.chunks():
            white = x * scale
            whitened.addmm_((white * self.squares[which, None]).mT, white)
        largest = torch.linalg.eigvalsh(whitened / len(self.coordinates))[-1]
        return 2 / float(largest)

    @property
    def gaussian_sufficient(self) -> float:
        """The same of Gaussian data of the same covariance: 2 / (tr Lambda + 2 lambda_max)."""
        return 2 / float(self.eigenvalues.sum() + 2 * self.eigenvalues.max())

    @cached_property
    def mean_square(self) -> float:
        r"""The learning rate at which the expected risk of least squares stops being bounded.

        S = E (w - w*)(w - w*)^T of one-pass SGD on rows drawn with replacement goes by the map
        S - lr (Lambda S + S Lambda) + lr^2 E[v v^T S v v^T]: it is stable iff lr is less than
        1/rho, where rho is the largest eigenvalue of the positive map
        q_i -> (1/M) sum_j sum_nm v_in v_im v_jn v_jm / (lambda_n + lambda_m) q_j, symmetric in
        rows i, j. No Gaussian theory is in it.
        """
        scale = float(self.eigenvalues.mean())
        # sums of squares: single precision is enough, at half the time
        x = self.coordinates.new_empty(self.coordinates.shape, dtype=torch.float32)
        for part, which in self.chunks():
            x[which] = part / scale**0.5
        values = (self.eigenvalues / scale).float()
        rates = values[:, None] + values
        q = x.new_full((len(x),), len(x) ** -0.5)
        found = 0.0
        for _ in range(_ITERATIONS):
            change, found = found, 0.0
            image = quadratic_forms(x, weighted_square(x, q) / rates)
            found = float(q @ image)
            q = image / image.norm()
            if abs(found - change) <= _CHANGE * found:
                break
        return 1 / (found * scale)

    @property
    def gaussian_mean_square(self) -> float:
        """The same by the effective dynamics of Gaussian data: 2 / tr Lambda."""
        return 2 / float(self.eigenvalues.sum())


def weighted_square(x: Float[Tensor, "M N"], weights: Float[Tensor, " M"]) -> Float[Tensor, "N N"]:
    """(1/M) sum_i weights_i x_i x_i^T, without another array of the size of x.

    Example:
        >>> weighted_square(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([2.0, 4.0]))
        tensor([[1., 2.],
                [2., 6.]])
    """
    total = x.new_zeros(x.shape[1], x.shape[1])
    for part in blocks(x):
        total.addmm_((x[part] * weights[part, None]).mT, x[part])
    return total / len(x)


def quadratic_forms(x: Float[Tensor, "M N"], matrix: Float[Tensor, "N N"]) -> Float[Tensor, " M"]:
    """x_i^T matrix x_i of each row.

    Example:
        >>> quadratic_forms(torch.tensor([[1.0, 2.0]]), torch.eye(2))
        tensor([5.])
    """
    return torch.cat([((x[part] @ matrix) * x[part]).sum(1) for part in blocks(x)])


def _line_through(
    rows: Rows, y: Float[Tensor, "M q"]
) -> tuple[Float[Tensor, "N q"], Float[Tensor, "M q"]]:
    """Slopes of the best linear prediction of y from x, means and all, and what it predicts.

    By a QR decomposition that takes up a block of rows at a time: as exact as that of all rows.
    """
    v, known = rows.deviations, rows.deviations.shape[1] + 1
    r = v.new_zeros(0, known + y.shape[1])
    for part in blocks(v, least=4 * r.shape[1]):
        x = v[part] + rows.means[rows.component[part]]
        block = torch.cat([x, torch.ones_like(x[:, :1]), y[part]], dim=1)
        r = torch.linalg.qr(torch.cat([r, block]), mode="r").R
    both = torch.linalg.solve_triangular(r[:known, :known], r[:known, known:], upper=True)
    slopes, constant = both[:-1], both[-1]
    return slopes, v @ slopes + (rows.means @ slopes + constant)[rows.component]

"""`Gains`: what one step's noise adds to the errors, from the fourth moments of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.linear.levels import Levels


@dataclass(frozen=True, eq=False)
class Gains:
    r"""The population corrector of the D_l, :math:`g_l = \sum_m K_{lm} D_m + k_l`.

    It is :math:`E[(\langle w - w^*, x\rangle - \epsilon)^2 |\Pi_l x|^2] / N`. For Gaussian inputs
    that is :math:`f_l \lambda_l (s^2 + \sum_m \lambda_m D_m)` at leading order in N.

    Args:
        matrix: K, shape ``(L, L)``; K_lm / f_l is symmetric.
        noise: k, shape ``(L,)``.
    """

    matrix: Float[Tensor, "L L"]
    noise: Float[Tensor, " L"]

    @classmethod
    def gaussian(cls, levels: Levels, noise: float) -> Gains:
        """The corrector of Gaussian inputs with independent noise of standard deviation s.

        Example:
            >>> import torch
            >>> levels = Levels(torch.tensor([2.0, 1.0]).double(), torch.tensor([0, 1]))
            >>> Gains.gaussian(levels, noise=1.0).matrix.tolist()
            [[2.0, 1.0], [1.0, 0.5]]
        """
        power = levels.fractions * levels.eigenvalues
        return cls(torch.outer(power, levels.eigenvalues), power * noise**2)

    @classmethod
    def measured(cls, given: Any, levels: Levels) -> Gains:
        r"""The corrector that measured fourth moments give.

        With coordinates x_i in the eigenbasis one step multiplies the mean squared errors of their
        coefficients by :math:`1 - 2 \delta \Lambda + \delta^2 Q`, :math:`Q_{im} = E[x_i^2 x_m^2]`,
        whose logarithm is :math:`-2 \delta \Lambda + \delta^2 (Q - 2 \Lambda^2)`. So the ODE gets
        the second, and that of Gaussian moments, :math:`Q = \lambda \lambda^T + 2 \Lambda^2`, is
        that of `gaussian`.

        Args:
            given: Q, shape ``(N, N)``, and E[eps^2 x_i^2], shape ``(N,)``, eps being what is left
                of y by the best w.
            levels: of the covariance, in whose eigenbasis they are.

        Raises:
            ValueError: if shapes do not fit, or a number is negative or not finite.
            TypeError: if it is not a pair of tensors.
        """
        squares, rest = _pair(given, levels.dim)
        counts = levels.counts.double()
        own = 2 * torch.diag(levels.eigenvalues[levels.place].square())
        sums = levels.sums(levels.sums(squares - own).mT).mT
        # a level's dimensions share its error: the mean over them is what counts
        matrix = sums / counts / levels.dim
        return cls(matrix, levels.sums(rest) / levels.dim)


def _pair(given: Any, dim: int) -> tuple[Tensor, Tensor]:
    wanted = (
        f"expected fourth_moments as a pair of E[x_i^2 x_m^2], shape ({dim}, {dim}), and "
        f"E[eps^2 x_i^2], shape ({dim},), in the eigenbasis of the covariance"
    )
    try:
        first, second = given
    except (TypeError, ValueError) as error:
        raise TypeError(f"{wanted}; or False for Gaussian ones, got {given!r}") from error
    squares, rest = (_checks.float64("fourth_moments", x) for x in (first, second))
    if squares.shape != (dim, dim) or rest.shape != (dim,):
        raise ValueError(f"{wanted}, got shapes {tuple(squares.shape)} and {tuple(rest.shape)}")
    for x in (squares, rest):
        if not bool((x >= 0).all()) or not bool(x.isfinite().all()):
            raise ValueError(f"{wanted}, got some that are negative or not finite")
    if not torch.allclose(squares, squares.mT, rtol=1e-6, atol=1e-6 * float(squares.max())):
        raise ValueError(f"{wanted}, got a matrix that is not symmetric")
    return (squares + squares.mT) / 2, rest

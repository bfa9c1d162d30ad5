"""`Erf`: Gaussian averages of networks with phi(x) = erf(x / sqrt 2)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.closed_form import ClosedForm, first_rows, outer, pairs


class Erf(ClosedForm):
    r"""phi(x) = erf(x / sqrt 2), with :math:`\phi'(x) = \sqrt{2/\pi} e^{-x^2/2}`.

    A factor phi'(h) tilts the Gaussian law of the fields into another one, whose covariance is
    :math:`S - S_h S_h^T / (1 + S_{hh})`: all averages come down to

    .. math:: E[\phi(x_p) \phi(x_q)] =
        \frac{2}{\pi} \arcsin \frac{S_{pq}}{\sqrt{(1 + S_{pp})(1 + S_{qq})}}.

    Source: D. Saad and S. A. Solla, On-line learning in soft committee machines, Phys. Rev. E 52,
    4225 (1995), where these averages are called I_3 and I_4.

    Example:
        >>> import torch
        >>> S = torch.eye(2, dtype=torch.float64)
        >>> Erf().kernel(S)  # (2 / pi) asin(1 / 2) on the diagonal
        tensor([[0.3333, 0.0000],
                [0.0000, 0.3333]], dtype=torch.float64)
    """

    def activation(self, x: Tensor) -> Tensor:
        """erf(x / sqrt 2)."""
        return torch.erf(x / 2**0.5)

    def kernel(self, S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L L"]:
        """(2 / pi) arcsin(S_pq / ((1 + S_pp)(1 + S_qq))^(1/2))."""
        scale = (1 + S.diagonal(dim1=-2, dim2=-1)).rsqrt()
        return 2 / math.pi * torch.asin(S * outer(scale))

    def response(
        self, S: Float[Tensor, "*batch L L"], a: Float[Tensor, "*batch L"], K: int
    ) -> Float[Tensor, "*batch K L"]:
        """a_p E[phi'(h_i) phi'(x_p)] + delta_ip E[e phi''(h_i)]."""
        spread = 1 + S.diagonal(dim1=-2, dim2=-1)
        student = S[..., :K, :]
        determinant = outer(spread)[..., :K, :] - student.square()
        H = 2 / math.pi * a[..., None, :] * determinant.rsqrt()
        own = -(H * student).sum(-1) / spread[..., :K]
        return H + own[..., None] * first_rows(S, K)

    def gram(
        self,
        S: Float[Tensor, "*batch L L"],
        a: Float[Tensor, "*batch L"],
        K: int,
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch K K"]:
        """The kernel of the fields tilted by each pair of phi', between the weights a."""
        i, j, place = pairs(K, S.device)
        one, other, both = 1 + S[..., i, i], 1 + S[..., j, j], S[..., i, j]
        determinant = one * other - both.square()
        # S - C^T (1 + S_ij)^-1 C, with the two rows C of the pair: `first` are those of inv C
        Ci, Cj = S[..., i, :], S[..., j, :]
        first = (other[..., None] * Ci - both[..., None] * Cj) / determinant[..., None]
        second = (one[..., None] * Cj - both[..., None] * Ci) / determinant[..., None]
        tilt = Ci[..., :, None] * first[..., None, :] + Cj[..., :, None] * second[..., None, :]
        kernel = self.kernel(S[..., None, :, :] - tilt)
        a = a[..., None, :, None]
        squared = (a.mT @ kernel @ a)[..., 0, 0] + variance
        return (2 / math.pi * squared * determinant.rsqrt())[..., place]

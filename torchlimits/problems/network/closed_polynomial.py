"""`Linear` and `Square`: Gaussian averages of networks with phi(x) = x and phi(x) = x^2."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.closed_form import ClosedForm, first_rows


class Linear(ClosedForm):
    """phi(x) = x.

    Example:
        >>> import torch
        >>> S, a = torch.eye(3), torch.tensor([1.0, 1.0, -1.0])
        >>> Linear().gram(S, a, 2, torch.tensor(1.0))  # E[e^2] = 3 + 1 for each pair
        tensor([[4., 4.],
                [4., 4.]])
    """

    def activation(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def kernel(self, S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L L"]:
        """S itself."""
        return S

    def response(
        self, S: Float[Tensor, "*batch L L"], a: Float[Tensor, "*batch L"], K: int
    ) -> Float[Tensor, "*batch K L"]:
        """The weights a in each of the K rows."""
        return a[..., None, :].expand(*S.shape[:-2], K, -1)

    def gram(
        self,
        S: Float[Tensor, "*batch L L"],
        a: Float[Tensor, "*batch L"],
        K: int,
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch K K"]:
        """E[e^2] in each entry."""
        squared = ((S @ a[..., None])[..., 0] * a).sum(-1) + variance
        return squared[..., None, None].expand(*squared.shape, K, K)


class Square(ClosedForm):
    r"""phi(x) = x^2, by Isserlis' theorem: with D = diag(a) and q = x^T D x,

    .. math:: E[q] = tr(D S), \quad E[q x x^T] = tr(D S) S + 2 S D S,

    .. math:: E[q^2 x x^T] = (tr(D S)^2 + 2 tr(D S D S)) S + 4 tr(D S) S D S + 8 S D S D S.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> Square().kernel(torch.eye(1)), Square().gram(torch.eye(1), one, 1, 0 * one[0])
        (tensor([[3.]]), tensor([[60.]]))

    The second one is 4 E[x^6] = 4 * 15.
    """

    def activation(self, x: Tensor) -> Tensor:
        """x^2."""
        return x.square()

    def kernel(self, S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L L"]:
        """S_pp S_qq + 2 S_pq^2."""
        variances = S.diagonal(dim1=-2, dim2=-1)
        return variances[..., :, None] * variances[..., None, :] + 2 * S.square()

    def response(
        self, S: Float[Tensor, "*batch L L"], a: Float[Tensor, "*batch L"], K: int
    ) -> Float[Tensor, "*batch K L"]:
        """2 delta_ip E[q] + 4 S_ip a_p."""
        mean = (S.diagonal(dim1=-2, dim2=-1) * a).sum(-1)[..., None, None]
        return 2 * mean * first_rows(S, K) + 4 * S[..., :K, :] * a[..., None, :]

    def gram(
        self,
        S: Float[Tensor, "*batch L L"],
        a: Float[Tensor, "*batch L"],
        K: int,
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch K K"]:
        """4 E[h_i h_j (q^2 + s^2)]."""
        DS = a[..., :, None] * S
        trace = DS.diagonal(dim1=-2, dim2=-1).sum(-1)
        squared = trace.square() + 2 * (DS * DS.mT).sum((-2, -1)) + variance
        once = S[..., :K, :] @ DS
        twice = once @ DS
        first = squared[..., None, None] * S[..., :K, :K]
        return 4 * (first + 4 * trace[..., None, None] * once[..., :K] + 8 * twice[..., :K])

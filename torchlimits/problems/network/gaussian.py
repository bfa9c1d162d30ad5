"""`PreActivations`: the joint law of h and of what labels read, at given statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits.problems.network.moments import CUT


class PreActivations:
    r"""h = b + m mu_a + X zeta_s + S zeta_h, with standard normals zeta_s (r), zeta_h (K).

    Labels read r functionals :math:`s = T x_\parallel` of the coordinates, which are
    :math:`x_\parallel = \mu_a + \sigma B \zeta_s + ...` with orthonormal columns
    :math:`B = T^T (T T^T)^{-1/2}`; the rest of x_parallel is not read and enters h beside
    P = W_perp x. So r + K dimensions are enough: :math:`X = \sigma m B` and
    :math:`S S^T = \sigma^2 (R + m_\perp m_\perp^T)` with :math:`m_\perp = m (I - B B^T)` and
    :math:`R = \sum_l R_l`, the Gram matrices of W_perp in L blocks.

    Source: Gaussian conditioning; Stein's lemma gives :math:`E[g w^T]` for all w that are normal
    together with h.

    Args:
        b, m, R: parts of the statistics, ``(S, K)``, ``(S, K, d)``, ``(S, L, K, K)``, float64.
        means: mu_a, ``(A, d)``.
        basis: B, ``(d, r)``; r = 0 if labels read the component only.
        variance: sigma^2 = 1/snr.
        fixed: whether nothing is differentiated by the statistics, which takes less time.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> law = PreActivations(0 * one, one[None], one[None, None], 3 * one, one, variance=4.0)
        >>> law.mean.item(), law.X.item(), law.root.item()
        (3.0, 2.0, 2.0)
    """

    def __init__(
        self, b: Float[Tensor, "S K"], m: Float[Tensor, "S K d"], R: Float[Tensor, "S L K K"],
        means: Float[Tensor, "A d"], basis: Float[Tensor, "d r"], variance: float | Tensor, *,
        fixed: bool = False,
    ) -> None:  # fmt: skip
        self.m, self.R, self.means, self.sigma = m, R, means.to(m), variance**0.5
        self.B = basis.to(m)
        #: the means of h for every component, (S, A, K)
        self.mean = b[:, None] + self.means @ m.mT
        self.X = self.sigma * m @ self.B
        d, r = basis.shape
        self.beside = None if r == d else m - (m @ self.B) @ self.B.mT
        whole = R[:, 0] if R.shape[1] == 1 else R.sum(1)
        if self.beside is not None:
            whole = whole + self.beside @ self.beside.mT
        self.root = self.sigma * (_linalg.symmetric_root if fixed else _linalg.psd_sqrt)(whole)

    @property
    def loadings(self) -> Float[Tensor, "S K e"]:
        """F = [means of h | X | S], with which h = F psi (`Integrals`)."""
        return torch.cat([self.mean.mT, self.X, self.root], dim=-1)

    def inverse_root(self) -> Float[Tensor, "S K K"]:
        """S^+, without the directions in which h does not vary."""
        return _linalg.pinv(self.root, rtol=CUT, hermitian=True)

    def along(
        self, by_s: Float[Tensor, "S K r"], by_h: Float[Tensor, "S K K"]
    ) -> tuple[Float[Tensor, "S K d"], Float[Tensor, "S L K K"]]:
        """E[g (x_parallel - mu_a)^T] and E[g P_l^T] of every block, by Stein's lemma.

        Args:
            by_s, by_h: E[g zeta_s^T] and E[g zeta_h^T].
        """
        signal = self.sigma * by_s @ self.B.mT
        if self.beside is None and self.R.shape[1] == 1:  # S^+ sigma^2 R is S
            return signal, (by_h @ self.root)[:, None]
        H = self.sigma**2 * by_h @ self.inverse_root()
        across = H[:, None] @ self.R
        return signal if self.beside is None else signal + H @ self.beside, across

    def averages(
        self, along: Float[Tensor, "S K e"]
    ) -> tuple[Float[Tensor, "S K"], Float[Tensor, "S K d"], Float[Tensor, "S L K K"]]:
        """E[g], E[g x_parallel^T] and E[g P_l^T].

        Args:
            along: E[g psi^T], with the psi of `Integrals`.
        """
        A, r = len(self.means), self.B.shape[1]
        total = along[..., :A]  # of every component
        signal, across = self.along(along[..., A : A + r], along[..., A + r :])
        return total.sum(-1), signal + total @ self.means, across

    def x_parallel(self, psi: Float[Tensor, "M e"]) -> Float[Tensor, "M d"]:
        """What nodes say of x_parallel: its mean given the component and what labels read.

        Args:
            psi: the nodes.
        """
        A, r = len(self.means), self.B.shape[1]
        return psi[:, :A] @ self.means + self.sigma * psi[:, A : A + r] @ self.B.mT

    def given_nodes(
        self, psi: Float[Tensor, "M e"]
    ) -> tuple[Float[Tensor, "M w"], Float[Tensor, "w w"]]:
        """The mean of w = (x_parallel, P_1 ... P_L) at nodes, for one start, and the rest's root.

        Args:
            psi: the nodes.

        Returns:
            The means, and rows that are multiplied by independent normals each.
        """
        follow, rest = self.response()
        along = psi[:, -self.root.shape[-1] :] @ follow[0].mT
        x = self.x_parallel(psi)
        beside = along.new_zeros(len(psi), along.shape[1] - x.shape[1])
        return along + torch.cat([x, beside], dim=-1), rest[0].mT

    def response(self) -> tuple[Float[Tensor, "S w K"], Float[Tensor, "S w w"]]:
        """How w = (x_parallel, P_1 ... P_L) follows zeta_h, and a root of the rest's covariance.

        w = (mu_a + sigma B zeta_s, 0) + M zeta_h + V eta, with eta independent of all else.
        """
        d = self.m.shape[-1]
        eye = torch.eye(d, dtype=self.m.dtype, device=self.m.device)
        parallel = (self.sigma * (eye - self.B @ self.B.mT)).expand(len(self.m), d, d)
        roots = self.sigma * _linalg.psd_sqrt(self.R)
        own = _block_diagonal([parallel, *roots.unbind(1)])
        # h's own noise in terms of the same normals
        beside = torch.zeros_like(self.m) if self.beside is None else self.beside
        loads = torch.cat([self.sigma * beside, roots.transpose(1, 2).flatten(2)], dim=-1)
        F = self.inverse_root() @ loads
        return own @ F.mT, own - (own @ F.mT) @ F


def _block_diagonal(blocks: Sequence[Float[Tensor, "S n n"]]) -> Float[Tensor, "S w w"]:
    sizes = [block.shape[-1] for block in blocks]
    whole = blocks[0].new_zeros(len(blocks[0]), sum(sizes), sum(sizes))
    begin = 0
    for block, size in zip(blocks, sizes, strict=True):
        whole[:, begin : begin + size, begin : begin + size] = block
        begin += size
    return whole

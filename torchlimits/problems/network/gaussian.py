"""`PreActivations`: the joint law of h and of what labels read, at given statistics."""

from __future__ import annotations

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
    :math:`S S^T = \sigma^2 (R + m_\perp m_\perp^T)` with :math:`m_\perp = m (I - B B^T)`.

    Source: Gaussian conditioning; Stein's lemma gives :math:`E[g w^T]` for all w that are normal
    together with h.

    Args:
        b, m, R: parts of the statistics, ``(S, K)``, ``(S, K, d)``, ``(S, K, K)``, float64.
        means: mu_a, ``(A, d)``.
        basis: B, ``(d, r)``; r = 0 if labels read the component only.
        variance: sigma^2 = 1/snr.

    Example:
        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> law = PreActivations(0 * one, one[None], one[None], 3 * one, one, variance=4.0)
        >>> law.mean.item(), law.X.item(), law.root.item()
        (3.0, 2.0, 2.0)
    """

    def __init__(
        self, b: Float[Tensor, "S K"], m: Float[Tensor, "S K d"], R: Float[Tensor, "S K K"],
        means: Float[Tensor, "A d"], basis: Float[Tensor, "d r"], variance: float | Tensor,
    ) -> None:  # fmt: skip
        self.m, self.R, self.means, self.sigma = m, R, means.to(m), variance**0.5
        self.B = basis.to(m)
        #: the means of h for every component, (S, A, K)
        self.mean = b[:, None] + self.means @ m.mT
        self.X = self.sigma * m @ self.B
        d, r = basis.shape
        self.beside = None if r == d else m - (m @ self.B) @ self.B.mT
        whole = R if self.beside is None else R + self.beside @ self.beside.mT
        self.root = self.sigma * _linalg.psd_sqrt(whole)

    @property
    def loadings(self) -> Float[Tensor, "S K e"]:
        """F = [means of h | X | S], with which h = F psi (`Integrals`)."""
        return torch.cat([self.mean.mT, self.X, self.root], dim=-1)

    def inverse_root(self) -> Float[Tensor, "S K K"]:
        """S^+, without the directions in which h does not vary."""
        return _linalg.pinv(self.root, rtol=CUT, hermitian=True)

    def along(
        self, by_s: Float[Tensor, "S K r"], by_h: Float[Tensor, "S K K"]
    ) -> tuple[Float[Tensor, "S K d"], Float[Tensor, "S K K"]]:
        """E[g (x_parallel - mu_a)^T] and E[g P^T], by Stein's lemma.

        Args:
            by_s, by_h: E[g zeta_s^T] and E[g zeta_h^T].
        """
        signal = self.sigma * by_s @ self.B.mT
        if self.beside is None:  # S^+ sigma^2 R is S
            return signal, by_h @ self.root
        H = self.sigma**2 * by_h @ self.inverse_root()
        return signal + H @ self.beside, H @ self.R

    def response(self) -> tuple[Float[Tensor, "S e K"], Float[Tensor, "S e e"]]:
        """How w = (x_parallel, P) follows zeta_h, and a root of what is left of its covariance.

        w = (mu_a + sigma B zeta_s, 0) + M zeta_h + V eta, with eta independent of all else.
        """
        K, d = self.m.shape[-2:]
        eye = torch.eye(d + K, dtype=self.m.dtype, device=self.m.device)
        own = torch.zeros(len(self.m), d + K, d + K, dtype=self.m.dtype, device=self.m.device)
        own[:, :d, :d] = self.sigma * (eye[:d, :d] - self.B @ self.B.mT)
        own[:, d:, d:] = self.sigma * _linalg.psd_sqrt(self.R)
        # h's own noise in terms of the same normals
        beside = torch.zeros_like(self.m) if self.beside is None else self.beside
        loads = torch.cat([self.sigma * beside, own[:, d:, d:]], dim=-1)
        F = self.inverse_root() @ loads
        return own @ F.mT, own @ (eye - F.mT @ F)

"""`NewtonSchulz`: what Muon's polynomial iteration does to a matrix, seen from its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks


@dataclass(frozen=True)
class NewtonSchulz:
    r"""p applied to the singular values of X, p the n-fold iterate of :math:`a x + b x^3 + c x^5`.

    With Muon's coefficients it takes all singular values but the smallest to between 0.7 and 1.2,
    and not to 1: predictions need p itself. As odd polynomials of X act on its rows,
    :math:`p(X) = f(XX^T)\, X` with :math:`f(G) = p(\sqrt G)/\sqrt G`.

    Source: `torch.optim.Muon`.

    Args:
        coefficients: (a, b, c).
        steps: n.

    Raises:
        ValueError: if these are not three numbers, and a count.

    Example:
        >>> import torch
        >>> f = NewtonSchulz((3.4445, -4.7750, 2.0315), 5)
        >>> f(torch.tensor([[0.25]])) * 0.5  # p(1/2)
        tensor([[0.7654]])
    """

    coefficients: tuple[float, float, float]
    steps: int

    def __post_init__(self) -> None:
        if len(self.coefficients) != 3:
            raise ValueError(f"expected ns_coefficients (a, b, c), got {self.coefficients}")
        _checks.positive_int("ns_steps", self.steps)

    def __call__(self, gram: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch K K"]:
        """f(G).

        Args:
            gram: G, symmetric, of trace 1, as Muon divides X by its Frobenius norm.
        """
        a, b, c = self.coefficients
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        whole = eye.expand(gram.shape)
        for _ in range(self.steps):
            one = a * eye + b * gram + c * gram @ gram
            whole = one @ whole
            gram = one @ gram @ one  # all are polynomials of one matrix, and commute
        return whole

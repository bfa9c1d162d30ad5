"""`ClosedForm`: Gaussian averages of two-layer networks with one activation, as a contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class ClosedForm(ABC):
    r"""The averages over Gaussian fields that squared loss needs, for one activation phi.

    The L fields x are jointly Gaussian with mean 0 and covariance S. A residual is
    :math:`e = \sum_p a_p \phi(x_p) - s \xi`, with xi ~ N(0, 1) independent of the fields. The
    first K fields are the student's pre-activations h, and :math:`e \phi'(h_i)` is the gradient of
    e^2 / 2 with respect to h_i where h_i enters with weight 1.

    Attributes:
        error: the error of the averages where S and a are of order 1.
        kinked: whether phi' jumps.

    Example:
        >>> import torch
        >>> from torchlimits.problems.network.closed_polynomial import Linear
        >>> S, a = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([1.0, -1.0])
        >>> Linear().activation(S) is S, Linear().kernel(S) is S  # E[x x^T] of phi(x) = x
        (True, True)
        >>> Linear().response(S, a, 1)  # e = x_0 - x_1
        tensor([[ 1., -1.]])
        >>> Linear().gram(S, a, 1, torch.tensor(0.5))  # E[e^2]
        tensor([[1.5000]])
    """

    error: float = 1e-13
    kinked: bool = False

    @abstractmethod
    def activation(self, x: Tensor) -> Tensor:
        """phi, entrywise.

        Args:
            x: a tensor of any shape.
        """

    @abstractmethod
    def kernel(self, S: Float[Tensor, "*batch L L"]) -> Float[Tensor, "*batch L L"]:
        """E[phi(x_p) phi(x_q)].

        Args:
            S: the fields' covariance, shape ``(..., L, L)``; singular is fine.
        """

    @abstractmethod
    def response(
        self, S: Float[Tensor, "*batch L L"], a: Float[Tensor, "*batch L"], K: int
    ) -> Float[Tensor, "*batch K L"]:
        r"""H with :math:`E[e \phi'(h_i) z] = \sum_p H_{ip} Cov(x_p, z)` for every Gaussian z.

        That is :math:`H_{ip} = E[\partial (e \phi'(h_i)) / \partial x_p]`, by Stein's identity.

        Args:
            S: the fields' covariance, shape ``(..., L, L)``; singular is fine.
            a: the fields' weights in e, shape ``(..., L)``.
            K: the number of fields, from the first on, that are the student's.
        """

    @abstractmethod
    def gram(
        self,
        S: Float[Tensor, "*batch L L"],
        a: Float[Tensor, "*batch L"],
        K: int,
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, "*batch K K"]:
        r""":math:`E[e^2 \phi'(h_i) \phi'(h_j)]`.

        Args:
            S: the fields' covariance, shape ``(..., L, L)``; singular is fine.
            a: the fields' weights in e, shape ``(..., L)``.
            K: the number of fields, from the first on, that are the student's.
            variance: s^2, the variance of the noise in e.
        """


def outer(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n n"]:
    """x x^T.

    Args:
        x: vectors, shape ``(..., n)``.

    Example:
        >>> import torch
        >>> outer(torch.tensor([1.0, 2.0]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    return x[..., :, None] * x[..., None, :]


def pairs(K: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs i <= j of K numbers, and where each (i, j) stands among them, shape ``(K, K)``.

    Args:
        K: the number of numbers, at least 1.
        device: the device of the results.

    Example:
        >>> pairs(2, torch.device("cpu"))[2]
        tensor([[0, 1],
                [1, 2]])
    """
    i, j = torch.triu_indices(K, K, device=device)
    place = torch.zeros(K, K, dtype=torch.long, device=device)
    place[i, j] = place[j, i] = torch.arange(len(i), device=device)
    return i, j, place


def first_rows(S: Float[Tensor, "*batch L L"], K: int) -> Float[Tensor, "K L"]:
    """The first K rows of the identity, of the size, device and dtype of S.

    Args:
        S: matrices, shape ``(..., L, L)``.
        K: the number of rows, at most L.

    Example:
        >>> import torch
        >>> first_rows(torch.zeros(3, 3), 2)
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    return torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)[:K]

"""`Teacher`: a two-layer network with fixed weights, which labels standard normal inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks, _linalg

#: eigenvalues of T below this part of the largest are 0
_RANK = 1e-10


class Teacher:
    r"""y = :math:`\sum_n w_n \phi(t_n)`, with Gaussian fields t_n of mean 0 and covariance T.

    Args:
        activation: phi, entrywise.
        width: M.
        overlaps: T, the Gram matrix of the teacher's rows, ``(M, M)``; by default the identity.
        second: w, ``(M,)``; by default ones.
        scale: the scale of the inputs that it is called with: t = rows x / scale.

    Attributes:
        rows: B with B B^T = T, in the coordinates of d directions, d being the rank of T.

    Raises:
        ValueError: if T is not a Gram matrix, or shapes do not fit.

    Example:
        >>> import torch
        >>> teacher = Teacher(torch.relu, 2, None, None)
        >>> teacher(torch.tensor([[1.0, -1.0], [1.0, 2.0]]), torch.tensor([0, 0]))
        tensor([1., 3.])
    """

    def __init__(
        self, activation: Callable[[Tensor], Tensor], width: int, overlaps: object,
        second: object, *, scale: float = 1.0,
    ) -> None:  # fmt: skip
        # a copy of its own, as the student's may be trained
        self.activation = copy.deepcopy(activation)
        if isinstance(self.activation, nn.Module):
            self.activation.requires_grad_(False)
        eye = torch.eye(width, dtype=torch.float64, device="cpu")
        T = eye if overlaps is None else _gram("overlaps", overlaps, width)
        self.rows, self.scale = _factor(T), scale
        self.second = torch.ones_like(eye[0]) if second is None else layer(
            "teacher_second_layer", second, width
        )  # fmt: skip
        self._moved: dict[Any, tuple[Tensor, Tensor]] = {}

    @property
    def overlaps(self) -> Float[Tensor, "M M"]:
        """T."""
        return self.rows @ self.rows.mT

    def __call__(self, x: Float[Tensor, "n d"], component: Tensor) -> Float[Tensor, " n"]:
        """The teacher's outputs.

        Args:
            x: coordinates of the inputs along the teacher's directions.
            component: not used; functions for labels have this argument.
        """
        key = (x.device, x.dtype)
        if key not in self._moved:
            self._moved[key] = (self.rows / self.scale).to(x), self.second.to(x)
        rows, second = self._moved[key]
        return self.activation(x @ rows.mT) @ second


def layer(name: str, value: object, width: int) -> Float[Tensor, " n"]:
    """A second layer as float64.

    Args:
        name: the name of the argument.
        value: one finite number for each neuron.
        width: their number.

    Raises:
        ValueError: if it is anything else.
    """
    given = _checks.float64(name, value)
    if given.shape != (width,) or not bool(given.isfinite().all()):
        raise ValueError(
            f"expected {name} as {width} finite numbers, one a neuron, got shape "
            f"{tuple(given.shape)}"
        )
    return given


def _gram(name: str, value: object, width: int) -> Float[Tensor, "M M"]:
    given = _checks.float64(name, value)
    if given.shape != (width, width) or not torch.allclose(given, given.mT):
        raise ValueError(
            f"expected {name} as the teacher's Gram matrix, symmetric, of shape ({width}, "
            f"{width}), got shape {tuple(given.shape)}"
            + (" and entries that differ from their mirror images" if given.ndim == 2 else "")
        )
    smallest = float(_linalg.eigvalsh(given).min())
    if smallest < -1e-9 * float(given.abs().max()) or not bool(given.any()):
        raise ValueError(
            f"expected {name} as a Gram matrix, positive semidefinite and not 0, got the "
            f"smallest eigenvalue {smallest:.3g}: take T = B B^T of the teacher's rows B"
        )
    return given


def _factor(T: Float[Tensor, "M M"]) -> Float[Tensor, "M d"]:
    """B with B B^T = T and as many columns as the rank of T."""
    values, vectors = _linalg.eigh(T)
    kept = values > _RANK * values[-1]
    if bool(kept.all()):  # for the identity, the identity
        return torch.linalg.cholesky(T)
    return vectors[:, kept] * values[kept].sqrt()

"""`GramGeometry`: the space of statistics whose last entries are a Gram matrix."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits.contracts.geometry import Geometry, Velocity
from torchlimits.problems.network.layout import Layout


class GramGeometry(Geometry):
    """R is positive semidefinite; random points have entries of order 1.

    Args:
        layout: the layout of the statistics.
        theta: the head's parameters, ``(P,)``, around which random points are drawn.

    Example:
        >>> import torch
        >>> space = GramGeometry(Layout({}, width=1, directions=0), torch.zeros(0))
        >>> space.project(torch.tensor([-1.0]))
        tensor([0.])
    """

    def __init__(self, layout: Layout, theta: Float[Tensor, " P"]) -> None:
        self.layout, self.theta = layout, theta

    def project(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The nearest point where R is positive semidefinite."""
        theta, b, m, R = self.layout.split(u)
        values, vectors = _linalg.eigh(R)
        nearest = (vectors * values.clamp_min(0)[..., None, :]) @ vectors.mT
        return self.layout.join(theta, b, m, nearest)

    def starts(
        self, velocity: Velocity, count: int, generator: torch.Generator
    ) -> Float[Tensor, "S k"]:
        """Starts with entries of order 1, as small ones would all end on few attractors."""
        return self.random(count, generator)

    def random(self, count: int, generator: torch.Generator) -> Float[Tensor, "S k"]:
        """Random points: the head's parameters and biases near theta and 0, m and R of order 1.

        Args:
            count: the number of points.
            generator: draws the points, on the CPU.
        """
        K, d = self.layout.width, self.layout.directions
        normal: dict[str, Any] = {
            "generator": generator, "dtype": torch.float64, "device": "cpu",
        }  # fmt: skip
        theta = self.theta.double().cpu()
        theta = theta + 0.5 * torch.randn(count, len(theta), **normal)
        b, m = 0.5 * torch.randn(count, K, **normal), torch.randn(count, K, d, **normal)
        overlaps, shares = self.layout.typical
        stack, scale = self.layout.stack, self.layout.scale
        A = torch.randn(count, *stack, K, 2 * K, **normal) * (2 * K) ** -0.5
        m, R = overlaps * m, shares * (A @ A.mT)
        return self.layout.join(theta, b, scale * m, scale**2 * R)


def check_gram(R: Float[Tensor, "*batch K K"]) -> None:
    """Raise ValueError unless R is positive semidefinite, as far as float32 numbers can be.

    Args:
        R: symmetric matrices.
    """
    smallest = float(_linalg.eigvalsh(R.double()).min())
    # rounding errors of a float32 Gram matrix are accepted
    if smallest < -1e-5 * max(1.0, float(R.abs().max())):
        raise ValueError(
            "expected R to be positive semidefinite (it is a Gram matrix), got an eigenvalue "
            f"{smallest:.3g}: start from measured statistics, or from R = A A^T"
        )

"""`LinearFlow`: du/dt = A u + b solved exactly, and the covariance around its solution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: the first step of a covariance, in units of the shortest time, and how much longer each next one
#: is than all before it
_FIRST, _GROWTH = 0.1, 0.25
#: terms of the series of phi functions, and where they are taken
_TERMS, _SMALL = 12, 0.5


@dataclass(frozen=True, eq=False)
class LinearFlow:
    r"""du/dt = A u + b, with A = S X S^{-1}, X symmetric and S diagonal.

    In the eigenbasis of X, :math:`X = V diag(\mu) V^T`, every coordinate of :math:`S^{-1} u`
    obeys an equation of its own. So the solution is exact at any time, however stiff A is.

    Args:
        rates: mu, shape ``(L,)``.
        vectors: V, shape ``(L, L)``.
        constant: V^T S^{-1} b, shape ``(L,)``.
        scale: the diagonal of S, shape ``(L,)``.

    Example:
        >>> import torch
        >>> flow = LinearFlow.of(torch.tensor([[-2.0]]), torch.tensor([2.0]), torch.ones(1))
        >>> flow.values(torch.zeros(1), torch.tensor([0.0, 0.5, 1e9]))
        tensor([[0.0000],
                [0.6321],
                [1.0000]])
    """

    rates: Float[Tensor, " L"]
    vectors: Float[Tensor, "L L"]
    constant: Float[Tensor, " L"]
    scale: Float[Tensor, " L"]

    @classmethod
    def of(
        cls, A: Float[Tensor, "L L"], b: Float[Tensor, " L"], scale: Float[Tensor, " L"]
    ) -> LinearFlow:
        """The equation with a matrix A that ``scale`` makes symmetric."""
        X = A * scale / scale[:, None]
        rates, vectors = torch.linalg.eigh((X + X.mT) / 2)
        return cls(rates, vectors, (b / scale) @ vectors, scale)

    def near(self, u: Tensor) -> LinearFlow:
        """The same on the device of u."""
        return LinearFlow(
            *(x.to(u.device) for x in (self.rates, self.vectors, self.constant, self.scale))
        )

    def values(
        self, u0: Float[Tensor, "*batch L"], times: Float[Tensor, " T"]
    ) -> Float[Tensor, "*batch T L"]:
        """The solutions from u0 at ``times[0]``; they overflow to infinity where u explodes."""
        passed = (times - times[0])[:, None]
        start = ((u0 / self.scale) @ self.vectors)[..., None, :]
        z = passed * self.rates
        coordinates = start * z.exp() + self.constant * passed * phis(z)[0]
        return coordinates @ self.vectors.mT * self.scale

    def covariances(
        self, diffusion: Callable[[Tensor], Tensor], u0: Float[Tensor, " L"],
        times: Float[Tensor, " T"], initial: Float[Tensor, "L L"],
    ) -> Iterator[LinearCovariance]:  # fmt: skip
        r"""P at each time, :math:`\dot P = A P + P A^T + D(u(t))`, from P at the first.

        In coordinates each entry of P decays at a rate of its own, and D is interpolated by
        parabolas over steps that grow with the time that has passed, as the fast parts of u fade
        before the slow ones. So there are about a hundred evaluations of D, however stiff A is.

        Args:
            diffusion: D(u), ``(M, L)`` -> ``(M, L, L)``.
            u0: the start.
            times: they may repeat and do not fall.
            initial: P at ``times[0]``.
        """
        passed = times - times[0]
        rates = self.rates[:, None] + self.rates
        gathered, begin, next_row = self._inside(initial), 0.0, 0
        first = None
        for end in self._steps(float(passed[-1])):
            points = times.new_tensor([0.0, begin, (begin + end) / 2, end])
            u = self.values(u0, points)[1:]
            first = self._inside(diffusion(u[:1])[0]) if first is None else first
            middle, last = (self._inside(diffusion(x[None])[0]) for x in u[1:])
            # D = d0 + d1 x + d2 x^2 with x from 0 to 1
            d1, d2 = 4 * middle - 3 * first - last, 2 * (first + last) - 4 * middle
            step = _Step(rates, gathered, (first, d1, 2 * d2), end - begin)
            while next_row < len(passed) and float(passed[next_row]) <= end:
                yield LinearCovariance(self, step.after(float(passed[next_row]) - begin))
                next_row += 1
            gathered, begin, first = step.after(end - begin), end, last
        for _ in range(next_row, len(passed)):
            yield LinearCovariance(self, gathered)

    def _inside(self, matrix: Float[Tensor, "L L"]) -> Float[Tensor, "L L"]:
        """A matrix in coordinates."""
        return self.vectors.mT @ (matrix / self.scale / self.scale[:, None]) @ self.vectors

    def _steps(self, duration: float) -> Iterator[float]:
        """Where steps end."""
        fastest = float(self.rates.abs().max())
        end = _FIRST / fastest if fastest > 0 else duration
        while end < duration:
            yield end
            end += _GROWTH * end
        if duration > 0:
            yield duration


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of a covariance, in coordinates: D is d0 + d1 x + (d2 / 2) x^2, x from 0 to 1."""

    rates: Float[Tensor, "L L"]
    before: Float[Tensor, "L L"]
    pieces: tuple[Float[Tensor, "L L"], ...]
    length: float

    def after(self, h: float) -> Float[Tensor, "L L"]:
        """P after a time within the step."""
        z, x = self.rates * h, h / self.length
        gathered = z.exp() * self.before
        for power, (d, phi) in enumerate(zip(self.pieces, phis(z), strict=True)):
            gathered = gathered + h * x**power * d * phi
        return gathered


@dataclass(frozen=True, eq=False)
class LinearCovariance:
    """A covariance in the coordinates of a `LinearFlow`.

    Args:
        flow: whose coordinates they are.
        inside: the matrix there, shape ``(L, L)``.
    """

    flow: LinearFlow
    inside: Float[Tensor, "L L"]

    def matrix(self) -> Float[Tensor, "L L"]:
        """The covariance of u."""
        flow = self.flow
        P = flow.vectors @ self.inside @ flow.vectors.mT * flow.scale * flow.scale[:, None]
        return (P + P.mT) / 2

    def std(self) -> Float[Tensor, " L"]:
        """The standard deviations of u."""
        flow = self.flow
        variance = ((flow.vectors @ self.inside) * flow.vectors).sum(-1)
        return variance.clamp_min(0).sqrt() * flow.scale


def phis(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The functions :math:`\phi_k(z) = \int_0^1 e^{(1 - x) z} x^{k-1} dx / (k-1)!`, k = 1, 2, 3.

    Args:
        z: any real numbers.

    Example:
        >>> import torch
        >>> phis(torch.tensor([0.0, 1.0]))
        (tensor([1.0000, 1.7183]), tensor([0.5000, 0.7183]), tensor([0.1667, 0.2183]))
    """
    small = z.abs() < _SMALL
    near, far = z.where(small, 0.0), z.where(~small, 1.0)
    first = torch.expm1(far) / far
    second = (first - 1) / far
    third = (second - 0.5) / far
    # 6 phi_3 is the sum of 6 z^j / (j + 3)!, here by Horner's rule
    series = torch.ones_like(near)
    for j in range(_TERMS, 0, -1):
        series = 1 + series * near / (j + 3)
    third = torch.where(small, series / 6, third)
    second = torch.where(small, near * third + 0.5, second)
    return torch.where(small, near * second + 1, first), second, third

"""`GradientMap`: what is done to the gradient of a batch before the optimizer's step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits._threads import constant


class BatchGradient(NamedTuple):
    """The gradients of T batches, as far as maps look at them.

    A row k of the gradient of W, given the samples' pre-activations and labels, has entries that
    are normal with the variance of S, except what is along directions and along W itself.

    Attributes:
        theta, bias: means over the batch, ``(T, P)`` and ``(T, K)``.
        axes: the entries of W's gradient at coordinates that are axes, ``(T, K, J)``.
        S: the covariance of W's other entries, (sigma^2/B^2) sum_b g_b g_b^T, ``(T, K, K)``.
        square: |G|^2 at finite N of all gradients that `GradientMap.among` counts, over N,
            ``(T,)``.
    """

    theta: Float[Tensor, "T P"]
    bias: Float[Tensor, "T K"]
    axes: Float[Tensor, "T K J"]
    S: Float[Tensor, "T K K"]
    square: Float[Tensor, " T"]


class MappedGradient(NamedTuple):
    """What a map f makes of the gradients of T batches.

    Attributes:
        theta, bias, axes: the images of the entries that `BatchGradient` has.
        slope: a_k = E f'(s_k Z), with which f(G) follows G on average, ``(T, K)``.
        pair: C_kl = E f(s_k Z_k) f(s_l Z_l), ``(T, K, K)``.
    """

    theta: Float[Tensor, "T P"]
    bias: Float[Tensor, "T K"]
    axes: Float[Tensor, "T K J"]
    slope: Float[Tensor, "T K"]
    pair: Float[Tensor, "T K K"]


class GradientMap(ABC):
    """A function of a batch's gradient that comes before the optimizer.

    Attributes:
        among: the names of the parameters whose gradients it looks at together; None for all.
    """

    among: frozenset[str] | None = None

    def counts(self, name: str | None) -> bool:
        """Whether it looks at a parameter's gradient together with others.

        Args:
            name: its name; None if there is no such parameter.
        """
        return name is not None and (self.among is None or name in self.among)

    @abstractmethod
    def __call__(self, gradient: BatchGradient) -> MappedGradient:
        """The map of the gradients of T batches."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The map, in a form that JSON can hold."""


class ElementwiseMap(GradientMap):
    """An odd function of each entry.

    Source: conditional on the batch's g, an entry of W's gradient is normal over coordinates, so
    by Stein's lemma f(G) = a G + what is uncorrelated with x.
    """

    def __call__(self, gradient: BatchGradient) -> MappedGradient:
        """The map; see `GradientMap`."""
        variance = gradient.S.diagonal(dim1=-2, dim2=-1)
        # a neuron that no sample reaches has gradient 0, whose image is 0
        alive = variance > 0
        s = torch.where(alive, variance, 1.0).sqrt()
        rho = gradient.S / (s[..., :, None] * s[..., None, :])
        both = alive[..., :, None] & alive[..., None, :]
        pair = torch.where(both, self.pair(s, rho.clamp(-1, 1)), 0.0)
        theta, bias, axes = (self.image(x) for x in gradient[:3])
        return MappedGradient(theta, bias, axes, torch.where(alive, self.slope(s), 0.0), pair)

    @abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """f(x)."""

    @abstractmethod
    def slope(self, s: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        """E f'(s Z)."""

    @abstractmethod
    def pair(self, s: Float[Tensor, "T K"], rho: Float[Tensor, "T K K"]) -> Float[Tensor, "T K K"]:
        """E f(s_k Z_k) f(s_l Z_l) for normals with correlations rho."""


class Sign(ElementwiseMap):
    """The sign of each entry: a = (2/pi)^(1/2)/s, C = (2/pi) arcsin rho.

    Example:
        >>> import torch
        >>> Sign().pair(torch.ones(1, 2), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[[1.0000, 0.3333],
                 [0.3333, 1.0000]]])
    """

    def image(self, x: Tensor) -> Tensor:
        """Its sign."""
        return x.sign()

    def slope(self, s: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        """(2/pi)^(1/2)/s."""
        return sqrt(2 / pi) / s

    def pair(self, s: Float[Tensor, "T K"], rho: Float[Tensor, "T K K"]) -> Float[Tensor, "T K K"]:
        """(2/pi) arcsin rho."""
        return 2 / pi * torch.asin(rho)

    def describe(self) -> dict[str, Any]:
        """Signs."""
        return {"gradient": "sign"}


@dataclass(frozen=True)
class ClipValue(ElementwiseMap):
    """Entries are clipped to [-V, V], as by ``torch.nn.utils.clip_grad_value_``.

    Args:
        value: V > 0.

    Example:
        >>> import torch
        >>> both = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
        >>> ClipValue(100.0).pair(torch.ones(1, 2).double(), both)  # nothing is clipped
        tensor([[[1.0000, 0.5000],
                 [0.5000, 1.0000]]], dtype=torch.float64)
    """

    value: float

    def __post_init__(self) -> None:
        _checks.positive("clip_value", self.value)

    def image(self, x: Tensor) -> Tensor:
        """The clipped entry."""
        return x.clamp(-self.value, self.value)

    def slope(self, s: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
        """erf(V/(2^(1/2) s))."""
        return torch.erf(self.value / (sqrt(2) * s))

    def pair(self, s: Float[Tensor, "T K"], rho: Float[Tensor, "T K K"]) -> Float[Tensor, "T K K"]:
        """The integral over Z_k > 0, in pieces between kinks; that over Z_l is closed."""
        whole = torch.diag_embed(self._square(s))
        i, j = torch.triu_indices(s.shape[-1], s.shape[-1], offset=1, device=s.device)
        if not len(i):
            return whole
        own, other, r = s[..., i, None], s[..., j, None], rho[..., i, j, None]
        # f(s_k Z_k) has a kink; so has the mean of f(s_l Z_l), a sharp one where |rho| is near 1
        kinks = torch.cat([self.value / own, self.value / (other * r.abs()).clamp_min(1e-30)], -1)
        zero = torch.zeros_like(own)
        ends = torch.cat([zero, kinks.clamp_max(_FAR).sort(-1).values, zero + _FAR], -1)
        nodes, weights = (x.to(s) for x in _legendre())
        length = ends.diff(dim=-1)[..., None]  # (T, pairs, 3, 1)
        x = ends[..., :-1, None] + length * nodes
        density = length * weights * torch.exp(-(x**2) / 2) / sqrt(2 * pi)
        inner = self._clipped_normal(
            (other * r)[..., None] * x, (other * (1 - r**2).clamp_min(0).sqrt())[..., None]
        )
        found = 2 * (density * self.image(own[..., None] * x) * inner).sum((-2, -1))
        whole[..., i, j] = found
        whole[..., j, i] = found
        return whole

    def _square(self, s: Tensor) -> Tensor:
        """E f(s Z)^2 = s^2 (erf(x/2^(1/2)) - 2 x phi(x)) + V^2 erfc(x/2^(1/2)), x = V/s."""
        x = self.value / s
        outside, density = torch.erfc(x / sqrt(2)), torch.exp(-(x**2) / 2) / sqrt(2 * pi)
        return s**2 * (1 - outside - 2 * x * density) + self.value**2 * outside

    def _clipped_normal(self, mean: Tensor, spread: Tensor) -> Tensor:
        """E clip(N(mean, spread^2))."""
        V, spread = self.value, spread.clamp_min(1e-12)
        low, high = (-V - mean) / spread, (V - mean) / spread
        below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
        inside = 1 - below - above

        def phi(x: Tensor) -> Tensor:
            return torch.exp(-(x**2) / 2) / sqrt(2 * pi)

        return mean * inside - spread * (phi(high) - phi(low)) + V * (above - below)

    def describe(self) -> dict[str, Any]:
        """V."""
        return {"clip_value": self.value}


#: beyond, the normal density is below 1e-16
_FAR = 8.5


@constant
def _legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@dataclass(frozen=True)
class ClipNorm(GradientMap):
    r"""The whole gradient is shortened to a norm, as by ``torch.nn.utils.clip_grad_norm_``.

    Every batch has a factor min(1, max_norm/|G|) of its own, as |G| does not concentrate where B
    is small: :math:`|G|^2 \approx N\, tr\, S`.

    Args:
        max_norm: the largest norm.
        dim: N.
        among: the names of the parameters that have gradients; None for all.

    Example:
        >>> ClipNorm(3.0, dim=100).describe()
        {'clip_norm': 3.0}
    """

    max_norm: float
    dim: int
    among: frozenset[str] | None = None

    def __post_init__(self) -> None:
        _checks.positive("clip_norm", self.max_norm)

    def __call__(self, gradient: BatchGradient) -> MappedGradient:
        """The map; see `GradientMap`."""
        factor = self.factor((self.dim * gradient.square).clamp_min(0).sqrt())
        K = gradient.bias.shape[1]
        return MappedGradient(
            factor[:, None] * gradient.theta, factor[:, None] * gradient.bias,
            factor[:, None, None] * gradient.axes, factor[:, None].expand(-1, K),
            factor[:, None, None] ** 2 * gradient.S,
        )  # fmt: skip

    def factor(self, length: Tensor) -> Tensor:
        """What a gradient is multiplied by.

        Args:
            length: its norm.
        """
        return (self.max_norm / (length + 1e-6)).clamp_max(1)  # torch adds 1e-6, too

    def describe(self) -> dict[str, Any]:
        """The largest norm, and of which gradients if not of all."""
        which = {} if self.among is None else {"clip_norm.of": sorted(self.among)}
        return {"clip_norm": self.max_norm, **which}

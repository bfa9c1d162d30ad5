r"""`sector`: :math:`E[1\{y > 0, z > 0\} (\sum_c a_c x_c^+)^2]`, an integral over one angle."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._threads import constant
from torchlimits.problems.network.closed_form import outer
from torchlimits.problems.network.orthants import divided, extended, root_and_quarter

#: where fields with less than this part of their variance outside the plane are 0, the integrand
#: nearly has a kink, unless that is this close to an end
_APART, _EDGE = 0.3, 1e-9
#: the number of angles without a kink, how many fewer for each kink, and the fewest between two
_MOST, _FEWER, _FEWEST = 48, 8, 20
#: fields with less than this part of their variance outside the plane lie in it
_ROUNDING = 1e-14
#: variance outside the plane, as a part of the field's own, that such fields are given: without
#: it, or with rounding in its place, two of them would disagree about which side they are on
_OUTSIDE = 1e-30


def sector(
    S: Float[Tensor, "*batch L L"],
    p: Float[Tensor, "*batch L"],
    q: Float[Tensor, "*batch L"],
    r: Float[Tensor, "*batch"],
    a: Float[Tensor, "*batch L"],
) -> Float[Tensor, "*batch"]:
    r""":math:`E[1\{y > 0, z > 0\} (\sum_c a_c x_c^+)^2]`, y and z standard normal fields.

    In the plane of y and z, both are positive in a sector, whose rays have one direction each:

    .. math:: \int_{\theta - \pi/2}^{\pi/2} \frac{d\alpha}{\sqrt{2 \pi}} \sum_{cd} a_c a_d
        E[\eta^+ c^+ d^+], \quad \theta = \arccos r,

    where eta is the field along the ray, and c, d are without their parts across it. The integrand
    is closed (Stein's identity thrice). The integral is not, in general: its derivative by S_cd is
    the probability that four fields are positive, which has no elementary form (Schlaefli). It is a
    Gauss-Legendre rule between the angles where fields of the plane change sign, exact to
    some 1e-8.

    Args:
        S: the covariance of the x, shape ``(..., L, L)``.
        p: covariances of y and the x, shape ``(..., L)``.
        q: covariances of the x and the part of z independent of y, normalised, ``(..., L)``.
        r: the correlation of y and z, shape ``(...)``.
        a: weights, shape ``(..., L)``.

    Example:
        >>> import torch
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> sector(torch.eye(1), zero, zero, zero[0], one)  # independent: 1/4 of E[(x^+)^2]
        tensor(0.1250)
    """
    with torch.no_grad():
        theta = torch.acos(r.clamp(-1, 1))
        rays = _Rays(S, p, q, r, a)
        if not any(x.requires_grad for x in (S, p, q, r, a)):
            alpha, weight = _rule(rays, theta)
            return (weight * rays.value(alpha)[0]).sum(-1)
        value, by_S, by_p, by_q, by_a = _integral(rays, *_rule(rays, theta))
        # what the sector gains at its first ray when theta falls
        edge = rays.value((theta - math.pi / 2)[..., None])[0][..., 0]
        by_r = divided(edge, (1 - r.square()).clamp_min(0).sqrt())
    return extended(value, [(S, by_S), (p, by_p), (q, by_q), (r, by_r), (a, by_a)])


class _Rays:
    """The integrand for all c and d, with its derivatives; matrices are ``(..., n, L, L)``."""

    def __init__(self, S: Tensor, p: Tensor, q: Tensor, r: Tensor, a: Tensor) -> None:
        outside, variance = S - outer(p) - outer(q), S.diagonal(dim1=-2, dim2=-1)
        left = outside.diagonal(dim1=-2, dim2=-1)
        # q is a result of division by the sine of theta
        rounding = _ROUNDING / (1 - r.square()).clamp_min(_ROUNDING).sqrt()
        #: the part of each field's variance that is outside the plane
        self.apart = left / variance.clamp_min(1e-300)
        free = left > rounding[..., None] * variance
        left = left.where(free, _OUTSIDE * variance)
        outside = (outside * outer(free.to(S))).diagonal_scatter(left, dim1=-2, dim2=-1)
        root, A = root_and_quarter(outside, left[..., :, None], left[..., None, :])
        # of all angles; A is P(c, d > 0 | eta = 0)
        self.p, self.q, self.a, self.left = p, q, a[..., None, :], left[..., None, :]
        self.outside, self.root, self.A = (x[..., None, :, :] for x in (outside, root, A))

    def value(self, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The integrand at angles ``(..., n)``, and its derivatives by a, ``(..., n, L)``."""
        self._look(alpha)
        B, y, y_d, sigma = self.B, self.y[..., :, None], self.y[..., None, :], self.sigma
        side = B * (y * sigma + y_d * self.ratio)
        flat = self.root / (2 * math.pi) + (self.outside + 2 * y * y_d) * self.A
        T = (flat + side + side.mT) / (2 * math.pi)
        Ta = (T @ self.a[..., None])[..., 0]
        return (Ta * self.a).sum(-1), 2 * Ta

    def slopes(self) -> tuple[Tensor, Tensor]:
        """The integrand's derivatives by y and by S, at the angles of the last value."""
        B, y, y_d, sigma = self.B, self.y[..., :, None], self.y[..., None, :], self.sigma
        weights = outer(self.a) / (2 * math.pi)
        # Plackett's identity: E[eta^+ 1{c, d > 0}] by S_cd, E[1{eta, c > 0} d^+] by y_c
        inverse = B * divided(y_d.expand_as(B), sigma)
        first = B * sigma + y_d * self.A + (B * self.ratio).mT
        # E[eta^+ c^+ delta(d)] / 2 by S_dd, in T_cd and in T_dc
        across = B * (y - y_d * divided(self.ratio, sigma))
        height = divided(self.root.expand_as(B), sigma) / (2 * math.pi) + across
        by_variance = (weights * divided(height, sigma)).sum(-2)
        by_S = weights * (self.A + inverse + inverse.mT) + torch.diag_embed(by_variance)
        return 2 * (weights * first).sum(-1), by_S

    def _look(self, alpha: Tensor) -> None:
        """The values along rays at these angles."""
        self.cos, self.sin = alpha.cos()[..., None], alpha.sin()[..., None]
        p, q = self.p[..., None, :], self.q[..., None, :]
        self.y, self.u = p * self.cos + q * self.sin, q * self.cos - p * self.sin
        S = self.outside + outer(self.y)
        self.sigma = S.diagonal(dim1=-2, dim2=-1).sqrt()[..., None, :].expand_as(S)
        self.ratio = divided(S, self.sigma)
        # P(eta, c > 0 | d = 0)
        sine = self.y[..., :, None] * self.left[..., None, :] - self.y[..., None, :] * self.outside
        self.B = 0.25 + torch.atan2(sine, self.root * self.sigma) / (2 * math.pi)


def _integral(rays: _Rays, alpha: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The integral, and its derivatives by S, p, q and a.

    The fields along a ray have the covariance S - u u^T and the covariances y with eta.
    """
    value, by_a = rays.value(alpha)
    by_y, by_S = rays.slopes()
    by_u = -2 * (by_S @ rays.u[..., None])[..., 0]
    by_p = rays.cos * by_y - rays.sin * by_u
    by_q = rays.sin * by_y + rays.cos * by_u
    sums = [(weight[..., None] * x).sum(-2) for x in (by_p, by_q, by_a)]
    return (weight * value).sum(-1), (weight[..., None, None] * by_S).sum(-3), *sums


def _rule(rays: _Rays, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Angles ``(..., n)`` and weights, between those where fields close to the plane are 0."""
    start, length = (theta - math.pi / 2)[..., None], (math.pi - theta)[..., None]
    turns = torch.remainder(torch.atan2(rays.q, rays.p) + math.pi / 2 - start, math.pi)
    # y and z, say, are 0 at the ends
    inside = (turns > _EDGE) & (turns < length - _EDGE)
    apart = rays.apart.where(inside, 1.0)
    count = int((apart < _APART).sum(-1).max())
    nearest = turns.gather(-1, apart.argsort(-1)[..., :count])
    ends = [torch.zeros_like(length), nearest.minimum(length).sort(-1).values, length]
    cuts = torch.cat(ends, dim=-1)
    points = max(_FEWEST, _MOST - _FEWER * count)
    x, weight = _unit_rule(points, theta.dtype, theta.device)
    widths = cuts.diff(dim=-1)[..., None]
    alpha = start[..., None] + cuts[..., :-1, None] + widths * x
    return alpha.flatten(-2), (widths * weight).flatten(-2)


@constant
def _unit_rule(points: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """A rule on [0, 1], denser at the ends, where the integrand may behave like a square root."""
    line, weight = np.polynomial.legendre.leggauss(points)
    s, weight = (line + 1) / 2, weight / 2
    rule = np.stack([s * s * (3 - 2 * s), 6 * s * (1 - s) * weight])
    x, weight = torch.from_numpy(rule).to(device, dtype)
    return x, weight

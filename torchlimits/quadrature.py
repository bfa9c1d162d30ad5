"""The line rule: Gaussian quadrature for functions with kinks on K hyperplanes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: |t| beyond which the normal density is dropped: 1e-10 of the mass for K <= 2, 6e-7 above
_REACH = {1: 6.5, 2: 6.5}
_REACH_LATTICE = 5.0
#: lines (times batch members) evaluated at once: bounds the memory of a call without autograd to
#: some 16 arrays of this many lines, K + 2 segments and the nodes of a segment, about 0.3 GiB
_LINES_AT_ONCE = 4096


@dataclass(frozen=True)
class LineNodes:
    """Nodes of the rule, B points, Q lines, S segments a line, G nodes a segment.

    The expectation of F is the sum of ``weight * F`` over lines, segments and nodes. On a segment
    the set of active neurons does not change and the logit is affine.
    """

    t: Float[Tensor, "B Q S G"]
    weight: Float[Tensor, "B Q S G"]
    logit: Float[Tensor, "B Q S G"]
    active: Float[Tensor, "B Q S K"]
    across: Float[Tensor, "B Q J"]
    rotation: Float[Tensor, "B K K"]


def line_nodes(
    mean: Float[Tensor, "B K"],
    factor: Float[Tensor, "B K K"],
    v: Float[Tensor, "B K"],
    *,
    lines: int,
    nodes: int,
) -> Iterator[LineNodes]:
    r"""Nodes for E F(xi), F smooth but for kinks where :math:`h = mean + factor\,\xi` changes sign.

    Space is cut into parallel lines :math:`\xi = t d + \xi_\perp` along a direction d that crosses
    every kink. On a line h is affine in t; the K kinks (and t = 0) cut it into segments, each with
    a Gauss-Legendre rule in w, :math:`t = t_0 + \epsilon \sinh w`, which keeps the poles of
    sigmoid(v . relu(h)), :math:`\pi/|slope|` away from its zero t_0, out of the rule's way. Across:
    nothing for K = 1; for K = 2 the same composite rule, cut where the two kinks cross; else
    ``lines`` points of a scrambled Sobol sequence with their mirror images, frozen.

    The nodes move with the kinks, so that autograd through them gives derivatives of the integral.
    The direction is a constant to autograd: turning the axes does not change an expectation.

    Args:
        mean: shape ``(B, K)``.
        factor: any square root of the covariance of h, possibly singular, shape ``(B, K, K)``.
        v: second-layer weights, shape ``(B, K)``.
        lines: number of lines for K >= 3.
        nodes: Gauss-Legendre nodes a segment.

    Yields:
        Pieces of the rule, to be added up.
    """
    width = mean.shape[-1]
    reach = _REACH.get(width, _REACH_LATTICE)
    rotation = _rotation(_direction(factor.detach()))
    turned = factor @ rotation
    slope, across = turned[..., 0], turned[..., 1:]
    for points, weights in _cross_section(mean, slope, across, v, lines, nodes, reach):
        offset = mean[:, None, :] + points @ across.mT
        yield _on_lines(offset, slope, v, points, weights, nodes, reach, rotation)


def _on_lines(
    offset: Float[Tensor, "B Q K"],
    slope: Float[Tensor, "B K"],
    v: Float[Tensor, "B K"],
    points: Float[Tensor, "B Q J"],
    weights: Float[Tensor, "B Q"],
    nodes: int,
    reach: float,
    rotation: Float[Tensor, "B K K"],
) -> LineNodes:
    kinks = _ratio(-offset, slope[:, None, :].expand_as(offset), reach)
    low, high = _segments(kinks, reach)
    middle = (low + high).detach() / 2
    active = (offset[..., None, :] + slope[:, None, None, :] * middle[..., None] > 0).to(offset)
    # the logit on a segment is constant + incline * t
    constant = (active @ (v[:, None, :] * offset)[..., None])[..., 0]
    incline = (active @ (v * slope)[:, None, :, None])[..., 0]
    scale = math.pi / incline.detach().abs().clamp_min(math.pi / 4)
    zero = _ratio(-constant.detach(), incline.detach(), reach)
    t, weight = _stretched(low, high, zero, scale, nodes)
    logit = constant[..., None] + incline[..., None] * t
    return LineNodes(t, weight * weights[..., None, None], logit, active, points, rotation)


def _cross_section(
    mean: Tensor, slope: Tensor, across: Tensor, v: Tensor, lines: int, nodes: int, reach: float
) -> Iterator[tuple[Float[Tensor, "B Q J"], Float[Tensor, "B Q"]]]:
    """Points and weights for the K - 1 directions across the lines, piece by piece."""
    batch, width = mean.shape
    if width == 1:
        yield mean.new_zeros(batch, 1, 0), mean.new_ones(batch, 1)
    elif width == 2:
        yield _around_crossing(mean, slope, across[..., 0], v, nodes + 6, reach)
    else:
        points = _sobol_normals(width - 1, lines).to(mean)
        for piece in points.split(_LINES_AT_ONCE):
            shape = (batch, len(piece))
            yield piece.expand(batch, -1, -1), mean.new_ones(shape) / lines


def _around_crossing(
    mean: Tensor, slope: Tensor, across: Tensor, v: Tensor, nodes: int, reach: float
) -> tuple[Tensor, Tensor]:
    """K = 2: the integral over lines is smooth but where a line meets both kinks at once."""
    crossing = _ratio(
        mean[:, 0] * slope[:, 1] - mean[:, 1] * slope[:, 0],
        across[:, 1] * slope[:, 0] - across[:, 0] * slope[:, 1],
        reach,
    )
    low, high = _segments(crossing[:, None], reach)
    steepest = (v[..., None] * torch.stack([slope, across], -1)).detach().norm(dim=(-2, -1))
    scale = math.pi / steepest.clamp_min(math.pi / 2)
    centre = crossing.detach()[:, None].expand_as(low)
    p, weight = _stretched(low, high, centre, scale[:, None].expand_as(low), nodes)
    return p.flatten(1)[..., None], weight.flatten(1)


def _segments(cuts: Float[Tensor, "*batch C"], reach: float) -> tuple[Tensor, Tensor]:
    """Ends of the C + 2 segments of [-reach, reach] between the cuts and 0.

    The cut at 0 keeps a few nodes a segment enough for the normal density.
    """
    zero = torch.zeros_like(cuts[..., :1])
    inner = torch.cat([cuts, zero], dim=-1).sort(dim=-1).values
    grid = torch.cat([zero - reach, inner, zero + reach], dim=-1)
    return grid[..., :-1], grid[..., 1:]


def _stretched(
    low: Tensor, high: Tensor, centre: Tensor, scale: Tensor, nodes: int
) -> tuple[Tensor, Tensor]:
    """Nodes t = centre + scale sinh(w) on [low, high], weights with the normal density in.

    ``centre`` (moved into the segment) and ``scale`` choose the nodes only: constants to autograd.
    """
    x, gauss = (array.to(low) for array in _gauss_legendre(nodes))
    centre = torch.minimum(torch.maximum(centre, low.detach()), high.detach())
    start = torch.asinh((low - centre) / scale)
    length = torch.asinh((high - centre) / scale) - start
    exponential = torch.exp(start[..., None] + length[..., None] * x)
    half, inverse = exponential / 2, 0.5 / exponential
    t = centre[..., None] + scale[..., None] * (half - inverse)
    density = torch.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    return t, (scale * length)[..., None] * gauss * (half + inverse) * density


def _ratio(numerator: Tensor, denominator: Tensor, reach: float) -> Tensor:
    """numerator / denominator within [-reach, reach]; `reach` for a denominator of zero."""
    tiny = denominator.abs() <= 1e-14 * numerator.abs() + 1e-200
    safe = torch.where(tiny, torch.ones_like(denominator), denominator)
    quotient = torch.where(tiny, torch.full_like(numerator, reach), numerator / safe)
    return quotient.clamp(-reach, reach)


def _direction(factor: Float[Tensor, "B K K"]) -> Float[Tensor, "B K"]:
    """A unit direction that crosses all kinks: the sum of their unit normals, signs aligned."""
    length = factor.norm(dim=-1, keepdim=True)
    normals = factor / length.clamp_min(1e-200)
    leading = torch.linalg.eigh(normals.mT @ normals).eigenvectors[..., -1:]
    signs = torch.where(normals @ leading >= 0, 1.0, -1.0).to(factor)
    total = (signs * normals).sum(dim=-2)
    first = torch.zeros_like(total)
    first[..., 0] = 1.0
    norm = total.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-12, total / norm.clamp_min(1e-200), first)


def _rotation(direction: Float[Tensor, "B K"]) -> Float[Tensor, "B K K"]:
    """A Householder reflection whose first column is the direction, up to its sign."""
    first = torch.zeros_like(direction)
    first[..., 0] = 1.0
    w = direction + torch.where(direction[..., :1] >= 0, 1.0, -1.0).to(direction) * first
    identity = torch.eye(direction.shape[-1]).to(direction)
    return identity - 2 * w[..., :, None] * w[..., None, :] / w.square().sum(-1)[..., None, None]


@functools.cache
def _gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    x, weight = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(weight / 2)


@functools.cache
def _sobol_normals(dimension: int, count: int) -> Float[Tensor, "count dimension"]:
    """Standard normals: a scrambled Sobol sequence of fixed seed, with its mirror image."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=1)
    uniform = engine.draw(count // 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    return torch.stack([normal, -normal], dim=1).flatten(0, 1)

"""Quadrature for Gaussian expectations with kinks: lines that are split where a ReLU switches.

The rule of this module integrates f(xi) under N(0, I_K) where f is smooth except on the K
hyperplanes h_i(xi) = 0, h = mean + factor xi. Space is cut into parallel lines; on each line all
kinks are known points, and Gauss-Legendre panels lie between them. Because panels move with the
kinks, autograd through the nodes gives the derivatives of the integral, delta functions at the
kinks included. Nothing is inverted: a zero or a repeated row only gives an empty panel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchlimits import _linalg
from torchlimits._threads import constant

#: nodes that one piece of work may hold (with some 20 doubles each, about 20 MiB)
PIECE = 2**17
#: points whose frames and lines are found together
_TOGETHER = 1024


@dataclass(frozen=True)
class Resolution:
    """How fine the rule is; `resolution` gives the default for each width and level.

    Args:
        order: Gauss-Legendre nodes on every panel of a line.
        splits: panel borders on every line besides its kinks.
        reach: lines are cut at -reach and reach (in standard deviations).
        lines: the number of lines asked for (K >= 3), or nodes on every panel of lines (K = 2).
        stretch: spread of the lattice of lines, in standard deviations of the Gaussian.
        directions: how many directions are tried for the lines (2 < K <= 8).
        steep: whether nodes are denser where sigmoid(psi) is steep.
        dtype: of the nodes and what is computed at them.
        thin: whether K >= 3 neurons have half as many lines where one of them switches nowhere.
    """

    order: int
    splits: tuple[float, ...]
    reach: float
    lines: int
    stretch: float = 1.0
    directions: int = 63
    steep: bool = True
    dtype: torch.dtype = torch.float64
    thin: bool = False

    def fast(self) -> Resolution:
        """A coarse rule in a fifth of the time, with errors of the same order.

        Along paths of XOR, K = 4, snr 100 the root mean square error of the largest entry of drift
        and corrector is 5e-4 at random starts (values 0.2), 2e-4 at t = 4 and 6e-5 at t = 20, where
        level -3 itself has 6e-4, 5e-5 and 4e-6; K = 3 to 6 and snr 10 to 1e4 are alike, up to 2e-3.
        """
        return replace(
            self, order=3, splits=(-1.0, 1.0), reach=3.6, lines=57 * self.lines // 64, stretch=1.6,
            dtype=torch.float32, thin=True,
        )  # fmt: skip


def resolution(width: int, level: int = 0) -> Resolution:
    """The default `Resolution` for K neurons, K = 1, 2, 3 ...; levels from -3 (coarse) up.

    One level more means 4 more nodes on every panel (K <= 2; 2 more from -1 to 0), or 4 times as
    many lines (K >= 3). Levels -2 and -3 are for K >= 3, where an error of 1 % is good enough, as
    for the question which fixed point a start goes to.
    """
    if width <= 2:
        more = 4 * level if level > 0 else 2 * max(level, -1)
        reach = 6.5 + 0.5 * max(level, -1)
        return Resolution(10 + more, (-1.5, 1.5), reach, 12 + more)
    lines = {3: 2048, 4: 4096, 5: 8192, 6: 16384}.get(width, 32768)
    stretch = {3: 1.5, 4: 1.5, 5: 1.4}.get(width, 1.3)
    if level < -1:
        # few nodes on a line, and more lines instead
        lines = int(2 * lines * 4.0**level)
        return Resolution(4, (-1.2, 1.2), 4.5, lines, 1.8 if width <= 4 else stretch, 15, False)
    finer = max(level, 0)
    return Resolution(
        6 + 2 * finer, (-2.0, 0.0, 2.0), 6.0 + 0.5 * finer, int(lines * 4.0**level), stretch
    )


def check_level(level: int) -> None:
    """Raise ValueError unless it is a level of `resolution`."""
    if isinstance(level, bool) or not isinstance(level, int) or level < -3:
        raise ValueError(f"expected level to be an int >= -3, got {level!r}: 0 is the default")


@dataclass(frozen=True)
class Panels:
    """Nodes of the rule, ordered as (point p, node n of a panel, panel s, line m).

    Attributes:
        frame: orthogonal matrices, columns (direction of the lines, the rest), (P, K, K).
        offsets: where the lines cross the plane orthogonal to them, (P, M, K-1).
        t: position along the line, (P, n, S, M).
        density: the part of the weight that changes along a panel, (P, n, S, M).
        size: the part of the weight that does not, (P, S, M).
        level, slope: the logit sum_i v_i relu(h_i) is level + slope t on a panel, (P, S, M).
        active: 1{h_i >= 0}, constant on a panel, (P, K, S, M).
        idle: 1{h_i = 0 at all nodes}, (P, K).
        linear: level and slope of sum_i v_i h_i on a line, (P, M) and (P,).
    """

    frame: Tensor
    offsets: Tensor
    t: Tensor
    density: Tensor
    size: Tensor
    level: Tensor
    slope: Tensor
    active: Tensor
    idle: Tensor
    linear: tuple[Tensor, Tensor]

    @property
    def weight(self) -> Float[Tensor, "P n S M"]:
        """The weight of each node; their sum is 1 for each point."""
        return self.size[:, None] * self.density

    @property
    def psi(self) -> Float[Tensor, "P n S M"]:
        """The logit at each node."""
        return torch.addcmul(self.level[:, None], self.slope[:, None], self.t)

    def opposite(self) -> Panels:
        """The nodes -xi of the mean -mean, where all pre-activations are -h_i.

        They have the same weights, and the logit sum_i v_i relu(-h_i) is the one here less
        sum_i v_i h_i. By an even rule they are the nodes that -mean has itself; a steep one is
        dense where the logit here is steep.
        """
        level, slope = self.linear
        return replace(
            self, frame=-self.frame, active=(1 + self.idle)[..., None, None] - self.active,
            level=self.level - level[:, None], slope=self.slope - slope[:, None, None],
            linear=(-level, -slope),
        )  # fmt: skip

    def xi(self) -> Float[Tensor, "P nodes K"]:
        """The nodes as points of R^K, in the order of ``weight.flatten(1)``."""
        rest = self.offsets[:, None, None].expand(*self.t.shape, self.offsets.shape[-1])
        return torch.cat([self.t[..., None], rest], -1).flatten(1, 3) @ self.frame.mT


def panels(
    mean: Float[Tensor, "P K"],
    factor: Float[Tensor, "P K K"],
    v: Float[Tensor, "P K"],
    rule: Resolution,
) -> Iterator[tuple[Int[Tensor, " some"], Panels]]:
    """The rule in pieces of at most about `PIECE` nodes: some points, and some of their nodes.

    A piece holds whole points, or some lines of one point, and then the pieces of that point follow
    each other and name it by the same tensor. A point's nodes depend on the point alone, so that
    its sum depends on the batch through rounding alone.
    """
    # kinks h_i = 0 that are out of reach of the origin carry no weight
    near = mean.detach().abs() < rule.reach * factor.detach().norm(dim=-1)
    for kinks, points in _by_kinks(near):
        for some in points.split(_TOGETHER):
            yield from _pieces(some, mean[some], factor[some], v[some], near[some], kinks, rule)


def _by_kinks(near: Bool[Tensor, "P K"]) -> list[tuple[int, Int[Tensor, " some"]]]:
    """Groups of points with the same number of kinks, which have the same number of panels."""
    points, width = near.shape
    counts = near.sum(-1)
    try:
        groups = [(k, (counts == k).nonzero().squeeze(-1)) for k in range(width + 1)]
    except RuntimeError:
        # torch.func.vmap cannot sort points into groups: all get the empty panels
        return [(width, torch.arange(points, device=near.device))]
    return [(k, some) for k, some in groups if len(some)]


def _pieces(
    points: Tensor, mean: Tensor, factor: Tensor, v: Tensor, near: Tensor, kinks: int,
    rule: Resolution,
) -> Iterator[tuple[Tensor, Panels]]:  # fmt: skip
    """The pieces of points with the same number of kinks."""
    mean, factor, v = (x.to(rule.dtype) for x in (mean, factor, v))
    frames = line_frame(mean, factor, v, rule.directions)
    rotated = factor @ frames
    offsets, weights = (x.to(rule.dtype) for x in _lines(mean, rotated, kinks, rule))
    on_line = (kinks + len(rule.splits) + 1) * rule.order
    lines = weights.shape[-1]
    # as many bytes, whatever the precision
    most = 8 * PIECE // rule.dtype.itemsize
    step, stride = max(1, most // (lines * on_line)), max(1, most // on_line)
    for p in range(0, len(points), step):
        here = slice(p, p + step)
        some = points[here]
        inputs = mean[here], rotated[here], v[here], near[here], frames[here]
        for m in range(0, lines, stride):
            some_lines = offsets[here, m : m + stride], weights[here, m : m + stride]
            yield some, _split(*inputs, some_lines, kinks, rule)


def line_frame(
    mean: Tensor, factor: Tensor, v: Tensor, directions: int = 63
) -> Float[Tensor, "P K K"]:
    """Orthogonal frame whose first column is the direction of the lines; carries no gradient.

    Of a fixed set of directions, the one that best crosses the kinks h_i = 0 and the level sets
    of psi in every region (sets of active neurons): a line along which psi barely changes while
    it changes fast across sees a sharp layer in the outer integral.
    """
    mean, factor, v = mean.detach(), factor.detach(), v.detach()
    width = mean.shape[-1]
    eye = torch.eye(width, dtype=mean.dtype, device=mean.device)
    if width == 1:
        return eye.expand(len(mean), 1, 1)
    norm = factor.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(factor.dtype).tiny)
    rows = factor / norm
    direction = _linalg.eigh(rows.mT @ rows)[1][..., -1]
    if width <= 8:
        fixed = _directions(width, directions, mean.device).to(mean).expand(len(mean), -1, -1)
        trial = torch.cat([fixed, direction[:, None]], 1)
        # a kink that is out of reach does not matter
        near = torch.exp(-((mean / norm.squeeze(-1)).abs() - 3).clamp(0, 30).square() / 2)
        kinks = _slant(trial, rows, 1e-3) * near[:, None].square()
        layers = _slant(trial, _regions(width, mean.device).to(v) @ (v[..., None] * factor), 3.0)
        worst = torch.maximum(kinks.amax(-1), layers.amax(-1))
        best = worst.argmin(-1)[:, None, None].expand(-1, 1, width)
        direction = trial.gather(1, best).squeeze(1)
    # Householder: the other columns follow the direction continuously
    sign = torch.where(direction[:, :1] >= 0, 1.0, -1.0).to(mean.dtype)
    mirror = direction * sign + eye[0]
    mirror = mirror / mirror.norm(dim=-1, keepdim=True)
    rest = (eye - 2 * mirror[:, :, None] * mirror[:, None])[..., 1:]
    if width > 4:
        # the first coordinates of a lattice are its best: give them where psi varies most
        seen = v[..., None] * (factor @ rest)
        rest = rest @ _signed(_linalg.eigh(seen.mT @ seen)[1].flip(-1))
    return torch.cat([direction[..., None], rest], -1)


def _signed(vectors: Tensor) -> Tensor:
    """Columns with the sign that makes the entry of largest modulus positive."""
    largest = vectors.gather(-2, vectors.abs().argmax(-2, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def _slant(directions: Tensor, normals: Tensor, soft: float) -> Tensor:
    """Squares of slope across a direction over (slope along it + soft), for all normals."""
    along = (directions @ normals.mT).abs()
    across = normals.square().sum(-1)[:, None] - along.square()
    return across.clamp_min(0) / (along + soft).square()


@constant
def _directions(width: int, count: int, device: torch.device) -> Tensor:
    """Directions spread over the half-sphere, the same in every process: (D, K)."""
    if width == 2:
        angle = torch.arange(12, dtype=torch.float64, device=device) * (math.pi / 12)
        return torch.stack([angle.cos(), angle.sin()], -1)
    points = _lattice(width, 2 * count + 1, 1.0, device)[0][:count]
    return points / points.norm(dim=-1, keepdim=True).clamp_min(1e-9)


@constant
def _regions(width: int, device: torch.device) -> Tensor:
    """Indicators of all sets of two active neurons or more, (2^K - K - 1, K)."""
    code = torch.arange(2**width, device=device)[:, None]
    member = (code >> torch.arange(width, device=device)) & 1
    return member[member.sum(-1) > 1].to(torch.float64)


def _lines(
    mean: Tensor, rotated: Tensor, kinks: int, rule: Resolution
) -> tuple[Float[Tensor, "P M rest"], Float[Tensor, "P M"]]:
    """Offsets and weights of the lines: for K = 2 in panels split where the two kinks cross."""
    points, width = mean.shape
    if width != 2:
        lines = rule.lines // 2 if rule.thin and kinks < width else rule.lines
        offsets, weights = _lattice(width - 1, lines, rule.stretch, mean.device)
        return offsets.expand(points, -1, -1), weights.expand(points, -1)
    along, across = rotated[..., 0], rotated[..., 1]
    constant = mean[:, 0] * along[:, 1] - mean[:, 1] * along[:, 0]
    slope = across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]
    crossing = _root(constant, slope, rule.reach)[:, None]
    edges = _with_splits(crossing if kinks == 2 else crossing[:, :0], rule, kinks)
    half = (edges.diff(dim=1) / 2)[..., None]
    middle = ((edges[:, 1:] + edges[:, :-1]) / 2)[..., None]
    x, w = _gauss_legendre(rule.lines, mean.device)
    y = (middle + half * x).flatten(1)
    density = torch.exp(y.square() * -0.5) * (2 * math.pi) ** -0.5
    return y[..., None], (half * w).flatten(1) * density


def _split(
    mean: Tensor, rotated: Tensor, v: Tensor, near: Tensor, frame: Tensor,
    lines: tuple[Tensor, Tensor], kinks: int, rule: Resolution,
) -> Panels:  # fmt: skip
    """Panels between the kinks of every line; on each, psi = level + slope t is affine."""
    offsets, line_weight = lines
    along = rotated[..., 0]
    h0 = mean[..., None] + rotated[..., 1:] @ offsets.mT
    roots = _root(h0, along.where(near, 0.0)[..., None], rule.reach)
    # kinks out of reach are borders at its end: empty panels
    edges = _with_splits(roots, rule, kinks)
    low, high = edges[:, :-1], edges[:, 1:]
    middle = ((low + high) / 2).detach()
    h = torch.addcmul(h0.detach()[:, :, None], along.detach()[..., None, None], middle[:, None])
    # 1{h >= 0}, which takes twice the time by truth values
    active = (h.sign() + 1).clamp(max=1)
    idle = ((mean == 0) & (rotated == 0).all(-1)).to(mean.dtype)
    parts, steepness = v[..., None] * h0, v * along
    level = (active * parts[:, :, None]).sum(1)
    slope = (steepness[:, None] @ active.flatten(2)).reshape(level.shape)
    if rule.steep:
        t, density, size = _sinh_nodes(low, high, level.detach(), slope.detach(), rule)
    else:
        t, density, size = _even_nodes(low, high, rule)
    linear = parts.sum(1), steepness.sum(1)
    return Panels(
        frame, offsets, t, density, size * line_weight[:, None], level, slope, active, idle, linear
    )


def _sinh_nodes(
    low: Tensor, high: Tensor, level: Tensor, slope: Tensor, rule: Resolution
) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre in z on t = zero + scale sinh(z), dense where sigmoid(psi) is steep.

    sigmoid has its poles at psi = +-i pi, that is at zero +- i pi/slope. Zeros in the tail of the
    Gaussian do not matter, so there the scale grows; any smooth change of variables gives the same
    integral and derivatives, so this one carries no gradient.
    """
    steep = slope.square() + 0.01
    zero = (-level * slope / steep).clamp(-20, 20)
    scale = torch.sqrt(math.pi**2 / steep + (0.05 * zero.square()).square())
    start, stop = torch.asinh((low - zero) / scale), torch.asinh((high - zero) / scale)
    x, _ = _gauss_legendre(rule.order, low.device)
    half = (stop - start) / 2
    z = _along(x, (start + stop) / 2, half)
    up = torch.exp(z)
    down = up.reciprocal()
    t = torch.addcmul(zero[:, None], (scale / 2)[:, None], up - down)
    return t, _gaussian(t, rule) * (up + down), half * scale / 2


def _even_nodes(low: Tensor, high: Tensor, rule: Resolution) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre in t."""
    x = _gauss_legendre(rule.order, low.device)[0].to(low)
    half = (high - low) / 2
    t = _along(x, (low + high) / 2, half)
    return t, _gaussian(t, rule), half


def _along(x: Tensor, middle: Tensor, half: Tensor) -> Tensor:
    """middle + x half for all nodes x of a panel."""
    return torch.addcmul(middle[:, None], half[:, None], x[:, None, None])


def _gaussian(t: Tensor, rule: Resolution) -> Tensor:
    """The weights of Gauss-Legendre times the density of N(0, 1)."""
    _, w = _gauss_legendre(rule.order, t.device)
    constant = (w * (2 * math.pi) ** -0.5).log().to(t)[:, None, None]
    return torch.exp(torch.addcmul(constant, t, t, value=-0.5))


def _root(constant: Tensor, slope: Tensor, reach: float) -> Tensor:
    """Where constant + slope t = 0, or `reach` (without gradient) if that is out of reach."""
    inside = constant.abs() < reach * slope.abs()
    t = -constant / torch.where(inside, slope, 1.0)
    return torch.where(inside, t, reach)


def _with_splits(kinks: Tensor, rule: Resolution, most: int) -> Tensor:
    """Borders along dimension 1, sorted: at most so many kinks, fixed splits and both ends.

    Kinks, of which the others are at an end, are put in one by one: torch.sort takes longer.
    """
    ends = (-rule.reach, *rule.splits, rule.reach)
    fixed = torch.tensor(ends, device=kinks.device).to(kinks.dtype)
    borders = fixed.reshape(-1, *[1] * (kinks.ndim - 2)).expand(len(kinks), -1, *kinks.shape[2:])
    for kink in kinks.unbind(1):
        between = torch.maximum(borders[:, :-1], torch.minimum(borders[:, 1:], kink[:, None]))
        borders = torch.cat([borders[:, :1], between, borders[:, -1:]], 1)
    return borders[:, : most + len(ends)]


@constant
def _gauss_legendre(order: int, device: torch.device) -> tuple[Tensor, Tensor]:
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(order))
    return nodes.to(device), weights.to(device)


@constant
def _lattice(dim: int, size: int, stretch: float, device: torch.device) -> tuple[Tensor, Tensor]:
    r"""Korobov lattice for N(0, I_dim): points (M, dim), symmetric about 0, and weights (M,).

    y = stretch * Phi^{-1}(u) with u on the lattice; the weights phi(y) dy/du vanish at the border
    of the cube, which makes the integrand periodic.
    """
    if dim == 0:
        one = torch.ones(1, dtype=torch.float64, device=device)
        return one.new_zeros(1, 0), one
    size = _prime_below(size)
    z = [pow(_korobov(dim, size), j, size) for j in range(dim)]
    # on the CPU, so that all devices have the same points
    k, z = torch.arange(size, device="cpu"), torch.tensor(z, device="cpu")
    u = (k[:, None] * z % size).double() / size
    # centred: the point 0 maps to y = 0, and size is odd, so u = 0 never occurs
    y = stretch * torch.special.ndtri((u + 0.5) % 1)
    log_weight = -0.5 * (1 - stretch**-2) * y.square().sum(-1)
    weight = torch.exp(log_weight)
    kept = weight > 1e-9 * weight.max()
    return y[kept].to(device), (weight[kept] / weight[kept].sum()).to(device)


@lru_cache(maxsize=64)
def _korobov(dim: int, size: int, trials: int = 200) -> int:
    """The best of some multipliers by the criterion P_2, with weights 1 (dim <= 3), else 0.1."""
    golden = (5**0.5 - 1) / 2
    trial = np.unique((size * (np.arange(1, trials + 1) * golden % 1)).astype(np.int64))
    x = np.arange(size) / size
    bernoulli = (1.0 if dim <= 3 else 0.1) * 2 * np.pi**2 * (x * x - x + 1 / 6)
    index = np.arange(size)

    def criterion(multiplier: int) -> float:
        product, z = np.ones(size), 1
        for _ in range(dim):
            product *= 1 + bernoulli[index * z % size]
            z = z * multiplier % size
        return product.mean()

    return min([1, *(int(a) for a in trial if 1 < a < size - 1)], key=criterion)


def _prime_below(n: int) -> int:
    while any(n % q == 0 for q in range(2, math.isqrt(n) + 1)):
        n -= 1
    return n

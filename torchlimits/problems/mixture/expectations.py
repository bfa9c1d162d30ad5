"""Gaussian expectations of a two-layer ReLU network with a logistic output.

This is the largest absolute error of `relu_moments` over all entries of drift and corrector at a
random point (v, m ~ N(0, 1), R = A A^T with some of rank 0 and 1, snr log-uniform in [0.1, 1e6]),
and the time for a point in a batch on two CPU cores:

===  ======  =====  =====  ======
K    median  99 %   max    time
===  ======  =====  =====  ======
1    3e-11   3e-9   9e-8   3 us
2    3e-10   6e-9   1e-6   0.04 ms
3    5e-7    7e-6   2e-5   3 ms
4    8e-7    1e-4   2e-4   7 ms
8    1e-5    2e-3   2e-3   85 ms
===  ======  =====  =====  ======

(4000, 3000, 150, 80 and 40 points: for K = 8 the column 99 % is the largest of 40, and 90 % are
within 6e-4; K = 3, 4 are measured against level 2 of the same rule.) With v ~ N(0, 4) the 99 %
column is 5e-7 at K = 2 and 8e-4 at K = 4. Level 1 has, at 99 %, 1e-10 for K = 2, 9e-7 for K = 3,
3e-5 for K = 4 and 5e-4 for K = 8; K >= 3 takes four to six times as long. Errors are largest at
small snr, where sigmoid is nearly a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.mixture import quadrature


class ReluMoments(NamedTuple):
    """T0 ``first``, T1 ``xi`` and T2 ``second`` of `relu_moments`, which defines them."""

    first: Float[Tensor, "*batch K"]
    xi: Float[Tensor, "*batch K K"]
    second: Float[Tensor, "*batch K K"]


def relu_moments(
    mean: Float[Tensor, "*#batch K"], factor: Float[Tensor, "*#batch K K"],
    v: Float[Tensor, "*#batch K"], label: Float[Tensor, "*#batch"] | float = 1.0, *, level: int = 0,
) -> ReluMoments:  # fmt: skip
    r"""Moments of the logistic residual s = sigmoid(psi) - y where neurons are active,

    .. math::
        T^0_i = E[1_i s], \quad T^1_{ij} = E[\xi_j 1_i s], \quad T^2_{ij} = E[1_i 1_j s^2],

    with :math:`h = mean + factor\, \xi`, :math:`\xi \sim N(0, I_K)`, :math:`1_i = 1\{h_i \ge 0\}`
    and :math:`\psi = \sum_i v_i\, relu(h_i)`. Drift and corrector of a two-layer network on a
    Gaussian mixture are linear in them.

    Source: sections 4 and 5 of arXiv 2206.04030; the rule is
    `torchlimits.problems.mixture.quadrature`.

    Args:
        mean: the mean of the pre-activations h, shape ``(..., K)``.
        factor: any matrix L with covariance L L^T, shape ``(..., K, K)``; zero or repeated rows
            are allowed.
        v: second layer, shape ``(..., K)``.
        label: y, 0 or 1, shape ``(...)``.
        level: -3 (coarse) ... 0 (default), 1 ...; see `quadrature.resolution`.

    Returns:
        `ReluMoments`, leading dimensions broadcast, in the dtype of ``mean`` (computed in
        float64). It is deterministic, and up to rounding does not depend on the rest of the batch.
        Derivatives (autograd, torch.func) are those of the integral, within the rule's error,
        given in a table at the head of this module.

        Memory without gradients: some 20 arrays of `quadrature.PIECE` doubles, whatever the batch.
        Reverse mode keeps about 100 bytes a node (20 MB a point at K = 4, 250 MB at K = 8):
        prefer jacfwd, which keeps nothing but multiplies a piece by the number of tangents.

    Raises:
        ValueError: if the shapes do not fit or level is not an int >= -3.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> moments = relu_moments(zero, torch.eye(2, dtype=torch.float64), zero)
        >>> moments.first  # psi = 0: half of the neurons active, s = -1/2
        tensor([-0.2500, -0.2500], dtype=torch.float64)
    """
    quadrature.check_level(level)
    width = mean.shape[-1] if isinstance(mean, Tensor) and mean.ndim else 0
    rule = quadrature.resolution(width, level)
    (moments,) = _moments_of_sides(mean, factor, v, [label], rule)
    return moments


def mixture_moments(
    mean: Float[Tensor, "*batch A K"], factor: Float[Tensor, "*batch K K"],
    v: Float[Tensor, "*batch K"], label: Float[Tensor, " A"],
    opposites: Sequence[tuple[int, int]] = (), *, level: int = 0,
    fast: bool = False,
) -> ReluMoments:  # fmt: skip
    """`relu_moments` of the components of a mixture, which have a covariance in common.

    Args:
        mean: the mean of each component, shape ``(..., A, K)``.
        factor, v: as in `relu_moments`, the same for all components.
        label: of each component, shape ``(A,)``.
        opposites: pairs of components a, b with mean_b = -mean_a. By an even rule (levels -2 and
            -3) they have their nodes in common, which takes three fifths of the time.
        level: as in `relu_moments`.
        fast: for an even rule, see `quadrature.Resolution.fast`.

    Example:
        >>> import torch
        >>> mean = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 2.0, -0.5]])
        >>> given = mean, torch.eye(3), torch.ones(3), torch.tensor([0.0, 1.0])
        >>> shared = mixture_moments(*given, [(0, 1)], level=-2)
        >>> torch.allclose(shared.xi, mixture_moments(*given, level=-2).xi)
        True
    """
    factor, v = factor[..., None, :, :], v[..., None, :]
    rule = quadrature.resolution(mean.shape[-1], level)
    if rule.steep:
        return relu_moments(mean, factor, v, label, level=level)
    rule = rule.fast() if fast else rule
    components = range(mean.shape[-2])
    first, second = ([pair[side] for pair in opposites] for side in (0, 1))
    alone = [a for a in components if a not in {*first, *second}]

    def of(some: list[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([mean[..., a, :] for a in some], -2), torch.stack([*label[some]])

    groups: list[tuple[list[int], ReluMoments]] = []
    if opposites:
        (here, y), (_, y_there) = of(first), of(second)
        sides = _moments_of_sides(here, factor, v, [y, y_there], rule)
        groups += zip((first, second), sides, strict=True)
    if alone:
        here, y = of(alone)
        groups.append((alone, _moments_of_sides(here, factor, v, [y], rule)[0]))
    T0, T1, T2 = (
        dict(
            pair for some, values in groups for pair in zip(some, values[i].unbind(d), strict=True)
        )
        for i, d in enumerate((-2, -3, -3))
    )
    stacked = (
        torch.stack([moment[a] for a in components], d)
        for moment, d in ((T0, -2), (T1, -3), (T2, -3))
    )
    return ReluMoments(*stacked)


def _moments_of_sides(
    mean: Tensor,
    factor: Tensor,
    v: Tensor,
    labels: Sequence[Tensor | float],
    rule: quadrature.Resolution,
) -> list[ReluMoments]:
    """The moments of a mean with the first label and, if there is one, of -mean with the second."""
    batch, inputs = _flat(mean, factor, v)
    given = [torch.as_tensor(y, dtype=torch.float64, device=mean.device) for y in labels]
    whole = torch.broadcast_shapes(batch, *(y.shape for y in given))
    if whole != batch:
        mean = mean.expand(*whole, mean.shape[-1])
        batch, inputs = _flat(mean, factor, v)
    given = [y.expand(batch).reshape(-1) for y in given]
    width = mean.shape[-1]

    def of_sides(some: Tensor, panels: quadrature.Panels) -> tuple[Tensor, ...]:
        sides = [panels, panels.opposite()] if len(given) == 2 else [panels]
        moments = (_moments(side, y[some]) for side, y in zip(sides, given, strict=True))
        return tuple(torch.stack(values, 1).double() for values in zip(*moments, strict=True))

    pieces = quadrature.panels(*inputs, rule)
    results = _gather((some, of_sides(some, piece)) for some, piece in pieces)
    shapes = (width,), (width, width), (width, width)
    if not results:
        results = tuple(mean.new_zeros(0, len(given), *shape) for shape in shapes)
    return [
        ReluMoments(
            *(
                x[:, i].reshape(*batch, *s).to(mean.dtype)
                for x, s in zip(results, shapes, strict=True)
            )
        )
        for i in range(len(given))
    ]


def expect(
    integrand: Callable[..., Tensor], mean: Float[Tensor, "*#batch K"],
    factor: Float[Tensor, "*#batch K K"], v: Float[Tensor, "*#batch K"], *arguments: Tensor,
    level: int = 0,
) -> Tensor:  # fmt: skip
    r"""E[f(xi, h, psi)] for any f that is smooth away from the kinks h_i = 0.

    Args:
        integrand: f(xi, h, psi, \*arguments) with xi and h ``(points, nodes, K)`` and psi
            ``(points, nodes)``; returns ``(points, nodes, ...)``. It is given one piece at a time.
        mean, factor, v: as in `relu_moments`; v tells the rule where sigmoid(psi) is steep.
        arguments: tensors ``(*batch, ...)`` with the full leading dimensions; the integrand gets
            the rows ``(points, ...)`` of a piece.
        level: as in `relu_moments`.

    Returns:
        Shape ``(*batch, ...)`` in float64. Polynomials in xi cost a few digits of the accuracy
        of `relu_moments`: the fourth moment of the Gaussian itself is within 1e-4.

    Raises:
        ValueError: as `relu_moments`, or if the batch is empty.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> expect(lambda xi, h, psi: h.relu() ** 2, 0 * one, one[None], one)  # half of E[xi^2]
        tensor([0.5000], dtype=torch.float64)
    """
    return _expectation(_sum, integrand, mean, factor, v, arguments, level)


def second_moment(
    integrand: Callable[..., Tensor], mean: Float[Tensor, "*#batch K"],
    factor: Float[Tensor, "*#batch K K"], v: Float[Tensor, "*#batch K"], *arguments: Tensor,
    level: int = 0,
) -> Float[Tensor, "*batch k k"]:  # fmt: skip
    r"""E[F^T F] for a matrix-valued F(xi, h, psi), smooth away from the kinks h_i = 0.

    Arguments and errors are as in `expect`; the integrand returns F, ``(points, nodes, r, k)``.

    Returns:
        Shape ``(*batch, k, k)`` in float64, without ever holding k x k numbers for each node.

    Example:
        >>> import torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> second_moment(lambda xi, h, psi: h.relu()[..., None, :], 0 * one, one[None], one)
        tensor([[0.5000]], dtype=torch.float64)
    """
    return _expectation(_sum_of_products, integrand, mean, factor, v, arguments, level)


def _expectation(
    total: Callable[[Tensor, Tensor], Tensor], integrand: Callable[..., Tensor], mean: Tensor,
    factor: Tensor, v: Tensor, arguments: tuple[Tensor, ...], level: int,
) -> Tensor:  # fmt: skip
    """The rule's total(weights, values) of an integrand, over the pieces."""
    quadrature.check_level(level)
    batch, (mean, factor, v) = _flat(mean, factor, v)
    if len(mean) == 0:
        raise ValueError(f"expected at least one point, got a batch of shape {tuple(batch)}")
    rows = [x.reshape(len(mean), *x.shape[len(batch) :]) for x in arguments]

    def value(some: Tensor, panels: quadrature.Panels) -> tuple[Tensor]:
        xi = panels.xi()
        h = mean[some, None] + xi @ factor[some].mT
        values = integrand(xi, h, panels.psi.flatten(1), *(x[some] for x in rows))
        return (total(panels.weight.flatten(1), values),)

    pieces = quadrature.panels(mean, factor, v, quadrature.resolution(mean.shape[-1], level))
    (result,) = _gather((some, value(some, piece)) for some, piece in pieces)
    return result.reshape(*batch, *result.shape[1:])


def _sum(weight: Tensor, values: Tensor) -> Tensor:
    return torch.einsum("pn,pn...->p...", weight, values)


def _sum_of_products(weight: Tensor, values: Tensor) -> Tensor:
    # weights of some panels are negative and have no square roots
    rows = (weight[..., None, None] * values).flatten(1, 2)
    return rows.mT @ values.flatten(1, 2)


def _flat(
    mean: Tensor, factor: Tensor, v: Tensor
) -> tuple[torch.Size, tuple[Tensor, Tensor, Tensor]]:
    """The common leading dimensions, and the three inputs in float64 with one batch dimension."""
    for name, x in (("mean", mean), ("factor", factor), ("v", v)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            what = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"expected {name} as a tensor of floats, got {what}: convert it")
    width = mean.shape[-1] if mean.ndim else 0
    for name, x, shape in (("factor", factor, (width, width)), ("v", v, (width,))):
        if width == 0 or x.shape[-len(shape) :] != shape:
            raise ValueError(
                f"expected {name} of shape (..., {', '.join(map(str, shape))}) for mean of shape "
                f"{tuple(mean.shape)}, got {tuple(x.shape)}"
            )
    batch = torch.broadcast_shapes(mean.shape[:-1], factor.shape[:-2], v.shape[:-1])
    points = batch.numel()
    return batch, (
        mean.double().expand(*batch, width).reshape(points, width),
        factor.double().expand(*batch, width, width).reshape(points, width, width),
        v.double().expand(*batch, width).reshape(points, width),
    )


def _moments(panels: quadrature.Panels, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T0, T1, T2 summed over the nodes of one piece; activity is constant on a panel.

    With the sign of 1/2 - y, s is sign sigmoid(sign psi).
    """
    sign = (1 - 2 * label.to(panels.t))[:, None, None]
    signed = replace(panels, level=sign * panels.level, slope=sign * panels.slope)
    size = torch.sigmoid(signed.psi)
    weighted = panels.density * size
    mass = sign * panels.size * weighted.sum(1)
    along = sign * panels.size * (weighted * panels.t).sum(1)
    square = panels.size * (weighted * size).sum(1)
    by_line = (panels.active * mass[:, None]).sum(2)
    active = panels.active.flatten(2)
    t1 = torch.cat([active @ along.flatten(1)[..., None], by_line @ panels.offsets], -1)
    t2 = (active * square.flatten(1)[:, None]) @ active.mT
    return by_line.sum(-1), t1 @ panels.frame.mT, t2


def _gather(pieces: Iterable[tuple[Tensor, tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
    """Sum the pieces of the same points, and put the points in order."""
    points: list[Tensor] = []
    sums: list[tuple[Tensor, ...]] = []
    for some, values in pieces:
        if points and some is points[-1]:
            sums[-1] = tuple(a + b for a, b in zip(sums[-1], values, strict=True))
        else:
            points.append(some)
            sums.append(values)
    if not points:
        return ()
    order = torch.cat(points).argsort()
    return tuple(torch.cat(x)[order] for x in zip(*sums, strict=True))

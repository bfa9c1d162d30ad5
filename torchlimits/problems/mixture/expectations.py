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

from collections.abc import Callable, Iterable
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
    batch, inputs = _flat(mean, factor, v, level)
    label = torch.as_tensor(label, dtype=torch.float64, device=mean.device)
    whole = torch.broadcast_shapes(batch, label.shape)
    if whole != batch:
        mean = mean.expand(*whole, mean.shape[-1])
        batch, inputs = _flat(mean, factor, v, level)
    label = label.expand(batch).reshape(-1)
    width = mean.shape[-1]
    shapes = (width,), (width, width), (width, width)
    pieces = quadrature.panels(*inputs, quadrature.resolution(width, level))
    results = _gather((some, _moments(piece, label[some])) for some, piece in pieces)
    if not results:
        return ReluMoments(*(mean.new_zeros(*batch, *shape) for shape in shapes))
    return ReluMoments(
        *(x.reshape(*batch, *s).to(mean.dtype) for x, s in zip(results, shapes, strict=True))
    )


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
    batch, (mean, factor, v) = _flat(mean, factor, v, level)
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
    mean: Tensor, factor: Tensor, v: Tensor, level: int
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
    quadrature.check_level(level)
    batch = torch.broadcast_shapes(mean.shape[:-1], factor.shape[:-2], v.shape[:-1])
    points = batch.numel()
    return batch, (
        mean.double().expand(*batch, width).reshape(points, width),
        factor.double().expand(*batch, width, width).reshape(points, width, width),
        v.double().expand(*batch, width).reshape(points, width),
    )


def _moments(panels: quadrature.Panels, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T0, T1, T2 summed over the nodes of one piece; activity is constant on a panel."""
    active, frame = panels.active, panels.frame
    s = torch.sigmoid(panels.psi) - label[:, None, None, None]
    weighted = panels.weight * s
    mass, along = weighted.sum(2), (weighted * panels.t).sum(2)
    square = (weighted * s).sum(2)
    by_line = (active * mass[:, None]).sum(2)
    t1 = (active * along[:, None]).sum((2, 3))[..., None]
    t1 = torch.cat([t1, by_line @ panels.offsets], -1) @ frame.mT
    flat = active.flatten(2)
    return by_line.sum(-1), t1, (flat * square.flatten(1)[:, None]) @ flat.mT


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

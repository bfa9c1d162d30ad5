"""The fluctuation band: how far runs at dimension n stray from the effective dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._checks import warn_user
from torchlimits.dynamics.coefficients import Coefficients, Curve
from torchlimits.dynamics.diffusive import flow_and_noise
from torchlimits.dynamics.flow import Flow

#: times at which the solution is known besides those asked for, and steps of the covariance
_FINE, _STEPS = 256, 80
#: a statistic that is said to fluctuate by this many times its own size does not
_BEYOND = 10.0
#: change of a standard deviation, relative, at which derivatives are known at enough times
_ENOUGH = 1e-2
#: the same, at which a user should know
_DOUBTFUL = 0.1

Solve = Callable[[Float[Tensor, " T"]], Float[Tensor, "*batch T k"]]


def fluctuations(
    flow: Flow, solve: Solve, times: Float[Tensor, " T"], initial: Float[Tensor, "*#batch k k"]
) -> tuple[Float[Tensor, "*batch T k"], Float[Tensor, "*batch T k k"]]:
    r"""The solution u(t) of the ballistic limit and Cov u(t) around it at dimension n,

    .. math:: \dot P = A P + P A^T + D/n, \quad A = \nabla(-f + g)(u(t)), D = D(u(t)),

    the linear-noise approximation, with D that of the full one-step increment (`diffusion`).

    A and D are evaluated at 6 times, dense where u moves, then halfway between these, and so on to
    41 times, until standard deviations change by less than 1 %. As the finer ones are kept, the
    error is half of that or less. In between they are interpolated. The covariance is carried by
    the exponentials of short steps, which keep it positive semidefinite.

    Where fluctuations grow to more than ten times the size of the statistics, as at neurons that
    have become parallel, the linear approximation means nothing: P is NaN from there on, with a
    warning.

    Args:
        flow: gives A, D and n.
        solve: u at increasing times, the first of them ``times[0]``.
        times: shape ``(T,)``; they may repeat and do not fall.
        initial: P at ``times[0]``.
    """
    asked_for = times
    times = times.unique_consecutive()
    if len(times) == 1:
        u = solve(asked_for)
        return u, initial.to(u).expand(*u.shape, u.shape[-1])
    grid = _grid(times)
    u = solve(grid)
    curve = Curve(flow, grid, u)
    coefficients = _known_well_enough(curve, initial.to(u))
    # short steps where u moves, and no others but to the times asked for
    rows = torch.cat([curve.rows(_STEPS), torch.searchsorted(grid, times)]).unique()
    A, D = coefficients.between(rows)
    grid, u = grid[rows], u[..., rows, :]
    P = carried(A, D / flow.dim, grid.diff(), initial.to(u))
    asked = torch.searchsorted(grid, asked_for)
    return u[..., asked, :], _meaningful(P, u, grid)[..., asked, :, :]


def carried(
    A: Float[Tensor, "*batch S k k"],
    D: Float[Tensor, "*batch S k k"],
    h: Float[Tensor, " S"],
    initial: Float[Tensor, "*#batch k k"],
) -> Float[Tensor, "*batch S+1 k k"]:
    """The covariance after each of S steps h, with constant A and D/n in each.

    Args:
        A, D: one matrix for each step.
        h: the lengths of the steps.
        initial: the covariance at the start.
    """
    propagators, gained = flow_and_noise(A, D, h.to(A)[:, None, None])
    covariances = [initial.expand(*A.shape[:-3], *initial.shape[-2:])]
    for F, more in zip(propagators.unbind(-3), gained.unbind(-3), strict=True):
        P = F @ covariances[-1] @ F.mT + more
        covariances.append((P + P.mT) / 2)
    return torch.stack(covariances, dim=-3)


def _known_well_enough(curve: Curve, initial: Float[Tensor, "*#batch k k"]) -> Coefficients:
    """A and D at as many times as standard deviations need."""
    rows = curve.rows()
    change, before = float("inf"), None
    coefficients = curve.coefficients(rows[:: curve.COARSEST])
    stride = curve.COARSEST
    while True:
        A, D = coefficients.between(rows, nonnegative=False)
        P = carried(A, D / curve.flow.dim, curve.grid[rows].diff(), initial)
        std = P.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        change = float("inf") if before is None else _change(before, std)
        if change <= _ENOUGH or stride == 1 or not bool(std.isfinite().all()):
            break
        stride, before = stride // 2, std
        coefficients = curve.coefficients(rows[::stride], coefficients)
    if _DOUBTFUL < change < float("inf"):
        warn_user(
            f"the band may be off by {change:.0%} of a standard deviation: the derivatives of the "
            "dynamics change faster than the 41 times show at which they are evaluated; ask for "
            "shorter pieces, each from the covariance that the one before ends with"
        )
    return coefficients


def _change(before: Float[Tensor, "*batch T k"], std: Float[Tensor, "*batch T k"]) -> float:
    """The largest change, relative, and beside a hundredth of a statistic's largest band."""
    size = torch.maximum(std, 1e-2 * std.amax(-2, keepdim=True)).clamp_min(1e-300)
    return float(((std - before).abs() / size).max())


def _meaningful(
    P: Float[Tensor, "*batch G k k"], u: Float[Tensor, "*batch G k"], grid: Float[Tensor, " G"]
) -> Float[Tensor, "*batch G k k"]:
    """P, and NaN from where it cannot be right."""
    variance = P.diagonal(dim1=-2, dim2=-1)
    size = _BEYOND * (1 + u.abs().amax(-2, keepdim=True))
    beyond = ~(variance <= size.square()).all(-1)
    lost = beyond.cumsum(-1) > 0
    if not bool(lost.any()):
        return P
    first = float(grid[int(lost.reshape(-1, len(grid)).any(0).double().argmax())])
    warn_user(
        f"there is no band from t = {first:.4g} on (NaN): by the linear approximation fluctuations "
        "would be more than ten times as large as the statistics themselves, as near saddles and "
        "where neurons become parallel; take the law of runs instead (reduced_chain, langevin), or "
        "start later"
    )
    return torch.where(lost[..., None, None], torch.nan, P)


def _grid(times: Float[Tensor, " T"]) -> Float[Tensor, " G"]:
    """The times, and others in between so that no step is long."""
    like: dict[str, Any] = {"dtype": times.dtype, "device": times.device}
    fine = torch.linspace(float(times[0]), float(times[-1]), _FINE + 1, **like)
    # not beside a time: solvers underflow in steps of rounding's size
    right = times[torch.searchsorted(times, fine).clamp_max(len(times) - 1)]
    left = times[(torch.searchsorted(times, fine) - 1).clamp_min(0)]
    gap = torch.minimum((right - fine).abs(), (fine - left).abs())
    fine = fine[gap > 1e-6 * (times[-1] - times[0])]
    return torch.cat([times, fine]).sort().values

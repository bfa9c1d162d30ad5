"""The fluctuation band: how far runs at dimension n stray from the effective dynamics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.diffusive import van_loan
from torchlimits.dynamics.flow import POINTS, Flow

#: times at which derivatives and diffusion matrices are evaluated; between them they are linear
_NODES = 41
#: steps of the covariance besides the times asked for
_STEPS = 256

Solve = Callable[[Float[Tensor, " T"]], Float[Tensor, "*batch T k"]]


def fluctuations(
    flow: Flow, solve: Solve, times: Float[Tensor, " T"], initial: Float[Tensor, "*#batch k k"]
) -> tuple[Float[Tensor, "*batch T k"], Float[Tensor, "*batch T k k"]]:
    r"""The solution u(t) of the ballistic limit and Cov u(t) around it at dimension n,

    .. math:: \dot P = A P + P A^T + D/n, \quad A = \nabla(-f + g)(u(t)), D = D(u(t)),

    the linear-noise approximation, with D that of the full one-step increment (`diffusion`).

    A and D are evaluated at 41 times that are dense where u moves, and are linear in between. The
    covariance is carried by the exponentials of short steps, which keep it positive semidefinite.

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
    rows = _nodes(grid, u)
    A, D = _coefficients(flow, grid[rows], u[..., rows, :])
    propagators, gained = _steps(grid, grid[rows], A, D / flow.dim)
    covariances = [initial.to(u).expand(*u.shape[:-2], *initial.shape[-2:])]
    for step in range(len(grid) - 1):
        F = propagators[..., step, :, :]
        P = F @ covariances[-1] @ F.mT + gained[..., step, :, :]
        covariances.append((P + P.mT) / 2)
    asked = torch.searchsorted(grid, asked_for)
    return u[..., asked, :], torch.stack(covariances, dim=-3)[..., asked, :, :]


def _grid(times: Float[Tensor, " T"]) -> Float[Tensor, " G"]:
    """The times, and others in between so that no step is long."""
    like: dict[str, Any] = {"dtype": times.dtype, "device": times.device}
    fine = torch.linspace(float(times[0]), float(times[-1]), _STEPS + 1, **like)
    # not beside a time: solvers underflow in steps of rounding's size
    right = times[torch.searchsorted(times, fine).clamp_max(len(times) - 1)]
    left = times[(torch.searchsorted(times, fine) - 1).clamp_min(0)]
    gap = torch.minimum((right - fine).abs(), (fine - left).abs())
    fine = fine[gap > 1e-6 * (times[-1] - times[0])]
    return torch.cat([times, fine]).sort().values


def _nodes(grid: Float[Tensor, " G"], u: Float[Tensor, "*batch G k"]) -> Tensor:
    """Rows of the grid that are evenly spread in time and along the solutions, half each."""
    length = u.diff(dim=-2).norm(dim=-1).reshape(-1, len(grid) - 1).amax(0).cpu()
    travelled = torch.cat([length.new_zeros(1), length.cumsum(0)])
    elapsed = (grid - grid[0]) / (grid[-1] - grid[0])
    progress = elapsed + travelled / travelled[-1].clamp_min(1e-300)
    marks = torch.linspace(0, float(progress[-1]), _NODES, dtype=grid.dtype, device=progress.device)
    rows = torch.searchsorted(progress, marks).clamp_max(len(grid) - 1)
    return torch.cat([rows.new_tensor([0]), rows, rows.new_tensor([len(grid) - 1])]).unique()


def _coefficients(
    flow: Flow, times: Float[Tensor, " M"], u: Float[Tensor, "*batch M k"]
) -> tuple[Float[Tensor, "*batch M k k"], Float[Tensor, "*batch M k k"]]:
    coarse = flow.on(flow.field.for_band())
    if flow.schedule is None:
        return _coefficients_at(coarse, u, 0.0)
    moments = zip(times.tolist(), u.unbind(-2), strict=True)
    pairs = [_coefficients_at(coarse, at, t) for t, at in moments]
    A, D = (torch.stack(matrices, dim=-3) for matrices in zip(*pairs, strict=True))
    return A, D


def _coefficients_at(
    flow: Flow, u: Float[Tensor, "*batch k"], t: float
) -> tuple[Float[Tensor, "*batch k k"], Float[Tensor, "*batch k k"]]:
    flat = u.reshape(-1, u.shape[-1])
    A = flow.jacobian(flat, t)
    D = torch.cat([flow.diffusion(piece, t) for piece in flat.split(POINTS)])
    shape = (*u.shape, u.shape[-1])
    return A.reshape(shape), D.reshape(shape)


def _steps(
    grid: Float[Tensor, " G"],
    nodes: Float[Tensor, " M"],
    A: Float[Tensor, "*batch M k k"],
    D: Float[Tensor, "*batch M k k"],
) -> tuple[Float[Tensor, "*batch S k k"], Float[Tensor, "*batch S k k"]]:
    """exp(A h) and the covariance gained, for the steps of the grid."""
    middle, h = (grid[1:] + grid[:-1]) / 2, grid.diff().to(A)[:, None, None]
    return van_loan(_linear(middle, nodes, A), _linear(middle, nodes, D), h)


def _linear(
    t: Float[Tensor, " S"], nodes: Float[Tensor, " M"], values: Float[Tensor, "*batch M k k"]
) -> Float[Tensor, "*batch S k k"]:
    right = torch.searchsorted(nodes, t).clamp(1, len(nodes) - 1)
    left = right - 1
    weight = ((t - nodes[left]) / (nodes[right] - nodes[left])).to(values)[:, None, None]
    # positive semidefinite matrices stay so
    return values[..., left, :, :] * (1 - weight) + values[..., right, :, :] * weight

"""`equal_nodes`: nodes of equal weights, with a component and a label each, and batches of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits._threads import constant
from torchlimits.problems.network.nodes import Rule, sobol
from torchlimits.problems.network.setting import Setting

#: batches at most; twice as many halve the error of 6e-4 over a run
_BATCHES = 2**13


def equal_nodes(
    setting: Setting, rule: Rule, batch_size: int, like: Tensor
) -> tuple[Float[Tensor, "n e"], Tensor, Int[Tensor, "T B"]]:
    """psi and labels of n nodes of equal weights, and T batches of B of them.

    Components and labels are drawn by two more coordinates of the quasi-random points.

    Args:
        setting: the network, its data and its loss.
        rule: the rule whose dimensions, count and seed count.
        batch_size: B.
        like: on the device.
    """
    count = min(_BATCHES, 2 * rule.most)
    points = sobol(rule.dims + 2, count, rule.seed).points.to(like)
    normals, uniforms = points[:, :-2], torch.special.ndtr(points[:, -2:])
    component = _drawn(setting.shares.to(like).expand(count, -1), uniforms[:, 0])
    r, A = len(setting.reads), len(setting.coordinates)
    x = setting.x_parallel(normals[:, :r])[component, torch.arange(count, device=like.device)]
    targets, shares = setting.labels.law(x, component)
    label = _drawn(shares.to(like), uniforms[:, 1])
    y = targets[torch.arange(count, device=like.device), label]
    own = torch.eye(A, dtype=like.dtype, device=like.device)[component]
    tuples = _permutations(count, batch_size, rule.seed).to(like.device)
    y = y.double() if y.is_floating_point() else y
    return torch.cat([own, normals], dim=-1), y, tuples


def _drawn(shares: Float[Tensor, "n q"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The place where each cumulative law passes a number."""
    whole = shares.cumsum(-1)
    return (uniform[:, None] * whole[:, -1:] >= whole).sum(-1).clamp_max(shares.shape[1] - 1)


@constant
def _permutations(count: int, batch_size: int, seed: int) -> Int[Tensor, "n B"]:
    generator = torch.Generator().manual_seed(seed)
    each = [torch.randperm(count, generator=generator, device="cpu") for _ in range(batch_size)]
    return torch.stack(each, dim=-1)

"""`resolution`: what the nodes of integrals resolve, for what an optimizer does to gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.optim.adaptive_limit import AdaptiveLimit
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting


def resolution(
    setting: Setting, kinks: Kinks, limit: OptimizerLimit | None, *, nodes: int, seed: int = 0
) -> tuple[Setting, Rule]:
    """The setting with what the nodes have to resolve, and the rule of the nodes.

    Args:
        setting: the network, its data and its loss.
        kinks: tells where gradients jump.
        limit: what the optimizer does; None if that does not count.
        nodes: their number, for each component.
        seed: the seed of the nodes, where they are Sobol points.
    """
    smooth = kinks.smooth
    if isinstance(limit, (AdaptiveLimit, MappedLimit)):
        setting = _resolving(setting, limit.axes)
        smooth = smooth and limit.map is None
    return setting, Rule(len(setting.reads) + setting.layout.width, nodes, seed, smooth=smooth)


def _resolving(setting: Setting, axes: Float[Tensor, "d J"]) -> Setting:
    """The setting, with coordinates of x that are axes among what the nodes resolve."""
    if not axes.numel():
        return setting
    together = torch.cat([setting.reads.to(axes), axes.mT])
    _, sizes, rows = torch.linalg.svd(together, full_matrices=False)
    return replace(setting, reads=rows[sizes > 1e-9 * sizes[0]])

"""Whether points at which -f + g is small are zeros of it, or lie on the way to infinity."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits.dynamics.flow import Flow

#: singular values below this fraction of the largest are those of directions without a slope
_FLAT = 1e-9
#: each step of the way back from a point to the origin goes a tenth of it, 60 times: to 0.2 %
_BACK, _STEPS = 0.9, 60
#: values, relative to the largest on the way back, that a decay passes through and a border skips
_RAMP = (1e-12, 1e-6)


def newton(flow: Flow, u: Float[Tensor, "S k"]) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
    """The length of the Newton step at each point, and the radius within which all look like zeros.

    In each singular direction of the Jacobian, -f + g counts as far as it is larger than its own
    roughness, which is what is left of it beside u when the linear part is taken off: rounding at
    closed forms. Directions in which integrals are too rough to see a slope do not count.

    Args:
        flow: the dynamics.
        u: S points at which -f + g is small.
    """
    if not len(u):
        return u.new_zeros(0), u.new_zeros(0)
    value, slope = flow(0.0, u), flow.jacobian(u)
    left, s, _ = torch.linalg.svd(slope)
    rough = torch.zeros_like(u)
    normal: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(0), "dtype": torch.float64, "device": "cpu",
    }  # fmt: skip
    for _ in range(3):
        signs = torch.randn(u.shape, **normal).sign()
        beside = 1e-7 * u * signs.to(u)
        change = flow(0.0, u + beside) - value - (slope @ beside[..., None])[..., 0]
        rough = torch.maximum(rough, (left.mT @ change[..., None])[..., 0].abs())
    along = (left.mT @ value[..., None])[..., 0].abs()
    unseen = s * u.abs().amax(-1, keepdim=True) <= (flow.error if flow.error > 1e-12 else 0.0)
    gain = torch.where(s > 0, 1 / s.clamp_min(1e-300), 0.0)
    # a value without any slope to explain it is far from a zero
    gain = torch.where((s == 0) & (along > 10 * rough), torch.inf, gain)
    step = torch.where(unseen, 0.0, (along - 10 * rough).clamp_min(0) * gain).nan_to_num(0.0)
    blur = ((along + rough) * gain).nan_to_num(0.0)
    return step.norm(dim=-1), blur.norm(dim=-1)


def fading(flow: Flow, u: Float[Tensor, "S k"]) -> Bool[Tensor, " S"]:
    """Whether -f + g has faded away towards a point, along directions in which it has no slope.

    On the way back to the origin along these directions it then comes back gradually, over many
    orders of magnitude: the logistic loss of a mixture without noise and ridge falls like
    exp(-\\|u\\|^2). Beside a component of fixed points it rises like a power of the distance.

    Args:
        flow: the dynamics.
        u: S points at which -f + g is small.
    """
    found = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    if not len(u):
        return found
    _, s, right = torch.linalg.svd(flow.jacobian(u))
    flat = s <= _FLAT * s[:, :1].clamp_min(1e-300)
    along = (right.mT @ (flat * (right @ u[..., None])[..., 0])[..., None])[..., 0]
    tried = along.norm(dim=-1) > 0.1 * (1 + u.norm(dim=-1))
    if not bool(tried.any()):
        return found
    left = _BACK ** torch.arange(1, _STEPS + 1, dtype=u.dtype, device=u.device)
    back = u[tried, None] - (1 - left[:, None]) * along[tried, None]
    value = flow(0.0, flow.geometry.project(back)).norm(dim=-1)
    value = value / value.amax(-1, keepdim=True).clamp_min(1e-300)
    low, high = _RAMP
    found[tried] = ((value > low) & (value < high)).sum(-1) >= 2
    return found

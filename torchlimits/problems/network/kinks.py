"""`Kinks`: where a sample's gradient jumps, which derivatives at nodes miss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.setting import Setting

#: lines that are followed, points on each, and how many of the longest steps are examined
_LINES, _POINTS, _LONGEST = 16, 513, 8
#: the parts that a step is cut into, and how often, down to 10^-8 of a line
_CUTS, _ROUNDS = 33, 4


class Kinks(NamedTuple):
    """Whether a sample's gradient (dl/dtheta, dl/dh) jumps, and which variable makes it jump.

    Attributes:
        in_h: whether it jumps as h moves, with the head's parameters fixed (ReLU, say).
        steps_in_h: whether dl/dtheta, too, jumps as h moves, since the loss does (sign, say).
        in_theta: whether it jumps as the head's parameters move: at kinks inside the head, or of
            the loss.
        in_labels: whether labels jump as x_parallel moves.
    """

    in_h: bool
    steps_in_h: bool
    in_theta: bool
    in_labels: bool

    @property
    def smooth(self) -> bool:
        """Whether averages are integrals of smooth functions."""
        return not any(self)

    def check(self, what: str) -> None:
        """Refuse derivatives of averages where jumps move with the head's parameters.

        Args:
            what: names what needs the derivatives.

        Raises:
            NotImplementedError: if they are not known.
        """
        if self.in_theta:
            raise NotImplementedError(
                f"{what} need derivatives of averages of gradients that jump where the head's own "
                "parameters say (a ReLU behind another layer of the head, a loss with a kink), "
                "which are not known: drift, corrector, solve() without band=True, risk and "
                "accuracy are right; take a smooth activation (GELU, softplus) and loss for the "
                "rest, or the exact law of runs by reduced_chain(...)"
            )


def found(setting: Setting) -> Kinks:
    """Follow gradients and labels along random lines, and look into their longest steps.

    Args:
        setting: the network, its data and its loss.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    K, (A, d) = setting.layout.width, setting.coordinates.shape
    component = torch.arange(_LINES, device="cpu") % A
    x = setting.coordinates.cpu()[component] + normal(_LINES, d) * setting.snr**-0.5
    theta = setting.head.start + 0.5 * normal(_LINES, setting.head.size)
    h, target = 2 * normal(_LINES, K), _drawn(setting, x, component, generator)

    def gradients(theta: Tensor, h: Tensor) -> Tensor:
        lines, points = theta.shape[:2]
        y = target.expand(lines // _LINES, *target.shape).flatten(0, 1)
        y = y[:, None].expand(lines, points, *target.shape[1:]).flatten(0, 1)
        both = setting.sample_gradients(theta.flatten(0, 1), h.flatten(0, 1), y)
        return torch.cat(both, -1).unflatten(0, (lines, points))

    def along_h(moved: Tensor) -> Tensor:
        return gradients(_beside(theta, moved), moved)

    def along_theta(moved: Tensor) -> Tensor:
        return gradients(moved, _beside(h, moved))

    def along_x(moved: Tensor) -> Tensor:
        lines, points = moved.shape[:2]
        a = component.repeat(lines // _LINES)[:, None].expand(lines, points)
        targets, shares = setting.labels.law(moved.flatten(0, 1), a.flatten())
        values = [t.flatten(1).to(moved) for t in (targets, shares)]
        return torch.cat(values, -1).unflatten(0, (lines, points))

    reads = len(setting.reads) > 0
    towards, P = normal(_LINES, K), setting.head.size
    steps = P > 0 and _jumps(lambda moved: along_h(moved)[..., :P], h, towards)
    return Kinks(
        in_h=steps or _jumps(along_h, h, towards),
        steps_in_h=steps,
        in_theta=setting.head.size > 0
        and _jumps(along_theta, theta, normal(_LINES, setting.head.size)),
        in_labels=reads and _jumps(along_x, x, normal(_LINES, d)),
    )


def _drawn(setting: Setting, x: Tensor, component: Tensor, generator: torch.Generator) -> Tensor:
    """One target of the law for each line."""
    targets, shares = setting.labels.law(x, component)
    chosen = torch.multinomial(shares.double(), 1, generator=generator)[:, 0]
    target = targets[torch.arange(len(x), device="cpu"), chosen]
    return target.double() if target.is_floating_point() else target


def _beside(fixed: Float[Tensor, "lines D"], moved: Tensor) -> Tensor:
    """Repeat what does not move for the points of lines, each followed in several places."""
    lines, points = moved.shape[:2]
    return fixed.repeat(lines // len(fixed), 1)[:, None].expand(lines, points, -1)


def _jumps(
    values: Callable[[Tensor], Tensor], start: Float[Tensor, "lines D"], direction: Tensor
) -> bool:
    """Whether a function jumps on one of the lines start + t direction, t from -3 to 3.

    Args:
        values: points ``(lines, n, D)`` -> ``(lines, n, C)``; lines may come several times.
        start, direction: ``(lines, D)``.
    """
    cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}

    def steps(left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Place ``count`` points between two; how far does the function move between neighbours?

        Left and right are (times, lines); the results have a last dimension of count, and one less.
        """
        share = torch.linspace(0, 1, count, **cpu)
        t = left[..., None] + (right - left)[..., None] * share
        points = start[:, None] + t[..., None] * direction[:, None]
        moved = values(points.flatten(0, 1)).unflatten(0, t.shape[:2])
        return t, moved.diff(dim=-2).abs().amax(-1)

    lines = len(start)
    edge = torch.full((1, lines), 3.0, **cpu)
    t, first = steps(-edge, edge, _POINTS)
    longest = first[0].topk(_LONGEST, dim=-1)
    before, at = longest.values.mT, longest.indices.mT  # (longest, lines)
    left, right = (t[0].gather(1, (at + side).mT).mT for side in (0, 1))
    after = torch.zeros_like(before)
    for _ in range(_ROUNDS):
        t, moved = steps(left, right, _CUTS)
        best = moved.argmax(-1, keepdim=True)
        left, right = (t.gather(2, best + side)[..., 0] for side in (0, 1))
        after = moved.gather(2, best)[..., 0]
    return bool((after > 0.3 * before).logical_and(before > 1e-9).any())

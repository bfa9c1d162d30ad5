"""`StepNoise`: the covariance of one step of an optimizer that scales gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import GradientField
from torchlimits.optim.batch_averages import Draws
from torchlimits.optim.moment_layout import Entries


@dataclass(frozen=True, eq=False)
class StepNoise:
    r"""The covariance of one step -D G, in units of c_delta / N.

    An increment of the statistics is linear in the gradient, and quadratic in W's,
    :math:`c_\delta D C D` in R, where it is of the same order.

    Args:
        base: the field of the statistics.
        axes: the coordinates of x with scales of their own, in the basis of the directions,
            ``(d, J)``.
    """

    base: GradientField
    axes: Float[Tensor, "d J"]

    def covariance(
        self, draws: Draws, scales: Entries, step_size: float,
        beside: Float[Tensor, "T V"] | None = None,
    ) -> Float[Tensor, "k k"]:  # fmt: skip
        """The covariance of the statistics' increments, and of others beside them.

        Args:
            draws: gradients that stand for all.
            scales: D of every parameter, negative where the loss is maximised, 0 where nothing
                moves.
            step_size: c_delta.
            beside: other increments in each draw.
        """
        moves = self._moves(draws, scales, step_size)
        n = moves.shape[1]
        if beside is not None:
            moves = torch.cat([moves, beside], dim=-1)
        centred = moves - draws.weight @ moves
        covariance = centred.mT @ (draws.weight[:, None] * centred)
        for rows, gram in draws.others:
            linear = self._linear(rows, scales)
            covariance[:n, :n] += torch.einsum("eik,ij,ejl->kl", linear, gram, linear)
        return covariance / draws.per_batch

    def _moves(self, draws: Draws, D: Entries, step_size: float) -> Float[Tensor, "T n"]:
        """The change of the statistics in each draw."""
        m, half = self._first_layer(draws.along, D)
        kick = step_size * D.rows[:, None] * draws.pair * D.rows
        return self.base.of_parts(
            -D.theta * draws.theta, -D.bias * draws.bias, m, half + half.mT + kick
        )

    def _linear(self, rows: Float[Tensor, "e w"], D: Entries) -> Float[Tensor, "e K n"]:
        """The change with a gradient of 1 in one row of W at a time, along each of some rows."""
        K, e = self.base.width, len(rows)
        each = torch.eye(K, dtype=rows.dtype, device=rows.device).expand(e, K, K)
        m, half = self._first_layer(each[..., :, None] * rows[:, None, None, :], D)
        still = rows.new_zeros(e, K, len(self.base.head))
        return self.base.of_parts(still, torch.zeros_like(each), m, half + half.mT)

    def _first_layer(self, along: Float[Tensor, "*lead K w"], D: Entries) -> tuple[Tensor, Tensor]:
        """The moves of m, and half of those of R, for W's gradients along (directions, W)."""
        d, axes = len(self.axes), self.axes.to(along)
        pull = -D.rows[:, None] * along
        m = pull[..., :d] - ((D.axes - D.rows[:, None]) * (along[..., :d] @ axes)) @ axes.mT
        return m, pull[..., d:]

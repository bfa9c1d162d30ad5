"""`MomentNoise`: the covariance of one step of an optimizer that keeps second moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.optim.batch_averages import Draws
from torchlimits.optim.moment_layout import Entries, MomentLayout
from torchlimits.optim.step_noise import StepNoise


class Step(NamedTuple):
    """What a step consists of at one u.

    Attributes:
        scales: D of every parameter, with the sign as in `StepNoise.covariance`.
        mean: the mean of a batch's gradient, weight decay included, for each second moment; 0 for
            those of rows, whose coordinates each have next to nothing of it.
        rate: how much of a squared gradient a second moment takes up in a unit of limit time.
        step_size: c_delta.
    """

    scales: Entries
    mean: Float[Tensor, " V"]
    rate: Float[Tensor, " V"]
    step_size: float


@dataclass(frozen=True, eq=False)
class MomentNoise:
    """The covariance of one step of statistics and second moments, in units of c_delta / N.

    Args:
        steps: that of the statistics.
        moments: the layout of the second moments.
    """

    steps: StepNoise
    moments: MomentLayout

    def covariance(self, draws: Draws, step: Step) -> Float[Tensor, "k k"]:
        """The covariance, w = 1 - beta_2^s included, which is not random.

        Args:
            draws: gradients that stand for all.
            step: what the step consists of.
        """
        deviation = self._deviation(draws)
        squares = self._squares(draws, step, deviation)
        still = squares.new_zeros(len(squares), self.moments.sizes[-1])
        covariance = self.steps.covariance(
            draws, step.scales, step.step_size, torch.cat([squares, still], dim=-1)
        )
        # the square of a mean of several draws has products of two of them
        n, own = draws.per_batch, deviation.mT @ (draws.weight[:, None] * deviation)
        products = 2 * (n - 1) / n**3 * torch.outer(step.rate, step.rate) * own**2
        first = len(self.moments.base.names)
        place = slice(first, first + len(step.rate))
        covariance[place, place] += products
        return covariance

    def _deviation(self, draws: Draws) -> Float[Tensor, "T V"]:
        """How a gradient deviates from the mean, for each second moment but those of rows."""
        W, bias, head = self.moments.options(draws.theta)
        axes = self.steps.axes.to(draws.along)
        at_axes = draws.along[..., : len(axes)] @ axes
        deviation = self.moments.gather(
            Entries(
                torch.zeros_like(draws.bias), W.sign * at_axes, bias.sign * draws.bias,
                head.sign * draws.theta,
            )
        )  # fmt: skip
        return deviation - draws.weight @ deviation

    def _squares(
        self, draws: Draws, step: Step, deviation: Float[Tensor, "T V"]
    ) -> Float[Tensor, "T V"]:
        """What a draw adds to second moments."""
        rows = draws.pair.diagonal(dim1=-2, dim2=-1)
        at_axes = draws.along.new_zeros(*rows.shape, self.steps.axes.shape[1])
        still = torch.zeros_like(draws.bias), torch.zeros_like(draws.theta)
        of_rows = self.moments.gather(Entries(rows, at_axes, *still))
        return step.rate * (of_rows + 2 * step.mean * deviation + deviation**2 / draws.per_batch)

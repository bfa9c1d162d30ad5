"""`momentum_lag`: whether momentum's memory shows beside the limit that is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison.match import Match
from torchlimits.trajectory import BAND, Trajectory

#: below it the lag is not longer than other things of order 1/n, which plain SGD has too
_MOMENTUM = 0.9
#: with fewer runs their spread does not tell the error of their mean
_LEAST_RUNS = 5
#: a standard deviation below this is none
_STILL = 1e-12


@dataclass(frozen=True)
class MomentumLag:
    """How far momentum's memory moves a statistic away from the limit.

    Attributes:
        name: of the statistic that it shows in most clearly.
        time: when that is.
        momentum: beta.
        steps: the lag in steps, beta / (1 - beta).
        shift: about how far it is moved.
        error: the standard deviation that this is to be seen against.
    """

    name: str
    time: float
    momentum: float
    steps: float
    shift: float
    error: float

    def __str__(self) -> str:
        """Tell it in words."""
        return (
            f"momentum {self.momentum:g} keeps the parameters {self.steps:.0f} steps behind the "
            f"predicted limit, so that {self.name} is off by about {self.shift:.2g} at "
            f"t = {self.time:.3g}, {self.shift / self.error:.1f} standard deviations of what is "
            "measured; tl.NextOrder predicts this for networks and mixtures"
        )


def momentum_lag(match: Match) -> MomentumLag | None:
    r"""Where momentum's memory is seen most clearly; None where it is too small to be seen.

    The parameters w and the slow variable y, which takes the steps of plain SGD, are a lag
    :math:`\beta/(1-\beta)` steps apart: w is about where y was so many steps ago. To this order in
    1/n, w's statistics are moved by

    .. math:: |u(l) - u(l - \beta/(1-\beta))|

    at step l, u the predicted limit and at rest before its start; where C, the corrector, is large
    R is moved by up to half the lag times C besides. It is seen where it is larger than 1.96
    standard deviations of the mean over the runs: those of the predicted band or, without one, of
    five runs or more. Rows in the first :math:`\beta/(1-\beta)` steps do not count: the
    buffer is still filling there. Below :math:`\beta = 0.9` the lag is no longer than
    other terms of order 1/n are large.

    Args:
        match: both sides, at the same times.

    Example:
        >>> from torchlimits.comparison.match import matched
        >>> times, steps = torch.linspace(0, 1, 11), 100 * torch.arange(11)
        >>> facts = {"equation": "du/dt = 1", "parameters": {"momentum": 0.95}}
        >>> theory = Trajectory(times, steps, times[:, None], ["m"], metadata=facts,
        ...                     std=torch.full((11, 1), 0.005))
        >>> print(momentum_lag(matched(theory, theory)))
        momentum 0.95 keeps the parameters 19 steps behind the predicted limit, so that m ...
    """
    _, predicted = match.both
    momentum = _momentum_of(predicted)
    error = _error(match)
    if momentum is None or error is None:
        return None
    steps = momentum / (1 - momentum)
    shift = _shift(predicted, steps)
    # what does not fluctuate has no scale that a shift could be seen on
    counts = (error > _STILL) & (predicted.steps >= predicted.steps[0] + steps)[:, None]
    clear = torch.where(counts, shift / error, 0.0).nan_to_num(0.0)
    row, column = divmod(int(clear.argmax()), len(match.names))
    if not float(clear[row, column]) > BAND:
        return None
    return MomentumLag(
        name=match.names[column],
        time=float(predicted.times[row]),
        momentum=momentum,
        steps=steps,
        shift=float(shift[row, column]),
        error=float(error[row, column]),
    )


def _momentum_of(predicted: Trajectory) -> float | None:
    """The momentum of a predicted limit that leaves its memory out, if it is large."""
    # the chain's runs have no equation and take momentum's steps; `NextOrder` says whose they are
    parameters = predicted.metadata.get("parameters") or {}
    momentum = parameters.get("momentum")
    if "equation" not in predicted.metadata or "slow" in parameters:
        return None
    return momentum if isinstance(momentum, float) and _MOMENTUM <= momentum < 1 else None


def _shift(predicted: Trajectory, steps: float) -> Float[Tensor, "T k"]:
    """The change of the means over the runs in so many steps up to each row."""
    values = predicted.values.reshape(-1, *predicted.values.shape[-2:]).mean(dim=0)
    at = predicted.steps.double().numpy()
    before = [np.interp(at - steps, at, column) for column in values.mT.numpy()]
    return (values - torch.from_numpy(np.stack(before, axis=-1))).abs()


def _error(match: Match) -> Float[Tensor, "T k"] | None:
    """The standard deviation of the measured mean around its prediction, if it is known."""
    difference, (_, predicted) = match.difference, match.both
    runs = len(difference)
    if predicted.std is not None:
        variance = predicted.std.square().reshape(-1, *difference.shape[1:]).mean(dim=0)
        return (variance / runs).sqrt()
    return difference.std(dim=0) / runs**0.5 if runs >= _LEAST_RUNS else None

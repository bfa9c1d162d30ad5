"""`Moves`: how an optimizer moves a slow variable along the gradients of single samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlimits.estimation.estimate import Moments
from torchlimits.estimation.motion import Factor
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.normalized_sgd import NormalizedSGD
from torchlimits.optim.second_moment import SecondMoment, second_moment_of
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sign_sgd import SignSGD
from torchlimits.statistics.adam_memory import mean_weight

#: a second moment is dead where gradients now have more than so many times as much
DEAD = 10.0
#: a parameter is left out if dead entries make more than this part of its squared steps
_SHARE = 0.1


class Move(NamedTuple):
    r"""A step :math:`y \leftarrow y - \eta\,(s \nabla L(w) + a w)` with the learning rate eta.

    Attributes:
        speed: s.
        decay: a.
    """

    speed: Factor
    decay: Factor


class Moves(ABC):
    """The moves of the parameters of one group.

    Attributes:
        needs_moments: whether they depend on the moments of gradients.
    """

    needs_moments: bool = False

    @abstractmethod
    def __call__(
        self, parameter: Tensor, state: Mapping[str, Any] | None, moments: Moments | None
    ) -> Move | None:
        """The move of a parameter, or None where it is not known.

        Args:
            parameter: w.
            state: what the optimizer keeps for it, or None.
            moments: of the gradients of fresh samples at w, if `needs_moments`.
        """


class SGDMoves(Moves):
    r"""SGD moves with :math:`s = \pm q`, :math:`q = (1-\tau)/(1-\beta)`, and :math:`a = q\alpha`.

    Args:
        group: one of its parameter groups.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, group: Mapping[str, Any]) -> None:
        settings = SGDSettings.of_group(group, dim=1)
        q = float(settings.drift_factor)
        self.move = Move(settings.sign * q, q * float(settings.weight_decay))

    def __call__(
        self, parameter: Tensor, state: Mapping[str, Any] | None, moments: Moments | None
    ) -> Move:
        """The same for all parameters."""
        return self.move


class AdamMoves(Moves):
    r"""Adam and AdamW move with :math:`s = \pm W D` and :math:`a = W D \lambda + \omega`.

    D is what the next step multiplies by on average: :math:`1/(\sqrt{\hat v} + \epsilon)`, where
    :math:`\hat v` has a fresh squared gradient in it, as in `SecondMoment.used`. W is the mean
    weight of the steps that an estimate stands for.

    Args:
        group: one of the optimizer's parameter groups.
        batch_size: the number of samples that a step averages.
        every: the number of steps that an estimate stands for, half of them before it.

    Raises:
        ValueError: if the group has second moments of which no limit is known.
    """

    needs_moments = True

    def __init__(self, group: Mapping[str, Any], batch_size: int, every: int) -> None:
        self.settings = AdaptiveSettings.of_group(group, "Adam", dim=1, batch_size=batch_size)
        self.beta, self.every = float(group["betas"][0]), every

    def __call__(
        self, parameter: Tensor, state: Mapping[str, Any] | None, moments: Moments | None
    ) -> Move | None:
        """The move; None where gradients are not what D has seen: their features were dead."""
        assert moments is not None
        settings, step = self.settings, int(state["step"]) if state else 0
        pull = settings.weight_decay * parameter.detach() if settings.weight_decay else 0.0
        square = moments.of_batch(settings.batch_size, settings.sign, pull)
        divisor = self._used(state, step, square).sqrt() + settings.eps
        # where there is nothing to divide by, there is nothing to be divided
        D = torch.where(divisor > 0, 1 / divisor, 0.0)
        dead = square.sqrt() + settings.eps > DEAD**0.5 * divisor
        steps = square * D.square()
        if float((steps * dead).sum()) > _SHARE * float(steps.sum()):
            return None
        half = self.every / 2
        speed = D * mean_weight(self.beta, max(step - half, 0.0), step + half)
        return Move(settings.sign * speed, settings.weight_decay * speed + settings.decay)

    def _used(self, state: Mapping[str, Any] | None, step: int, square: Tensor) -> Tensor:
        """What the next step divides by the root of, on average."""
        if not state or not step:
            return square
        memory = torch.tensor(self.settings.memory, dtype=torch.float64, device="cpu")
        v = state["exp_avg_sq"].detach().to(square.dtype)
        return SecondMoment().used(v, 1 - memory**step, square, memory)


def moves_of(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], batch_size: int, every: int
) -> Moves:
    """The moves of the parameters of one of an optimizer's groups.

    Args:
        optimizer: any.
        group: the group.
        batch_size: the number of samples that a step averages.
        every: the number of steps that an estimate stands for.

    Raises:
        TypeError: if they are not known for this optimizer.
        ValueError: if they are not known for its options.
    """
    if second_moment_of(optimizer) == "Adam":
        return AdamMoves(group, batch_size, every)
    mapped = isinstance(optimizer, (SignSGD, NormalizedSGD))
    if isinstance(optimizer, torch.optim.SGD) and not mapped:
        return SGDMoves(group)
    raise TypeError(
        f"expected torch.optim.SGD, Adam or AdamW for a probe, got {type(optimizer).__name__}: how "
        "it moves the statistics of any model is not known here (recording works with any "
        "optimizer: tl.track without a probe; problem.dynamics(...) knows more of them)"
    )

"""`SecondMoment`: how an optimizer keeps the second moments of gradients, and divides by them."""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

#: sum_{s=1}^n 1/s = log n + this, as n grows
_EULER = 0.5772156649015329


class SecondMoment:
    r"""Adam's: an average with memory beta_2, corrected for its start at 0.

    At step s torch divides by the root of :math:`v_s/(1-\beta_2^s)`, with this step's gradient in
    it. As :math:`1 - \beta_2^{s+1} = \beta_2 (1 - \beta_2^s) + (1 - \beta_2)`, that is
    :math:`(\beta_2 v + (1 - \beta_2) Q)/(\beta_2 w + 1 - \beta_2)` on average, with Q the mean of
    a squared gradient, v what is in the optimizer's state before the step, and w = 1 - beta_2^s;
    it is Q at the first step.

    Source: `torch.optim.Adam`.

    Example:
        >>> import torch
        >>> zero, Q = torch.tensor(0.0), torch.tensor(4.0)
        >>> SecondMoment().used(zero, zero, Q, torch.tensor(0.999))
        tensor(4.)
    """

    #: what torch calls it in ``optimizer.state``
    key = "exp_avg_sq"
    #: whether it is divided by w = 1 - beta_2^s
    corrected = True

    def used(self, v: Tensor, w: Tensor, Q: Tensor, memory: Tensor) -> Tensor:
        """What a step divides by the root of, on average.

        Args:
            v: the second moment in the state.
            w: 1 - beta_2^s.
            Q: the mean of a batch's squared gradient.
            memory: beta_2.
        """
        return (memory * v + (1 - memory) * Q) / (memory * w + 1 - memory)

    def change(self, v: Tensor, Q: Tensor, memory: Tensor) -> Tensor:
        """How much v changes in a step, on average: -log(beta_2) (Q - v).

        Args:
            v, Q, memory: as in `used`.
        """
        return -memory.log() * (Q - v)


class PlainSecondMoment(SecondMoment):
    r"""RMSprop's: the same average, which starts at 0 and is not corrected.

    In its first steps v is s (1 - alpha) Q, and parameters move like :math:`s^{-1/2}`, their
    squares like 1/s. Shifted by :math:`e^{-\gamma}` steps, :math:`\int_0^n ds/(s + e^{-\gamma})`
    is :math:`\log n + \gamma`, as the sum over steps is.

    Source: `torch.optim.RMSprop`.

    Example:
        >>> import torch
        >>> zero, Q = torch.tensor(0.0), torch.tensor(4.0)
        >>> PlainSecondMoment().used(zero, zero, Q, torch.tensor(0.99))
        tensor(0.0225)
    """

    key = "square_avg"
    corrected = False

    def used(self, v: Tensor, w: Tensor, Q: Tensor, memory: Tensor) -> Tensor:
        """What a step divides by the root of; see `SecondMoment.used`."""
        return v + (1 - memory) * exp(-_EULER) * (Q - v)


class SummedSecondMoment(SecondMoment):
    """Adagrad's: the sum of squared gradients, on top of an initial value.

    Source: `torch.optim.Adagrad`.

    Example:
        >>> import torch
        >>> one, zero = torch.tensor(1.0), torch.tensor(0.0)
        >>> SummedSecondMoment().change(one, 4 * one, one)
        tensor(4.)
    """

    key = "sum"
    corrected = False

    def used(self, v: Tensor, w: Tensor, Q: Tensor, memory: Tensor) -> Tensor:
        """The sum halfway through the step; see `SecondMoment.used`."""
        return v + Q / 2

    def change(self, v: Tensor, Q: Tensor, memory: Tensor) -> Tensor:
        """A step adds Q."""
        return Q


#: those of torch.optim, by the name of the optimizer
SECOND_MOMENTS: dict[str, SecondMoment] = {
    "Adam": SecondMoment(),
    "RMSprop": PlainSecondMoment(),
    "Adagrad": SummedSecondMoment(),
}


def second_moment_of(optimizer: torch.optim.Optimizer) -> str | None:
    """The key in `SECOND_MOMENTS` of an optimizer; None if it keeps none that is known here.

    Args:
        optimizer: any.

    Example:
        >>> import torch
        >>> second_moment_of(torch.optim.AdamW([torch.zeros(1, requires_grad=True)]))
        'Adam'
    """
    kinds: dict[type[torch.optim.Optimizer], str] = {
        torch.optim.Adam: "Adam", torch.optim.AdamW: "Adam",
        torch.optim.RMSprop: "RMSprop", torch.optim.Adagrad: "Adagrad",
    }  # fmt: skip
    # exactly these: what derives from them may do something else
    return kinds.get(type(optimizer))

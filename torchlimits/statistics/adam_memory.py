"""What is still to come of the gradients that Adam averages: the lag and weight of its steps."""

from __future__ import annotations

from functools import lru_cache
from itertools import count
from math import floor

#: what is left out of a sum, relative to it
_NOTHING = 1e-17
#: a weight this close to 1 is 1
_SETTLED = 1e-9


@lru_cache(maxsize=4096)
def lag(beta: float, step: int) -> float:
    r"""What a first moment still adds to parameters after step s, in multiples of itself.

    .. math:: \kappa_s = \sum_{l \ge 1} \frac{\beta_1^l}{1 - \beta_1^{s+l}}
        = \sum_{j \ge 0} \frac{\beta_1^{js + j + 1}}{1 - \beta_1^{j+1}}

    Step s + l of Adam finds :math:`\beta_1^l` of it, and divides by :math:`1 - \beta_1^{s+l}`. The
    second sum is the first, with the fractions as geometric series; it has fewer terms.

    Args:
        beta: beta_1.
        step: s, the number of steps that Adam has taken.

    Example:
        >>> round(lag(0.9, 1), 3), round(lag(0.9, 1000), 3)
        (20.096, 9.0)
    """
    total = 0.0
    for j in count():
        term = beta ** (j * step + j + 1) / (1 - beta ** (j + 1))
        total += term
        if term <= _NOTHING * total:
            return total
    raise AssertionError("unreachable")


@lru_cache(maxsize=4096)
def weight(beta: float, step: int) -> float:
    r"""What step s of Adam, and all later ones, make of its gradient: 1 after many steps.

    .. math:: W_s = (1 - \beta_1) \Bigl(\frac{1}{1 - \beta_1^s} + \kappa_s\Bigr)

    Args:
        beta: beta_1.
        step: s, which is 1 for the first.

    Example:
        >>> [round(weight(0.9, s), 3) for s in (1, 10, 50)]
        [3.01, 1.246, 1.003]
    """
    return (1 - beta) * (1 / (1 - beta**step) + lag(beta, step))


def mean_weight(beta: float, start: float, stop: float) -> float:
    """The mean `weight` of the steps from one count of steps to another.

    Args:
        beta: beta_1.
        start: how many steps were taken before, possibly half a one.
        stop: how many were taken after.

    Example:
        >>> round(mean_weight(0.9, 0.0, 1.0), 3), round(mean_weight(0.9, 0.0, 1000.0), 3)
        (3.01, 1.009)
    """
    excess = 0.0
    for step in count(floor(start) + 1):
        more = weight(beta, step) - 1
        excess += more * max(0.0, min(stop, step) - max(start, step - 1))
        if step >= stop or more < _SETTLED:
            return 1 + excess / (stop - start)
    raise AssertionError("unreachable")

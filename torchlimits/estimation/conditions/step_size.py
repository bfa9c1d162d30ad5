"""In which regime of the theory a step size is: subcritical, critical, above critical."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torchlimits import _checks
from torchlimits.estimation.conditions import power_law

#: c_delta within these is taken as critical where only one dimension is known
CRITICAL = (0.05, 20.0)
#: an exponent within so much of 1 is 1
_EXPONENT = 0.05


@dataclass(frozen=True)
class Regime:
    """What `regime` found.

    Attributes:
        kind: the regime.
        step_size: c_delta = lr * dim, at the largest dim.
        exponent: a in lr ~ dim^(-a), fitted where there are several dimensions, else None.

    Example:
        >>> found = regime(1000, 0.00001)
        >>> found.kind, found.step_size, found.exponent
        ('subcritical', 0.01, None)
    """

    kind: Literal["subcritical", "critical", "supercritical"]
    step_size: float
    exponent: float | None

    def __str__(self) -> str:
        found = f"c_delta = lr * dim = {self.step_size:.4g}"
        if self.exponent is not None:
            found += f", lr ~ dim^-{self.exponent:.3g}"
        meaning = {
            "subcritical": "the statistics follow gradient flow: no corrector, no noise "
            "(dynamics(step_size=0))",
            "critical": "gradient flow plus the population corrector, proportional to c_delta",
            "supercritical": "steps above critical, where there is no limit theorem: the noise of "
            "the gradients outgrows the drift",
        }[self.kind]
        return f"{self.kind}: {found}: {meaning}"


def regime(dim: int | Sequence[int], lr: float | Sequence[float]) -> Regime:
    r"""The regime of SGD with learning rate lr in dimension n, for data of order 1 an entry.

    In the limit :math:`\delta = c\, n^{-a}` is subcritical for a > 1 (gradient flow), critical for
    a = 1 and without a limit theorem for a < 1. Given several dimensions and their learning rates
    the exponent is fitted; from one pair it cannot be known, and c_delta = lr * n decides: below
    0.05 the corrector is less than a twentieth of its size at c_delta = 1, above 20 it is more than
    twenty times that.

    Source: section 2 of arXiv 2206.04030.

    Args:
        dim: n, or several.
        lr: delta, as many.

    Raises:
        ValueError: if they are not positive, or not as many, or all dimensions are the same.

    Warns:
        UserWarning: above critical.

    Example:
        >>> print(regime(1000, 0.001))  # doctest: +ELLIPSIS
        critical: c_delta = lr * dim = 1: gradient flow plus the population corrector, ...
        >>> regime([100, 1000, 10000], [1e-3, 3.2e-5, 1e-6]).kind
        'subcritical'
    """
    dims = [dim] if isinstance(dim, int) else list(dim)
    rates = list(lr) if isinstance(lr, Sequence) else [lr]
    if len(dims) != len(rates) or not dims:
        raise ValueError(f"expected one lr a dim, got {len(dims)} dims and {len(rates)} lrs")
    for one_dim, one_rate in zip(dims, rates, strict=True):
        _checks.positive_int("dim", one_dim)
        _checks.positive("lr", one_rate)
    largest = max(range(len(dims)), key=dims.__getitem__)
    constant = rates[largest] * dims[largest]
    exponent = None
    if len(dims) > 1:
        if len(set(dims)) == 1:
            raise ValueError(f"expected different dims to fit an exponent, got {dims}")
        exponent = -power_law.fit(dims, rates, [0.0] * len(dims)).exponent
        deviation = exponent - 1
        above, below = deviation < -_EXPONENT, deviation > _EXPONENT
    else:
        above, below = constant > CRITICAL[1], constant < CRITICAL[0]
    kind = "supercritical" if above else "subcritical" if below else "critical"
    found = Regime(kind, constant, exponent)
    if above:
        advice = f"lower lr to about 1/dim = {1 / dims[largest]:.3g}"
        warnings.warn(f"{found}; {advice}", stacklevel=2)
    return found

"""`solution`: one start of a stiff system, by an implicit method of scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.effort import Effort

#: implicit methods of scipy.integrate that interpolate between their steps as accurately as they
#: step; Radau, with cubics, does not where solutions have layers
METHODS = ("BDF",)
#: how much finer than asked for tolerances are, as errors of many steps add up
_FINER = 10


class StepError(Exception):
    """An implicit method could not make its step."""


def solution(
    right_hand_side: Callable[[Tensor, Tensor], Tensor], u0: Float[Tensor, " k"],
    times: Float[Tensor, " T"], *, rtol: float, atol: float, method: str,
) -> Float[Tensor, "T k"]:  # fmt: skip
    """The solution of du/dt = F(t, u), from one start.

    Args:
        right_hand_side: F(t, u), ``(rows, k)`` -> ``(rows, k)``.
        u0: the start, float64.
        times: increasing, at least two.
        rtol, atol: relative and absolute tolerance of a step.
        method: one of `METHODS`.

    Raises:
        StepError: if the method cannot make a step.
        GaveUpError: if it takes too many evaluations.

    Example:
        >>> times = torch.tensor([0.0, 1e6], dtype=torch.float64)
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> solution(lambda t, u: 1 - u, start, times, rtol=1e-6, atol=1e-8, method="BDF")
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    # imported here: scipy takes a second
    from scipy.integrate import solve_ivp

    from torchlimits.dynamics import bdf

    steppers: dict[str, Any] = {"BDF": bdf.BDF}

    begin, end = float(times[0]), float(times[-1])
    effort = Effort(begin, end, implicit=True)

    def velocity(t: float, y: np.ndarray) -> np.ndarray:
        """Columns of y are points: all columns of a Jacobian by differences in one call."""
        effort.evaluate(t)
        points = torch.from_numpy(y.reshape(len(y), -1).T.copy()).to(u0)
        with torch.no_grad():
            rates = right_hand_side(times.new_tensor(min(t, end)), points)
        return rates.double().cpu().numpy().T.reshape(y.shape)

    found: Any = solve_ivp(
        velocity, (begin, end), u0.cpu().numpy(), method=steppers[method],
        t_eval=times.cpu().numpy(), rtol=max(rtol / _FINER, 1e-13), atol=atol / _FINER,
        vectorized=True,
    )  # fmt: skip
    if not found.success:
        raise StepError(str(found.message))
    values = torch.from_numpy(found.y.T.copy()).to(u0)
    if not bool(values.isfinite().all()):
        raise StepError("the solution is not finite")
    return values

"""`BDF`: scipy's, at rest as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.integrate

#: what scipy takes for rounding, as a part of y: the least that its tolerance for Newton may be
_ROUNDING = 10 * np.finfo(np.float64).eps


class BDF(scipy.integrate.BDF):
    r"""scipy's BDF, where a correction of Newton's as small as rounding is none.

    Newton's iteration of scipy has failed if a correction is not smaller than the one before. At
    rest already the first is a fraction of the last place of y: adding it does not change y, the
    second is the same, and whatever the system, a step that was exact is halved. Near a fixed point
    steps of length 1 were left of 1e4, forever.

    Here a correction with

    .. math:: \Big(\frac1k \sum_j \Big(\frac{dy_j}{atol + rtol\,|y_j|}\Big)^2\Big)^{1/2}
        < \frac{10\,\epsilon}{rtol}, \quad \epsilon = 2^{-52},

    the least tolerance that scipy lets Newton have, is replaced by 0, at which the iteration ends:
    where atol does not matter it is less than ten units in the last place of y. That holds where
    the Jacobian was evaluated in the same step, so that the correction is the distance to the
    solution, but for terms of second order. An old Jacobian may be much larger than the system's,
    and make corrections small that are none; then the iteration fails, as in scipy, upon which the
    Jacobian is evaluated.

    Args:
        fun, t0, y0, t_bound, options: as in `scipy.integrate.BDF`.

    Example:
        >>> solver = BDF(lambda t, y: 1 - y, 0.0, np.zeros(1), 1e6)
        >>> while solver.status == "running":
        ...     message = solver.step()
        >>> solver.y.round(3)
        array([1.])
    """

    def __init__(self, fun: Any, t0: float, y0: Any, t_bound: float, **options: Any) -> None:
        super().__init__(fun, t0, y0, t_bound, **options)
        #: how often the Jacobian had been evaluated before the step
        self._before: int = self.njev
        correction = self.solve_lu

        def above_rounding(factors: Any, residual: Any) -> Any:
            found = correction(factors, residual)
            size = np.sqrt(np.mean((found / (self.atol + self.rtol * np.abs(self.y))) ** 2))
            rounding = self.njev > self._before and size < _ROUNDING / self.rtol
            return np.zeros_like(found) if rounding else found

        self.solve_lu = above_rounding

    def step(self) -> str | None:
        """One step, as in scipy."""
        self._before = self.njev
        return super().step()

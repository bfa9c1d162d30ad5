"""`Effort`: how much work a solution has taken, and whether it will end."""

from __future__ import annotations

from typing import SupportsFloat

#: evaluations of the right-hand side that one solution may take
LIMIT = 50_000
#: evaluations between two looks at how far the solution has come, and the first look
_BETWEEN, _FIRST = 2000, 4000


class GaveUpError(Exception):
    """A solution takes too much work.

    Args:
        message: says how far it came.
        implicit: whether the method was an implicit one.
    """

    def __init__(self, message: str, *, implicit: bool = False) -> None:
        super().__init__(message)
        self.implicit = implicit


class Effort:
    """Counts evaluations, and gives up where more than `LIMIT` would be needed.

    Every 2000 evaluations (from the 4000th on, when starts have left their first layer) it looks
    how far these came: at that pace, will the solution end within the limit?

    Args:
        begin, end: the first and the last time.
        implicit: whether the method is an implicit one, which gives up at the limit alone: its
            steps grow.

    Example:
        >>> effort = Effort(0.0, 1e6)
        >>> for step in range(4000):
        ...     effort.evaluate(0.1 * step)
        Traceback (most recent call last):
        torchlimits.dynamics.effort.GaveUpError: after 4,000 evaluations it was at t=399.9, ...
    """

    def __init__(self, begin: float, end: float, *, implicit: bool = False) -> None:
        self.end, self.implicit = end, implicit
        self.evaluations = 0
        self._before = begin

    def evaluate(self, t: SupportsFloat) -> None:
        """Count one evaluation at time t.

        Raises:
            GaveUpError: if there will be too many.
        """
        self.evaluations += 1
        if self.evaluations >= LIMIT:
            raise GaveUpError(self._told(float(t)), implicit=self.implicit)
        if self.evaluations % _BETWEEN or self.implicit:
            return
        now = float(t)
        left, pace = self.end - now, (now - self._before) / _BETWEEN
        self._before = now
        # a product, as the pace may be 0
        if self.evaluations >= _FIRST and left > pace * (LIMIT - self.evaluations):
            raise GaveUpError(self._told(now))

    def _told(self, now: float) -> str:
        if self.evaluations >= LIMIT:
            return f"after {LIMIT:,} evaluations, the most it takes, it was at t={now:g}"
        return (
            f"after {self.evaluations:,} evaluations it was at t={now:g}, at a pace that takes "
            f"more than {LIMIT:,} in all"
        )

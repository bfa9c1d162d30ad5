"""`SharedPoints`: the points of a sweep, computed by all processes that share its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torchlimits import _checks
from torchlimits.experiments.grid import Value
from torchlimits.experiments.point_folder import PointFolder
from torchlimits.experiments.ranks import rank_and_size
from torchlimits.files.lock import Taken

#: seconds from one look at what other processes have done to the next
_LOOK = 0.05


class SharedPoints:
    """The points of a sweep, each computed by whoever gets its lock first.

    The operating system gives a lock back when the process that has it ends, however it does:
    another one then computes that point. Every process goes on until all points are done.

    Args:
        folder: the sweep's folder.
        points: the parameters of each point.
        compute: gives a point's result, in types that a file can hold.
    """

    def __init__(
        self,
        folder: PointFolder,
        points: list[dict[str, Value]],
        compute: Callable[[Mapping[str, Value]], Any],
    ) -> None:
        self._folder, self._points, self._compute = folder, points, compute
        #: by number: the results, and the errors of points that failed
        self.results: dict[int, Any] = {}
        self.failures: dict[int, str] = {}
        # what failed in an earlier call is tried again
        self._before = {n: folder.version(n) for n in range(len(points))}
        self._damaged: set[int] = set()

    def finish(self, tell: Callable[[int], object]) -> None:
        """Have every point computed, here or elsewhere, and hold all results.

        Args:
            tell: called with the number of points that are done.
        """
        rank, size = rank_and_size()
        # each begins elsewhere; who is through with its own helps the others
        left = sorted(range(len(self._points)), key=lambda n: ((n - rank) % size, n))
        while left:
            waiting: list[int] = []
            for number in left:
                if not self._settle(number):
                    waiting.append(number)
                tell(len(self.results) + len(self.failures))
            if len(waiting) == len(left):
                time.sleep(_LOOK)
            left = waiting

    def _settle(self, number: int) -> bool:
        """Know a point, computing it if nobody has; False if another process is at it."""
        if self._known(number):
            return True
        lock = self._folder.lock(number)
        try:
            lock.take()
        except Taken:
            return False
        try:
            # it may have been computed between our looking and our locking
            if not self._known(number):
                self._settle_here(number)
            return True
        finally:
            lock.release()

    def _known(self, number: int) -> bool:
        """Whether a point has been computed, or has failed since this call began."""
        try:
            self.results[number] = self._folder.result(number)
            return True
        except FileNotFoundError:
            pass
        except ValueError as error:
            if number not in self._damaged:
                self._damaged.add(number)
                _checks.warn(f"{self._folder.file(number)} is computed again: {error}")
        version = self._folder.version(number)
        if version is None or version == self._before[number]:
            return False
        self.failures[number] = self._folder.said(number)
        return True

    def _settle_here(self, number: int) -> None:
        point = self._points[number]
        try:
            result = self._compute(point)
        except Exception as error:  # whatever the user's function raises
            self.failures[number] = self._folder.write_error(number, point, error)
            return
        self._folder.write(number, result)
        self.results[number] = result

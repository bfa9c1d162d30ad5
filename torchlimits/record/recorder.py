"""`Recorder`: the way of a record from the hook, through the ring, to the rows that are kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchlimits.contracts.observer import Observer
from torchlimits.files.row_file import Header
from torchlimits.record.evaluation import Surroundings
from torchlimits.record.loop_values import LoopValues
from torchlimits.record.model_state import ModelState
from torchlimits.record.non_finite import NonFiniteStatistic, finite_rows, non_finite
from torchlimits.record.optimizer_hook import Steps
from torchlimits.record.own_names import unwrapped
from torchlimits.record.recording import Recording
from torchlimits.record.ring import Ring, ring_of
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory

#: bound on the evaluated rows in memory
_ROWS_BYTES = 64 * 2**20


class Recorder(Steps):
    """Records the steps that it counts; what a `Tracker` adds is for those who look at them.

    An interrupt may come anywhere. A record is pending until its row is kept, rows that are kept
    are known by their steps, and what was interrupted is done again: nothing is lost or kept twice.
    """

    def _begin(
        self, statistics: SummaryStatistics, facts: Mapping[str, Any], path: Path | None,
        max_bytes: int | None,
    ) -> None:  # fmt: skip
        """Get ready for the first record.

        Args:
            statistics, max_bytes: as in `track`.
            facts: what the trajectory's metadata are to say.
            path: where the trajectory is in the end.
        """
        self._statistics, self._facts_given, self._path = statistics, dict(facts), path
        self._max_bytes, self._surroundings = max_bytes, Surroundings()
        self._ring = self._new_ring()
        if not self._ring.names:
            raise ValueError("expected statistics with at least one entry, got empty tensors only")
        # how many records were evaluated; and those in the ring: number, step and time of each
        self._records = 0
        self._pending: list[tuple[int, int, float]] = []
        self._failure: Exception | None = None
        self._recording: Recording | None = None
        self._observer: Observer | None = None
        self._loop = LoopValues(self._ring.names, ())

    def _new_ring(self) -> Ring:
        state = ModelState(self._model, self._optimizers)
        return ring_of(self._statistics, state, self._surroundings, self._max_bytes)

    @property
    def names(self) -> list[str]:
        """The names of the k statistics, and of what `log` was given."""
        return [*self._ring.names, *self._loop.names]

    @property
    def _next(self) -> int:
        """The number of the next record."""
        return self._pending[-1][0] + 1 if self._pending else self._records

    def _record(self) -> None:
        if self._failure is not None:
            # nothing more is recorded, but other processes wait for this one
            self._ring.followed.gather()
            return
        pending = self._pending
        if pending:
            number = pending[-1][0] + 1
            if self._ring.full(pending[0][0], number):
                self._make_room()
        else:
            number = self._records
        if not self._ring.store(number):
            self._move(number)
        if self._recording is None:
            # whatever gradient is there, no step has used it
            self._ring.mark(number, self._ring.followed.gradients)
        step, time = self._counted
        self._pending.append((number, step, time))

    def _make_room(self) -> None:
        """Evaluate what is in the ring, and hand the rows to the operating system."""
        self._evaluate_pending()
        self._rows.write()

    def _move(self, number: int) -> None:
        """Go on where the parameters are now: module.to(...) moved them, or they were replaced."""
        self._evaluate_pending()
        try:
            self._find_group()
            ring = self._new_ring()
            if ring.names != self._ring.names:
                raise ValueError(
                    f"the statistics changed shape: expected {self._ring.names} as at step 0, got "
                    f"{ring.names} at step {self.step}: make another tracker for other parameters"
                )
            if not ring.store(number):
                raise ValueError("expected parameters that stay as they are during a record")
        except (TypeError, ValueError) as error:
            self._failure = error
            raise
        if self._observer is not None:
            self._observer.moved(dict(unwrapped(self._model).named_parameters()))
        self._ring = ring

    def _evaluate_pending(self) -> None:
        pending, newest = self._pending, -1 if self._recording is None else self._rows.newest
        # some rows may be kept already: only the end of their evaluation was interrupted
        new = pending if not pending or pending[0][1] > newest else _later(pending, newest)
        self._keep_loop_values()
        failure = self._evaluate(new) if new else None
        ended = self._failure if failure is None else failure
        # in one line, after everything is kept: an interrupt finds either all or nothing done
        self._failure, self._records, self._pending = ended, self._next, []
        self._ring.forget(self._records)
        if self._recording is not None:
            self._loop.forget(self._rows.newest)
            if isinstance(failure, NonFiniteStatistic):
                failure.trajectory = self.trajectory()
        if failure is not None:
            raise failure

    def _evaluate(self, pending: list[tuple[int, int, float]]) -> Exception | None:
        """Keep the rows of records; return the error of a statistic that ends the recording.

        Whatever else goes wrong, a lack of memory for instance, is raised, and tried again later.
        """
        numbers, steps, times = map(list, zip(*pending, strict=True))
        values, error = self._ring.take(numbers)
        undefined = self._ring.undefined(numbers)
        rows = finite_rows(values, undefined)
        if rows:
            self._keep(steps[:rows], times[:rows], values[..., :rows, :])
        if rows < values.shape[-2]:
            row, without = values[..., rows, :], undefined.get(rows, [])
            return non_finite(self._ring.names, steps[rows], row, without)
        if error is None:
            return None
        told = type(error)(f"after step {steps[rows]}: {error}")
        told.__cause__ = error.__cause__ or error
        return told

    def _keep(self, steps: list[int], times: list[float], values: Tensor) -> None:
        if self._recording is None:
            header = Header(self.names, tuple(values.shape[:-2]), self._facts())
            self._recording = Recording(header, self._path, _ROWS_BYTES)
        if self._loop.names:
            values = torch.cat([values, self._loop.columns(steps)], dim=-1)
        self._rows.append(steps, times, values)

    def _keep_loop_values(self) -> None:
        """Give the newest row its values from the loop; there may be further columns by now."""
        if self._recording is None:
            return
        if len(self.names) > len(self._rows.header.names):
            self._rows.widen(self.names)
        if self._loop.at(self._rows.newest):
            self._rows.amend(self._loop.columns([self._rows.newest])[..., 0, :])

    @property
    def _rows(self) -> Recording:
        # step 0 was recorded when the tracker was made
        assert self._recording is not None
        return self._recording

    def _facts(self) -> dict[str, Any]:
        return {"parameters": {**self._settings(), **self._facts_given}}

    @abstractmethod
    def trajectory(self) -> Trajectory:
        """All that was recorded so far."""


def _later(pending: list[tuple[int, int, float]], newest: int) -> list[tuple[int, int, float]]:
    return [one for one in pending if one[1] > newest]

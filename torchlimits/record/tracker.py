"""`Tracker`: records the summary statistics of a training run."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.observer import Observer, Watcher
from torchlimits.files.row_file import Header
from torchlimits.record.display import Display
from torchlimits.record.non_finite import NonFiniteStatistic, finite_rows, non_finite
from torchlimits.record.optimizer_hook import Steps
from torchlimits.record.own_parameters import OwnParameters, unwrapped
from torchlimits.record.recording import Recording, place_of
from torchlimits.record.ring import ring_for
from torchlimits.record.state import TrackerState
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)

#: how often, at least, recorded rows are written to disk and shown
_FLUSH_EVERY_SECONDS = 5.0
#: bound on the evaluated rows in memory
_ROWS_BYTES = 64 * 2**20


class Tracker(Steps):
    """Records a trajectory; made by `track`.

    Args:
        model, optimizer, statistics, every, writer, path, max_bytes, probe, parameters, time_of:
            as there.

    Attributes:
        step: optimizer steps so far.
        time: limit time so far.
        names: the names of the k statistics.

    Example:
        >>> import torch, torchlimits as tl
        >>> def started():
        ...     model = torch.nn.Linear(3, 1)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     return model, optimizer, {"norm": lambda p: p["weight"].norm()}
        >>> def train(model, optimizer):
        ...     for _ in range(5):
        ...         model(torch.randn(8, 3)).square().mean().backward()
        ...         optimizer.step()
        >>> model, optimizer, statistics = started()
        >>> tracker = tl.track(model, optimizer, statistics)
        >>> train(model, optimizer)
        >>> tracker.flush()
        >>> tracker.trajectory()
        Trajectory(1 statistics, 6 times, t = 0 ... 0.5, runs=1)
        >>> state = tracker.state_dict()  # for a checkpoint
        >>> tracker.close()

    Resumed, in a new program:

        >>> model, optimizer, statistics = started()
        >>> tracker = tl.track(model, optimizer, statistics)
        >>> tracker.load_state_dict(state)
        >>> train(model, optimizer)
        >>> tracker.trajectory()
        Trajectory(1 statistics, 11 times, t = 0 ... 1, runs=1)

    Steps that no hook sees:

        >>> tracker.remove()
        >>> train(model, optimizer)
        >>> tracker.stepped()
        >>> tracker.step
        11
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        statistics: SummaryStatistics, every: int, writer: Any, path: str | Path | None,
        max_bytes: int | None, probe: Watcher | None, parameters: Mapping[str, Any] | None,
        time_of: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, optimizer, every, time_of)
        self._statistics, self._facts_given = statistics, dict(parameters or {})
        self._display = Display(writer)
        sink = self._display.sink
        self.path = place_of(path, None if sink is None else sink.logdir)
        self._max_bytes = max_bytes
        self._ring = ring_for(statistics, OwnParameters(model), max_bytes)
        self.names = self._ring.names
        if not self.names:
            raise ValueError("expected statistics with at least one entry, got empty tensors only")
        # records made; those of them in the ring, not yet evaluated
        self._records = 0
        self._pending: list[tuple[int, float]] = []
        self._flushed_at = time.monotonic()
        self._failure: Exception | None = None
        self._closed = False
        self._recording: Recording | None = None
        self._observer: Observer | None = None
        if probe is not None:
            self._observer = probe.watch(unwrapped(model), self._optimizer, statistics)
        self._record()
        self._evaluate_pending()
        self._display.check(next(self._rows.after(-1)))
        self._observe()
        self._attach()

    def stepped(self) -> None:
        """Take note of an optimizer step; call it for steps that the optimizer's hook does not see.

        A replayed CUDA graph calls no hooks: `remove` the tracker before the capture, and call this
        after each replay, on the stream that replays.
        """
        with self._lock:
            if self._advance():
                self._record()
            if self._failure is None:
                if time.monotonic() - self._flushed_at > _FLUSH_EVERY_SECONDS:
                    self.flush()
                elif self._ring.full:
                    self._evaluate_pending()
                    self._rows.write()
            if self._observer is not None and self.step % self._observer.every == 0:
                self._observe()

    def _observe(self) -> None:
        if self._observer is not None and self._failure is None:
            self._observer.observe(self.step, self.time)

    def _record(self) -> None:
        if self._failure is not None:
            # nothing more is recorded, but other processes wait for this one
            self._ring.gather()
            return
        if not self._ring.store():
            self._move()
        self._pending.append((self.step, self.time))
        self._records += 1

    def _move(self) -> None:
        """Go on where the parameters are now: module.to(...) moved them, or they were replaced."""
        self._evaluate_pending()
        try:
            self._find_group()
            ring = ring_for(self._statistics, OwnParameters(self._model), self._max_bytes)
            if ring.names != self.names:
                raise ValueError(
                    f"the statistics changed shape: expected {self.names} as at step 0, got "
                    f"{ring.names} at step {self.step}: make another tracker for other parameters"
                )
        except Exception as error:
            self._failure = error
            raise
        if self._observer is not None:
            self._observer.moved(dict(unwrapped(self._model).named_parameters()))
        self._ring = ring
        self._ring.resume(self._records)
        self._ring.store()

    def flush(self) -> None:
        """Evaluate what is in the ring, write it to disk and hand it to the writer.

        Raises:
            NonFiniteStatistic: if a statistic is NaN or infinite; the rows before it are kept.
            StatisticError: if a statistic failed or changed its shape, which its message tells
                with the step; the rows before it are kept.
        """
        with self._lock:
            self._flushed_at = time.monotonic()
            try:
                self._evaluate_pending()
            finally:
                self._rows.write()
                self._display.show(self._rows, self._observer)

    def _evaluate_pending(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            values, error = self._ring.take()
            rows = finite_rows(values)
            if rows:
                self._keep(pending[:rows], values[..., :rows, :])
            if rows < values.shape[-2]:
                raise non_finite(self.names, pending[rows][0], values[..., rows, :])
            if error is not None:
                what = f"after step {pending[rows][0]}: {error}"
                raise type(error)(what) from error.__cause__ or error
        except Exception as error:
            self._failure = error
            if isinstance(error, NonFiniteStatistic) and self._recording is not None:
                error.trajectory = self.trajectory()
            raise

    def _keep(self, rows: list[tuple[int, float]], values: Tensor) -> None:
        if self._recording is None:
            header = Header(self.names, tuple(values.shape[:-2]), self._facts())
            self._recording = Recording(header, self.path, _ROWS_BYTES)
        steps, times = zip(*rows, strict=True)
        self._recording.append(steps, times, values)

    @property
    def _rows(self) -> Recording:
        # step 0 was recorded when the tracker was made
        assert self._recording is not None
        return self._recording

    def trajectory(self) -> Trajectory:
        """All that was recorded so far, step 0 included, values ``(T, k)`` or ``(runs, T, k)``.

        Rows that are on disk are memory-mapped.
        """
        with self._lock:
            if self._failure is None:
                self.flush()
            return dataclasses.replace(self._rows.trajectory(), metadata=self._facts())

    def _facts(self) -> dict[str, Any]:
        return {"parameters": {**self._settings(), **self._facts_given}}

    def explanation(self) -> Explanation:
        """What drift and corrector explain of the change since step 0, up to the present step.

        Raises:
            ValueError: if the tracker was made without a probe, or with one that explains nothing.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=20, order=2, snr=2.0)
            >>> model = problem.model()
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 20)
            >>> probe = tl.Probe(problem.loss, problem.sample)
            >>> tl.track(model, optimizer, problem.statistics, probe=probe).explanation()
            Explanation(2 statistics, 1 probes, t = 0 ... 0)
        """
        with self._lock:
            self._observe()
            found = None if self._observer is None else self._observer.explanation()
        if found is None:
            raise ValueError("expected a tracker with a probe: tl.track(..., probe=tl.Probe(...))")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as tensors and lists, for the user's own checkpoint.

        It is enough to resume anywhere, and grows with the number of rows: 8 (k + 2) bytes each,
        times the runs.
        """
        with self._lock:
            self._settle(0)
            recorded = self.trajectory()
            return {
                "step": self.step,
                "time": self.time,
                "records": self._records,
                "names": list(self.names),
                # copies: tensors on a memory-mapped file would be saved with all of that file
                "times": recorded.times.clone(memory_format=torch.contiguous_format),
                "steps": recorded.steps.clone(memory_format=torch.contiguous_format),
                "values": recorded.values.clone(memory_format=torch.contiguous_format),
                "sink": self._display.state_dict(),
                **({} if self._observer is None else {"probe": self._observer.state_dict()}),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; what was recorded otherwise is dropped.

        Call it before the first step, after loading the model and the optimizer. ``path`` and a log
        directory may be those of the run that ended: what they hold beyond the state is replaced.
        With the same model, data and random numbers, trajectory and events come out as those of a
        run that was never interrupted, bit for bit.

        Raises:
            ValueError: if the state holds other statistics or runs, or is damaged; then nothing
                has changed.
        """
        if self._closed:
            raise ValueError("expected a tracker that records, this one was closed: make another")
        checked = TrackerState.of(state, self.names, self._rows.header.runs)
        observer = None if checked.probe is None else self._observer
        if observer is not None:
            observer.check_state(checked.probe)
        self._display.load_state_dict(checked.sink, int(checked.rows.steps[-1]))
        if observer is not None:
            observer.load_state_dict(checked.probe)
        self._pending, self._failure = [], None
        self._counted, self._records = (checked.step, checked.time), checked.records
        self._ring.resume(self._records)
        self._rows.restore(checked.rows)

    def close(self) -> None:
        """Flush, detach, save to ``path`` if there is one, close the writer if it is ours.

        Warnings say what could not be saved or shown.

        Raises:
            OSError: if there is a ``path`` and nothing could be saved, there or beside it.
        """
        self.remove()
        if self._closed:
            return
        self._closed = True
        try:
            self._observe()
            if self._failure is None:
                self.flush()
        finally:
            self._display.close()
            self._rows.finish(self.trajectory())

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            # the loop's own exception is the one to see
            _log.exception("the tracker could not be closed cleanly")

"""`Tracker`: records the summary statistics of a training run."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchlimits import _names
from torchlimits._checks import warn
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.observer import Watcher
from torchlimits.record.at_exit import close_at_exit, close_quietly
from torchlimits.record.display import Display
from torchlimits.record.loop_values import LoopValues
from torchlimits.record.own_names import unwrapped
from torchlimits.record.recorder import Recorder
from torchlimits.record.recording import place_of
from torchlimits.record.state import TrackerState
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)

#: how often, at least, recorded rows are written to disk and shown
_FLUSH_EVERY_SECONDS = 5.0


class Tracker(Recorder):
    """Records a trajectory; made by `track`.

    Args:
        model, optimizer, statistics, every, writer, path, max_bytes, probe, parameters, time_of:
            as there.

    Attributes:
        step: the number of optimizer steps so far.
        time: the limit time so far.
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
        >>> tracker
        Tracker(Linear, SGD, statistics ['norm'], step 5, t = 0.5, kept in memory)
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
        self._closed = True  # until there is something to close
        super().__init__(model, optimizer, every, time_of)
        self._display = Display(writer)
        self._flushed_at = time.monotonic()
        self._begin(
            statistics, dict(parameters or {}), place_of(path, self._display.logdir), max_bytes
        )
        if probe is not None:
            self._observer = probe.watch(unwrapped(model), self._optimizer, statistics)
            self._observer.timed(self._limit_time.rate)
        self._record()
        self._evaluate_pending()
        self._loop = LoopValues(self._ring.names, self._rows.header.runs)
        self._display.check(next(self._rows.after(-1)))
        self._observe()
        self._attach()
        self._closed = False
        close_at_exit(self)

    @property
    def path(self) -> Path | None:
        """Where the trajectory is after `close`: a path like the one given, if that was taken."""
        return self._path if self._recording is None else self._recording.path

    def __repr__(self) -> str:
        model, names = type(unwrapped(self._model)).__name__, _names.listed(self.names)
        optimizers = ", ".join(type(one).__name__ for one in self._optimizers)
        every = f", every {self.every} steps" if self.every > 1 else ""
        shown = [str(place) for place in (self._display.logdir, self.path) if place is not None]
        where = f", to {', '.join(shown)}" if shown else ", kept in memory"
        state = ", closed" if self._closed else ""
        return (
            f"Tracker({model}, {optimizers}, statistics {names}, step {self.step}, "
            f"t = {self.time:g}{every}{where}{state})"
        )

    def stepped(self) -> None:
        """Take note of an optimizer step; call it for steps that the optimizer's hook does not see.

        A replayed CUDA graph calls no hooks: `remove` the tracker before the capture, and call this
        after each replay, on the stream that replays.
        """
        with self._lock:
            if self._advance():
                self._record()
            if time.monotonic() - self._flushed_at > _FLUSH_EVERY_SECONDS and not self._failure:
                self.flush()
            if self._observer is not None and self.step % self._observer.every == 0:
                self._observe()

    def log(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Record numbers that the loop already has, the loss of a batch for instance.

        They are columns of the trajectory after those of the statistics, in files and sinks too. A
        value belongs to the row of the present `step`: before ``optimizer.step()`` to the
        parameters that a loss was computed with, after it to those that the step has led to. It is
        NaN where none was given, and of two the later one stays. Where ``every`` leaves out the
        present `step`, it leaves out the values too. Tensors stay on their device until the next
        flush.

        Args:
            values: ``{name: value}``, for names that are not Python names.
            named: values by name: numbers, or tensors with one entry (or one for each run).

        Raises:
            TypeError: if a value is not a real number.
            ValueError: if a name is that of a statistic, or a tensor has another shape.

        Example:
            >>> import torch, torchlimits as tl
            >>> model = torch.nn.Linear(3, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> tracker = tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()})
            >>> for step in range(2):
            ...     tracker.log({"loss/train": 0.5 ** step}, rate=0.1)
            ...     optimizer.step()
            >>> tracker.trajectory().names, tracker.trajectory()["loss/train"].tolist()
            (['norm', 'loss/train', 'rate'], [1.0, 0.5, nan])
        """
        if self._closed:
            raise ValueError("expected a tracker that records, this one was closed: log before")
        with self._lock:
            self._settle(0)  # a step whose hook was interrupted is the present one
            last = self._pending[-1][1] if self._pending else self._rows.newest
            given = {**(values or {}), **named}
            if self.step == last or not given:
                self._loop.keep(self.step, given)

    def _observe(self) -> None:
        if self._observer is not None and self._failure is None:
            self._observer.observe(self.step, self.time)

    def flush(self) -> None:
        """Evaluate what is in the ring, write it to disk and hand it to the writer.

        Raises:
            NonFiniteStatistic: if a statistic is NaN or infinite; the rows before it are kept.
            StatisticError: if a statistic failed or changed its shape; the message says at which
                step, and the rows before it are kept.
        """
        with self._lock:
            self._flushed_at = time.monotonic()
            try:
                self._evaluate_pending()
            finally:
                self._rows.write()
                # a row that the loop may still have a value for is shown with the next one
                self._show(whole=not self._loop.names)

    def _show(self, whole: bool) -> None:
        last = math.inf if whole else self._rows.newest - 1.0
        self._display.show(self._rows, self._observer, last)

    def trajectory(self) -> Trajectory:
        """All that was recorded so far, step 0 included: values ``(T, k)`` or ``(runs, T, k)``.

        Rows that are on disk are memory-mapped.
        """
        with self._lock:
            if self._failure is None:
                self.flush()
            return dataclasses.replace(self._rows.trajectory(), metadata=self._facts())

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
                "records": self._next,
                "names": list(recorded.names),
                "logged": list(self._loop.names),
                # copies: tensors on a memory-mapped file would be saved with all of that file
                "times": recorded.times.clone(memory_format=torch.contiguous_format),
                "steps": recorded.steps.clone(memory_format=torch.contiguous_format),
                "values": recorded.values.clone(memory_format=torch.contiguous_format),
                "sink": self._display.state_dict(),
                **({} if self._observer is None else {"probe": self._observer.state_dict()}),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; whatever else was recorded is dropped.

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
        checked = TrackerState.of(state, self._ring.names, self._rows.header.runs)
        observer = None if checked.probe is None else self._observer
        if observer is not None:
            observer.check_state(checked.probe)
        self._display.load_state_dict(checked.sink, int(checked.rows.steps[-1]))
        if observer is not None:
            observer.load_state_dict(checked.probe)
        self._failure = None
        self._records, self._pending = checked.records, []
        self._counted = checked.step, checked.time
        self._loop = LoopValues(self._ring.names, self._rows.header.runs)
        self._loop.names = checked.logged
        self._ring.forget()
        self._rows.restore(checked.rows, opens=bool(checked.logged))

    def close(self) -> None:
        """Flush, detach, save to ``path`` if there is one, and close the writer if it is ours.

        Warnings say what could not be saved or shown. Without this call, the same is done when the
        program ends, or when model and optimizer are gone.

        Raises:
            OSError: if there is a ``path`` and nothing could be saved, there or beside it.
        """
        unseen = self.unseen()
        self.remove()
        if self._closed:
            return
        if unseen is not None:
            warn(unseen)
        failure = None
        try:
            self._observe()
            if self._failure is None:
                self.flush()
        except Exception as error:
            failure = error
        self._show(whole=True)
        self._display.close()
        self._rows.finish(self.trajectory())
        # an interrupt before this line leaves a tracker that can be closed again
        self._closed = True
        if failure is not None:
            raise failure

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

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            close_quietly(self)

    def left_open(self) -> bool:
        """Whether there is something to keep, and `close` was not called.

        It is False if no step was recorded: the files of an earlier run, whose state could not be
        loaded for instance, are worth more.

        Example:
            >>> import torch, torchlimits as tl
            >>> model = torch.nn.Linear(3, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> tracker = tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()})
            >>> optimizer.step()
            >>> tracker.left_open()  # nothing is to be written anywhere
            False
        """
        shows = self.path is not None or self._display.shows
        return not self._closed and shows and self._next > 1

    def __reduce__(self) -> tuple[Any, ...]:
        # a model that holds its tracker is saved without it
        return type(None), ()

"""`track`: record summary statistics at every step of a training loop that somebody else wrote."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.estimation.probe import Explanation, Probe, Prober
from torchlimits.files.row_file import Header
from torchlimits.record.display import Display
from torchlimits.record.optimizer_hook import Steps, check_types
from torchlimits.record.own_parameters import OwnParameters, unwrapped
from torchlimits.record.recording import Recording
from torchlimits.record.replicas import Replicated
from torchlimits.record.ring import ring_for
from torchlimits.record.state import TrackerState
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)

#: how often, at least, recorded rows are written to disk and shown
_FLUSH_EVERY_SECONDS = 5.0
#: bound on the evaluated rows in memory
_ROWS_BYTES = 64 * 2**20
#: the trajectory's file in a log directory
_RECORDED = "recorded.rows"


class NonFiniteStatistic(ValueError):
    """A statistic became NaN or infinite: most often, SGD diverged.

    Attributes:
        step: the optimizer step after which it did.
        name: the statistic.
        value: what it is, NaN or infinite.
        trajectory: all that was recorded before that step.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
        >>> try:
        ...     with tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()}):
        ...         for _ in range(5):
        ...             model(torch.ones(8, 3)).square().mean().backward()
        ...             optimizer.step()
        ... except NonFiniteStatistic as error:
        ...     print(error.name, error.step, error.trajectory.steps.tolist())
        norm 1 [0]
    """

    trajectory: Trajectory | None = None

    def __init__(self, name: str, step: int, value: float) -> None:
        self.name, self.step, self.value = name, step, value
        super().__init__(
            f"statistic {name} is {value} after step {step}: training diverged (lower the step "
            f"size) or the statistic is not defined there; everything before step {step} is kept"
        )

    def __reduce__(self) -> tuple[type, tuple[str, int, float]]:
        return type(self), (self.name, self.step, self.value)


def track(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    statistics: SummaryStatistics | Mapping[str, StatisticFunction],
    *,
    every: int = 1,
    writer: Any = None,
    path: str | Path | None = None,
    max_bytes: int | None = None,
    probe: Probe | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Tracker:
    """Record summary statistics at every step of `optimizer`, step 0 included.

    A hook on the optimizer copies the parameters that the statistics read into a preallocated
    ring on their device; the statistics are evaluated for the whole ring at once when it is full
    or five seconds have passed (or at `Tracker.flush`). Then they are written to disk and shown.
    Training is bit-identical with and without: no random number is drawn, nothing enters autograd,
    and the device is not synchronised in between.

    Nothing recorded is lost: with a ``path`` (or a log directory) rows are appended to
    ``<path>.unfinished`` at every flush. A program that is killed leaves that file, which
    `Trajectory.load` opens; `Tracker.close` turns it into ``path``. Without, rows beyond 64 MiB go
    to a temporary file. What a full disk or a broken writer refuses is kept in memory up to 64 MiB
    and tried again, while training goes on: see `Recording` for what happens beyond.

    To resume, put `Tracker.state_dict` into your checkpoint, make the tracker with the same
    arguments in the new program, and call `Tracker.load_state_dict` before the first step.

    **Steps.** A step is a call of ``optimizer.step`` that ended, whatever came before it: several
    backward passes, or a closure evaluated several times (LBFGS). Steps that a ``GradScaler`` skips
    are none (with a fused optimizer on CUDA, asking for that synchronises the device). Limit time
    grows by the learning rate that the step had, of the first parameter group with a parameter of
    the model; while that is 0, or too small to change the sum, steps count and are not recorded.

    **Models.** Whatever is around the model (`torch.compile`, DataParallel,
    DistributedDataParallel, Lightning Fabric), names are those of the user's own module. Tied
    parameters are one, by the first of their names. Parameters that are moved
    (``model.to(...)``) or replaced in the model are followed, as long as the statistics keep their
    shape and the optimizer holds one of them. Copies of model and optimizer (`copy.deepcopy`) are
    not recorded. Other threads than the one that trains may ask the tracker for what it has.

    **Processes.** With DistributedDataParallel, ``fully_shard`` or other DTensor parameters, make
    the tracker on every rank, of the wrapped model: rank 0 records the whole parameters, the others
    take part in gathering them at every recorded step, need no ``writer`` or ``path`` and ignore
    them. There, `Tracker.trajectory` is a ValueError, and `Tracker.load_state_dict` takes the state
    of rank 0 or one of its own. `Tracker.remove` and `Tracker.close` are for all ranks at the same
    step. Gathering costs the communication of one forward pass; ``every`` spares it.

    Args:
        model: any module.
        optimizer: any optimizer that holds at least one parameter of the model.
        statistics: a `SummaryStatistics`, or a dict ``{name: function}`` as it takes. They get
            half-precision parameters in float32; values are recorded in float64.
        every: record every so many steps.
        writer: where to show them live: a log directory, a `tl.tensorboard.Writer`, a
            ``torch.utils.tensorboard.SummaryWriter`` (to resume, made with ``purge_step=`` the
            checkpoint's step + 1), or any `Sink`.
        path: where the trajectory is after `Tracker.close`, also when the loop ends in an
            exception: as `Trajectory.save` writes it or, if the suffix is ``.rows``, as it was
            recorded, which takes no time and can be memory-mapped. Without one, and with a log
            directory or a `tl.tensorboard.Writer`: ``recorded.rows`` in that directory.
        max_bytes: bound on the ring; by default 64 MiB, or a 64th of a CUDA device's memory if that
            is more. If not even two snapshots fit, the statistics are evaluated in the hook itself,
            which takes a launch or more for each of them at every step.
        probe: a `Probe`: estimate drift and corrector along the run, so that
            `Tracker.explanation` (and TensorBoard, under ``explained``) says what of the
            statistics' change they explain; needs torch.optim.SGD and no sharded parameters.
        parameters: facts about the run, JSON-able, for the trajectory's
            ``metadata["parameters"]``, beside the optimizer's settings.

    Returns:
        A `Tracker`, to be closed, or used as a context manager.

    Raises:
        ValueError: if the optimizer holds none of the model's parameters or has no lr, its lr is 0
            and no scheduler will raise it, every < 1, the statistics read no parameter or one on
            the meta device, or one is not finite at the start. During training, at a flush:
            `NonFiniteStatistic`, or a `StatisticError` if a statistic fails or changes its shape,
            with the step after which it did and the rows before it kept; at a step:
            a ValueError if parameters were replaced by others that cannot be followed.
        OSError: if the folder of ``path`` or the log directory cannot be written to.
        TypeError: if an argument is of a wrong type, or a statistic does not return a tensor.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()}) as tracker:
        ...     for _ in range(5):
        ...         model(torch.randn(8, 3)).square().mean().backward()
        ...         optimizer.step()
        >>> tracker.trajectory()["norm"].shape
        torch.Size([6])
    """
    check_types(model, optimizer)
    statistics = _statistics_of(statistics, model)
    own = OwnParameters(model)
    if probe is not None and own.sharded:
        raise ValueError(
            "expected parameters that one process has, got sharded ones: a probe runs the model "
            "in one process; track without one"
        )
    if not own.leads:
        from torchlimits.record.follower import Follower

        return Follower(model, optimizer, statistics, every)
    return Tracker(
        model,
        optimizer,
        statistics,
        every=every,
        writer=writer,
        path=path,
        max_bytes=max_bytes,
        probe=probe,
        parameters=parameters,
    )


class Tracker(Steps):
    """Records a trajectory; made by `track`.

    Args:
        model, optimizer, statistics, every, writer, path, max_bytes, probe, parameters: as there.

    Attributes:
        step: optimizer steps so far.
        time: limit time so far.
        names: of the k statistics.

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
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: SummaryStatistics,
        *,
        every: int,
        writer: Any,
        path: str | Path | None,
        max_bytes: int | None,
        probe: Probe | None,
        parameters: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(model, optimizer, every)
        self._statistics, self._facts_given = statistics, dict(parameters or {})
        _checks.json_text("parameters", self._facts_given)
        self._display = Display(writer)
        self.path = _checked_path(path, self._display.sink)
        self._max_bytes = (
            None if max_bytes is None else _checks.positive_int("max_bytes", max_bytes)
        )
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
        self._prober = _prober_of(probe, model, self._optimizer, statistics)
        self._record()
        self._evaluate_pending()
        self._display.check(next(self._rows.after(-1)))
        self._probe()
        self._attach()

    # --- recording -------------------------------------------------------------------------

    def stepped(self) -> None:
        """Take note of an optimizer step; for steps that the hook does not see.

        A replayed CUDA graph calls no hooks: `remove` the tracker before the capture and call this
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
            if self._prober is not None and self.step % self._prober.probe.every == 0:
                self._probe()

    def _probe(self) -> None:
        """Estimate drift and corrector here, if that is asked for."""
        if self._prober is None or self._failure is not None:
            return
        # diverged parameters are reported by the statistics, with the step at which they did
        if self._prober.finite:
            self._prober.measure(self.step, self.time)

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
        if self._prober is not None:
            self._prober.moved(dict(unwrapped(self._model).named_parameters()))
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
                self._display.show(self._rows, self._prober)

    def _evaluate_pending(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            values, error = self._ring.take()
            rows = _finite_rows(values)
            if rows:
                self._keep(pending[:rows], values[..., :rows, :])
            if rows < values.shape[-2]:
                raise _non_finite(self.names, pending[rows][0], values[..., rows, :])
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

    # --- what was recorded -----------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """All that was recorded so far, step 0 included, values ``(T, k)`` or ``(runs, T, k)``.

        Rows that are on disk are memory-mapped.
        """
        with self._lock:
            if self._failure is None:
                self.flush()
            return dataclasses.replace(self._rows.trajectory(), metadata=self._facts())

    def _facts(self) -> dict[str, Any]:
        group = {**self._group(), "lr": float(self._group()["lr"])}
        settings = {
            key: value
            for key, value in group.items()
            if isinstance(value, (bool, int, float, str)) and key != "params"
        }
        optimizer = {"optimizer": type(self._optimizer).__name__, **settings}
        return {"parameters": {**optimizer, **self._facts_given}}

    def explanation(self) -> Explanation:
        """What drift and corrector explain of the change since step 0, up to the present step.

        Raises:
            ValueError: if the tracker was made without a probe.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=20, order=2, snr=2.0)
            >>> model = problem.model()
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 20)
            >>> probe = tl.Probe(problem.loss, problem.sample)
            >>> tl.track(model, optimizer, problem.statistics, probe=probe).explanation()
            Explanation(2 statistics, 1 probes, t = 0 ... 0)
        """
        if self._prober is None:
            raise ValueError("expected a tracker with a probe: tl.track(..., probe=tl.Probe(...))")
        with self._lock:
            self._probe()
            return self._prober.explanation()

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as tensors and lists, for the user's own checkpoint.

        It is enough to resume anywhere, and grows with the number of rows: 8 (k + 2) bytes each,
        times the runs.
        """
        with self._lock:
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
                **({} if self._prober is None else {"probe": self._prober.state_dict()}),
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
        device = next(iter(self._ring.parameters.tensors.values())).device
        checked = TrackerState.of(state, self.names, self._rows.header.runs, device)
        self._display.load_state_dict(checked.sink, int(checked.rows.steps[-1]))
        if self._prober is not None and checked.probe is not None:
            self._prober.load_state_dict(checked.probe)
        self._pending, self._failure = [], None
        self.step, self.time, self._records = checked.step, checked.time, checked.records
        self._ring.resume(self._records)
        self._rows.restore(checked.rows)

    # --- the end ---------------------------------------------------------------------------

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
            self._probe()
            if self._failure is None:
                self.flush()
        finally:
            self._display.close()
            self._rows.finish(self.trajectory())

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            # the loop's own exception is the one to see
            _log.exception("the tracker could not be closed cleanly")


def _statistics_of(
    statistics: SummaryStatistics | Mapping[str, StatisticFunction], model: nn.Module
) -> SummaryStatistics:
    """Those to record, of all copies if the model holds several."""
    result, own = SummaryStatistics.of(statistics), unwrapped(model)
    return own.statistics(result) if isinstance(own, Replicated) else result


def _prober_of(
    probe: Probe | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    statistics: SummaryStatistics,
) -> Prober | None:
    if probe is None:
        return None
    if not isinstance(probe, Probe):
        raise TypeError(f"expected probe as a tl.Probe, got {type(probe).__name__}")
    return Prober(probe, unwrapped(model), optimizer, statistics)


def _checked_path(path: str | Path | None, sink: Any) -> Path | None:
    """Where the trajectory goes, after making sure, before hours of training, that it can."""
    if path is None:
        logdir = getattr(sink, "logdir", None)
        return None if logdir is None else Path(logdir) / _RECORDED
    # the file behind a symbolic link, not a file in the place of the link
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise ValueError(
            f"expected path as a file to save to, got the directory {path}: name a file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"expected path in a folder that can be made, got {path}: {error}; give another"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"expected path in a folder that can be written to, got {path}: give another"
        )
    return path


def _finite_rows(values: Tensor) -> int:
    """How many of the first rows of (..., T, k) are finite in every run."""
    finite = values.isfinite().movedim(-2, 0).flatten(1).all(dim=-1)
    return len(finite) if bool(finite.all()) else int((~finite).nonzero()[0])


def _non_finite(names: list[str], step: int, row: Tensor) -> NonFiniteStatistic:
    flat = row.reshape(-1, row.shape[-1])
    run, column = (~flat.isfinite()).nonzero()[0].tolist()
    label = names[column] + (f" (run {run})" if len(flat) > 1 else "")
    return NonFiniteStatistic(label, step, float(flat[run, column]))

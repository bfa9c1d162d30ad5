"""`track`: record summary statistics at every step of a training loop that somebody else wrote."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from torchlimits import checks
from torchlimits.probe import Explanation, Probe, Prober
from torchlimits.ring import ring_for
from torchlimits.statistics import StatisticFunction, SummaryStatistics
from torchlimits.trajectory import Trajectory

_log = logging.getLogger(__name__)

#: how often a writer is given the new rows during training
_SHOW_EVERY_SECONDS = 5.0


class Sink(Protocol):
    """Where recorded pieces of a trajectory go during training, `tl.tensorboard.Writer` for one."""

    def add(self, chunk: Trajectory) -> None:
        """Take the next rows of the trajectory."""

    def flush(self) -> None:
        """Make what was added visible to readers."""


class NonFiniteStatistic(ValueError):
    """A statistic became NaN or infinite: most often, SGD diverged.

    Attributes:
        step: the optimizer step after which it did.
        name: the statistic.
        trajectory: all that was recorded before that step.
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
    max_bytes: int = 64 * 2**20,
    probe: Probe | None = None,
) -> Tracker:
    """Record summary statistics at every step of `optimizer`, step 0 included.

    A hook on the optimizer copies the parameters that the statistics read into a preallocated
    ring on their device; the statistics are evaluated for the whole ring at once when it is full
    (or at `Tracker.flush`); a writer is shown them every five seconds. Training is bit-identical
    with and without: no random number is drawn, nothing enters autograd, and the device is not
    synchronised before the ring is full.

    Args:
        model: any module.
        optimizer: any optimizer that holds at least one parameter of the model.
        statistics: a `SummaryStatistics`, or a dict ``{name: function}`` as it takes.
        every: record every so many steps.
        writer: where to show them live: a log directory, a `tl.tensorboard.Writer`, a
            ``torch.utils.tensorboard.SummaryWriter``, or any `Sink`.
        path: where `Tracker.close` saves the trajectory, also when the loop ends in an exception.
        max_bytes: bound on the ring. If not even one snapshot fits, the statistics are evaluated
            in the hook itself.
        probe: a `Probe`: estimate drift and corrector along the run, so that
            `Tracker.explanation` (and TensorBoard, under ``explained``) says what of the
            statistics' change they explain; needs torch.optim.SGD.

    Returns:
        A `Tracker`, to be closed, or used as a context manager. The limit time of a step is the
        sum of the learning rates so far (of the first parameter group).

    Raises:
        ValueError: if the optimizer holds none of the model's parameters, its lr is 0, every < 1,
            or a statistic is not finite at the start. During training, at a flush:
            `NonFiniteStatistic`, or a ValueError if a statistic changes its shape.
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
    return Tracker(
        model,
        optimizer,
        statistics,
        every=every,
        writer=writer,
        path=path,
        max_bytes=max_bytes,
        probe=probe,
    )


class Tracker:
    """Records a trajectory; made by `track`, which says what the arguments mean."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        statistics: SummaryStatistics | Mapping[str, StatisticFunction],
        *,
        every: int = 1,
        writer: Any = None,
        path: str | Path | None = None,
        max_bytes: int = 64 * 2**20,
        probe: Probe | None = None,
    ) -> None:
        _check_training(model, optimizer)
        self.every = checks.positive_int("every", every)
        self.path = _checked_path(path)
        statistics = SummaryStatistics.of(statistics)
        self._optimizer = optimizer
        self._sink, self._owns_sink = _sink_of(writer)
        checks.positive_int("max_bytes", max_bytes)
        self._ring = ring_for(statistics, dict(model.named_parameters()), max_bytes)
        self.names = self._ring.names
        if not self.names:
            raise ValueError("expected statistics with at least one entry, got empty tensors only")
        self.step, self.time = 0, 0.0
        # rows in the ring, not yet evaluated; rows evaluated
        self._pending: list[tuple[int, float]] = []
        self._recorded: list[Trajectory] = []
        self._shown, self._shown_at = 0, time.monotonic()
        self._failure: Exception | None = None
        self._prober = _prober_of(probe, model, optimizer, statistics)
        self._record()
        self._evaluate_pending()
        self._probe()
        self._hook = optimizer.register_step_post_hook(self._after_step)

    # --- recording -------------------------------------------------------------------------

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        self.time += float(optimizer.param_groups[0]["lr"])
        if self.step % self.every == 0 and self._failure is None:
            self._record()
        if self._prober is not None and self.step % self._prober.probe.every == 0:
            self._probe()

    def _probe(self) -> None:
        """Estimate drift and corrector here, if that is asked for."""
        if self._prober is None or self._failure is not None:
            return
        # diverged parameters are reported by the statistics, with the step at which they did
        if all(bool(p.isfinite().all()) for p in self._prober.parameters.values()):
            self._prober.measure(self.step, self.time)

    def _record(self) -> None:
        self._ring.store()
        self._pending.append((self.step, self.time))
        if self._ring.full:
            self._evaluate_pending()
            if time.monotonic() - self._shown_at > _SHOW_EVERY_SECONDS:
                self._show()

    def flush(self) -> None:
        """Evaluate what is in the ring and hand it to the writer.

        Raises:
            NonFiniteStatistic: if a statistic is NaN or infinite; the rows before it are kept.
            ValueError: if a statistic changed its shape.
        """
        try:
            self._evaluate_pending()
        finally:
            self._show()

    def _evaluate_pending(self) -> None:
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            values, error = self._ring.take()
            rows = _finite_rows(values)
            if rows:
                self._recorded.append(self._chunk(pending[:rows], values[..., :rows, :]))
            if rows < values.shape[-2]:
                raise _non_finite(self.names, pending[rows][0], values[..., rows, :])
            if error is not None:
                raise error
        except Exception as error:
            self._failure = error
            if isinstance(error, NonFiniteStatistic) and self._recorded:
                error.trajectory = self.trajectory()
            raise

    def _chunk(self, rows: list[tuple[int, float]], values: Tensor) -> Trajectory:
        steps, times = zip(*rows, strict=True)
        return Trajectory(
            torch.tensor(times, dtype=torch.float64), torch.tensor(steps), values, self.names
        )

    def _show(self) -> None:
        if self._sink is None:
            return
        for chunk in self._recorded[self._shown :]:
            self._sink.add(chunk)
        self._shown, self._shown_at = len(self._recorded), time.monotonic()
        if self._prober is not None and hasattr(self._sink, "explain"):
            self._sink.explain(self._prober.explanation())
        self._sink.flush()

    # --- what was recorded -----------------------------------------------------------------

    def trajectory(self) -> Trajectory:
        """All that was recorded so far, step 0 included, values ``(T, k)`` or ``(runs, T, k)``."""
        if self._failure is None:
            self.flush()
        joined = _join(self._recorded)
        # one long piece from here on: asking often does not copy the pieces again and again
        self._recorded, self._shown = [joined], 1 if self._shown else 0
        group = self._optimizer.param_groups[0]
        settings = {
            key: value
            for key, value in group.items()
            if isinstance(value, (bool, int, float, str)) and key != "params"
        }
        parameters = {"optimizer": type(self._optimizer).__name__, **settings}
        return Trajectory(
            joined.times,
            joined.steps,
            joined.values,
            joined.names,
            metadata={"parameters": parameters},
        )

    def explanation(self) -> Explanation:
        """What drift and corrector explain of the change since step 0, up to the present step.

        Raises:
            ValueError: if the tracker was made without a probe.
        """
        if self._prober is None:
            raise ValueError("expected a tracker with a probe: tl.track(..., probe=tl.Probe(...))")
        self._probe()
        return self._prober.explanation()

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded, as tensors and lists, for the user's own checkpoint."""
        recorded = self.trajectory()
        return {
            "step": self.step,
            "time": self.time,
            "names": list(self.names),
            "times": recorded.times,
            "steps": recorded.steps,
            "values": recorded.values,
            **({} if self._prober is None else {"probe": self._prober.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; what this tracker recorded before is dropped.

        Raises:
            ValueError: if the state holds other statistics.
        """
        if list(state["names"]) != list(self.names):
            raise ValueError(
                f"expected a state of the statistics {list(self.names)}, got {state['names']}"
            )
        if self._pending:
            self._ring.take()
        self._pending = []
        self.step, self.time = int(state["step"]), float(state["time"])
        self._recorded = [
            Trajectory(state["times"], state["steps"], state["values"], list(self.names))
        ]
        self._shown = 0
        if self._prober is not None and "probe" in state:
            self._prober.load_state_dict(state["probe"])

    # --- the end ---------------------------------------------------------------------------

    def remove(self) -> None:
        """Detach from the optimizer: later steps are not recorded; what was recorded stays."""
        self._hook.remove()

    def close(self) -> None:
        """Flush, detach, save to ``path`` if one was given, close the writer if it is ours."""
        self.remove()
        try:
            self._probe()
            if self._failure is None:
                self.flush()
        finally:
            if self.path is not None:
                self.trajectory().save(self.path)
            if self._owns_sink:
                self._sink.close()  # type: ignore[union-attr]
                self._sink = None

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


def _check_training(model: object, optimizer: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"expected optimizer to be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ValueError(
            "expected an optimizer that holds the model's parameters, got one that holds none of "
            "them: build it from this model's .parameters(), after moving the model"
        )
    for index, group in enumerate(optimizer.param_groups):
        if float(group["lr"]) <= 0:
            raise ValueError(
                f"expected a learning rate > 0, got lr={float(group['lr'])} in parameter group "
                f"{index}: limit time t = step * lr would stand still"
            )


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
    return Prober(probe, model, optimizer, statistics)


def _checked_path(path: str | Path | None) -> Path | None:
    """The path, after making sure, before hours of training, that it can be written."""
    if path is None:
        return None
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"expected path as a file to save to, got the directory {path}: name a file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _sink_of(writer: Any) -> tuple[Any, bool]:
    """The sink behind ``writer``, and whether closing it is ours to do."""
    if writer is None:
        return None, False
    if hasattr(writer, "add") and hasattr(writer, "flush"):
        return writer, False
    # imported here: a loop that does not use TensorBoard does not load it
    from torchlimits import tensorboard

    return tensorboard.live(writer), True


def _finite_rows(values: Tensor) -> int:
    """How many of the first rows of (..., T, k) are finite in every run."""
    finite = values.isfinite().all(dim=-1).reshape(-1, values.shape[-2]).all(dim=0)
    return len(finite) if bool(finite.all()) else int((~finite).nonzero()[0])


def _non_finite(names: list[str], step: int, row: Tensor) -> NonFiniteStatistic:
    flat = row.reshape(-1, row.shape[-1])
    run, column = (~flat.isfinite()).nonzero()[0].tolist()
    label = names[column] + (f" (run {run})" if len(flat) > 1 else "")
    return NonFiniteStatistic(label, step, float(flat[run, column]))


def _join(chunks: list[Trajectory]) -> Trajectory:
    if len(chunks) == 1:
        return chunks[0]
    return Trajectory(
        torch.cat([chunk.times for chunk in chunks]),
        torch.cat([chunk.steps for chunk in chunks]),
        torch.cat([chunk.values for chunk in chunks], dim=-2),
        chunks[0].names,
    )

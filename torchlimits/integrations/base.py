"""`Attached`: what the callbacks of all trainers share."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from torchlimits import _checks
from torchlimits._checks import warn
from torchlimits.contracts.observer import Watcher
from torchlimits.record.track import track
from torchlimits.record.tracker import Tracker
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics


class Attached:
    """The arguments of `tl.track`, until there is a training; from then on its `Tracker`.

    Args:
        statistics, every, path, max_bytes, probe, parameters, time_of: as in `tl.track`.
        writer: as in `tl.track`; None stands for where the trainer logs, False for nowhere.
    """

    #: the tracker of the training under way, or of the last one; None before the first
    tracker: Tracker | None = None

    def __init__(
        self, statistics: SummaryStatistics | Mapping[str, StatisticFunction], *, every: int = 1,
        writer: Any = None, path: str | Path | None = None, max_bytes: int | None = None,
        probe: Watcher | None = None, parameters: Mapping[str, Any] | None = None,
        time_of: str | None = None,
    ) -> None:  # fmt: skip
        self.statistics, self.path, self.probe = SummaryStatistics.of(statistics), path, probe
        self._writer = writer
        _checks.positive_int("every", every)
        if max_bytes is not None:
            _checks.positive_int("max_bytes", max_bytes)
        self._options: dict[str, Any] = {
            "every": every,
            "max_bytes": max_bytes,
            "probe": probe,
            "parameters": parameters,
            "time_of": time_of,
        }

    def _begin(
        self, model: nn.Module, optimizer: Optimizer, *, logs: Any, writes: bool, step: int,
        state: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        """Attach a tracker; ``state`` is that of the tracker that recorded the steps so far.

        ``logs`` is where the trainer logs, a ``writer`` of `tl.track`; ``writes`` says whether
        this process is the one of several that logs.
        """
        self._end()  # a training that did not come to its end is begun anew
        writer = logs if self._writer is None else self._writer
        writer = None if writer is False or not writes else writer
        path = self.path if writes else None
        self.tracker = tracker = track(
            model, optimizer, self.statistics, writer=writer, path=path, **self._options
        )
        if state is not None:
            try:
                tracker.load_state_dict(state)
            except BaseException:
                tracker.remove()
                self.tracker = None
                raise
        elif step > 0:
            warn(
                f"the training goes on at step {step} from a checkpoint without recorded steps: "
                f"recording begins here, its step 0 is the trainer's step {step}"
            )
        # a program that ends in an exception leaves its trajectory at the path all the same
        self._at_exit = weakref.finalize(self, tracker.close)

    def _end(self, error: BaseException | None = None) -> None:
        """Close the tracker; if the training failed, its error is the one to show."""
        if self.tracker is not None:
            self._at_exit.detach()
            self.tracker.__exit__(None if error is None else type(error), error, None)

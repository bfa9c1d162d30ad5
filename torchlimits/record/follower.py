"""`Follower`: the tracker of a process that is not the first of those that train one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from torchlimits import _checks
from torchlimits.record.evaluation import Surroundings
from torchlimits.record.loop_values import LoopValues
from torchlimits.record.model_state import ModelState
from torchlimits.record.optimizer_hook import Steps
from torchlimits.record.ring import ring_of
from torchlimits.record.tracker import Tracker
from torchlimits.statistics.summary import SummaryStatistics


class Follower(Tracker):
    """Counts steps and takes part in gathering sharded parameters; records nothing.

    `track` makes it on all processes but the first. A training loop may use it as it does a
    tracker: `flush` and `close` have nothing to write, a state holds the step and the time only
    (the first process's state can be loaded as well), and `trajectory` is a ValueError.

    Args:
        model, optimizer, statistics, every, time_of: as on the first process.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        statistics: SummaryStatistics, every: int, time_of: str | None = None,
    ) -> None:  # fmt: skip
        self._closed = True
        Steps.__init__(self, model, optimizer, every, time_of)
        self._path, self._recording = None, None
        # without room for records: it finds out what is read just as the first process does
        state = ModelState(model, self._optimizers)
        self._ring = ring_of(statistics, state, Surroundings(), max_bytes=0)
        self._loop = LoopValues(self._ring.names, ())
        self._ring.followed.gather()
        self._attach()

    def stepped(self) -> None:
        """Count a step, and gather the parameters if it is recorded on the first process."""
        if self._advance():
            self._ring.followed.gather()

    def log(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Do nothing: the first process records its own."""

    def flush(self) -> None:
        """Do nothing: there are no rows."""

    def close(self) -> None:
        """Detach."""
        self.remove()

    def trajectory(self) -> NoReturn:
        """Raise ValueError: the first process has it."""
        raise ValueError(
            "expected the first process (rank 0), which has all records, got "
            f"rank {torch.distributed.get_rank()}: ask there, if torch.distributed.get_rank() == 0"
        )

    def explanation(self) -> NoReturn:
        """Raise ValueError: the first process has it."""
        self.trajectory()

    def state_dict(self) -> dict[str, Any]:
        """The step and the limit time so far."""
        self._settle(0)
        return {"step": self.step, "time": self.time}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the step of a state of this or of the first process.

        Raises:
            ValueError: if it is not such a state.
        """
        if not isinstance(state, Mapping) or not {"step", "time"} <= set(state):
            raise ValueError(
                f"expected a tracker's state_dict, with step and time, got {type(state).__name__}"
            )
        time = _checks.non_negative("the state's time", state["time"])
        self._counted = (int(state["step"]), time)

"""`TrackerState`: what `Tracker.state_dict` holds, checked before anything is changed by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchlimits.trajectory import Trajectory

_KEYS = ("step", "time", "names", "times", "steps", "values")


@dataclass(frozen=True)
class TrackerState:
    """The parts of a tracker's state_dict, found fit to be loaded.

    Attributes:
        step, time: the number of the last optimizer step, and the limit time after it.
        records: how many records were made.
        rows: what was recorded.
        logged: the names of the loop's own values, which are the last columns of the rows.
        sink, probe: the states of the sink and of the probe's observer, not checked here, or None.
    """

    step: int
    time: float
    records: int
    rows: Trajectory
    logged: list[str]
    sink: Any
    probe: Any

    @classmethod
    def of(cls, state: Any, names: list[str], runs: tuple[int, ...]) -> TrackerState:
        """Check a state_dict, and return its parts by name.

        Args:
            state: anything.
            names, runs: the statistics' names and the leading dimensions that the tracker has.

        Raises:
            ValueError: if it is damaged, or of other statistics or runs.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"expected a tracker's state_dict, got {type(state).__name__}")
        missing = [key for key in _KEYS if key not in state]
        if missing:
            raise ValueError(f"expected a tracker's state_dict, got one without {missing}")
        logged = state.get("logged", [])
        if not isinstance(logged, list) or state["names"] != [*names, *logged]:
            raise ValueError(f"expected a state of the statistics {names}, got {state['names']}")
        try:
            rows = Trajectory(state["times"], state["steps"], state["values"], state["names"])
            step, time = int(state["step"]), float(state["time"])
            records = int(state.get("records", len(rows)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"expected a tracker's state_dict, got a damaged one: {error}"
            ) from error
        result = cls(step, time, records, rows, logged, state.get("sink"), state.get("probe"))
        result._check_rows(runs)
        return result

    def _check_rows(self, runs: tuple[int, ...]) -> None:
        rows = self.rows
        if tuple(rows.values.shape[:-2]) != runs:
            raise ValueError(
                f"expected a state of runs {runs}, got {tuple(rows.values.shape[:-2])}: "
                "load it into a tracker of as many replicas"
            )
        # NaN stands for what has no value: a gradient at step 0, a loss that was not logged
        statistics = rows.values[..., : len(rows.names) - len(self.logged)]
        finite = not bool(statistics.isinf().any()) and not bool(statistics.isnan().all())
        if not len(rows) or self.records < len(rows) or not finite:
            raise ValueError(
                "expected a state of at least one record, all finite where there are values, got "
                f"{len(rows)} rows of {self.records}: it is damaged"
            )
        if bool((rows.steps.diff() <= 0).any()) or int(rows.steps[0]) < 0:
            raise ValueError("expected a state with increasing steps >= 0: it is damaged")
        last_step, last_time = int(rows.steps[-1]), float(rows.times[-1])
        if last_step > self.step or not last_time <= self.time < math.inf:
            raise ValueError(
                f"expected a state whose rows end at or before its step {self.step} and time "
                f"{self.time:g}, got rows up to step {last_step} and time {last_time:g}"
            )

"""`TrackerState`: what `Tracker.state_dict` holds, checked before anything is changed by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torchlimits.trajectory import Trajectory

_KEYS = ("step", "time", "names", "times", "steps", "values")
_PROBE_KEYS = ("steps", "times", "rows", "generator")


@dataclass(frozen=True)
class TrackerState:
    """A state that is fit to be loaded.

    Attributes:
        step, time: of the last optimizer step.
        records: how many records were made, those that a full disk took included.
        rows: what was recorded.
        sink, probe: the states of these, or None.
    """

    step: int
    time: float
    records: int
    rows: Trajectory
    sink: Any
    probe: Any

    @classmethod
    def of(
        cls, state: Any, names: list[str], runs: tuple[int, ...], device: torch.device
    ) -> TrackerState:
        """Of a state_dict, or ValueError if it is damaged or of other statistics or runs.

        Args:
            state: anything.
            names, runs: of the tracker.
            device: of its probe.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"expected a tracker's state_dict, got {type(state).__name__}")
        missing = [key for key in _KEYS if key not in state]
        if missing:
            raise ValueError(f"expected a tracker's state_dict, got one without {missing}")
        if state["names"] != names:
            raise ValueError(f"expected a state of the statistics {names}, got {state['names']}")
        try:
            rows = Trajectory(state["times"], state["steps"], state["values"], names)
            step, time = int(state["step"]), float(state["time"])
            records = int(state.get("records", len(rows)))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"expected a tracker's state_dict, got a damaged one: {error}"
            ) from error
        result = cls(step, time, records, rows, state.get("sink"), state.get("probe"))
        result._check_rows(runs)
        result._check_probe(device)
        return result

    def _check_rows(self, runs: tuple[int, ...]) -> None:
        rows = self.rows
        if tuple(rows.values.shape[:-2]) != runs:
            raise ValueError(
                f"expected a state of runs {runs}, got {tuple(rows.values.shape[:-2])}: "
                "load it into a tracker of as many replicas"
            )
        if not len(rows) or self.records < len(rows) or not bool(rows.values.isfinite().all()):
            raise ValueError(
                f"expected a state of at least one record, all finite, got {len(rows)} rows of "
                f"{self.records}: it is damaged"
            )
        if bool((rows.steps.diff() <= 0).any()) or int(rows.steps[0]) < 0:
            raise ValueError("expected a state with increasing steps >= 0: it is damaged")
        last_step, last_time = int(rows.steps[-1]), float(rows.times[-1])
        if last_step > self.step or not last_time <= self.time < math.inf:
            raise ValueError(
                f"expected a state whose rows end at or before its step {self.step} and time "
                f"{self.time:g}, got rows up to step {last_step} and time {last_time:g}"
            )

    def _check_probe(self, device: torch.device) -> None:
        if self.probe is None:
            return
        try:
            steps, times, rows, generator = (self.probe[key] for key in _PROBE_KEYS)
            torch.Generator(device).set_state(generator.cpu())
            good = len(steps) == len(times) == len(rows) > 0
            tensors = all(isinstance(x, torch.Tensor) for row in rows for x in row)
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"expected the state of a probe, it is damaged: {error!r}") from error
        if not good or not tensors:
            raise ValueError(
                "expected as many steps, times and rows of tensors of a probe: it is damaged"
            )

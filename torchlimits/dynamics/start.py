"""Where a solution starts: at statistics that are given as a tensor, or at a trajectory's first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchlimits import _checks, _names
from torchlimits.trajectory import Trajectory


def begun(
    u0: Any, times: Any, names: Sequence[str], needed: Sequence[str] | None = None
) -> tuple[Any, Any]:
    """The start and the times of a solution.

    Args:
        u0: a tensor, which is taken as it is; or a trajectory, whose first row is the start. Its
            statistics are found by name; any others are left out, with a warning.
        times: limit times; None stands for those of the trajectory.
        names: the names of the k statistics that the dynamics have.
        needed: those of them that a start has to have; by default all. A trajectory that begins
            at step 0 may lack the others, the state of an optimizer, which then is fresh.

    Raises:
        TypeError: if there are neither times nor a trajectory.
        ValueError: if the trajectory lacks a statistic, or it has no rows.

    Example:
        >>> import torch
        >>> path = Trajectory(torch.tensor([0.5]), torch.tensor([5]), torch.ones(1, 2), ["r2", "m"])
        >>> begun(path, None, ["m", "r2"])
        (tensor([1., 1.], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    if not isinstance(u0, Trajectory):
        if times is None:
            raise TypeError(
                "expected times with a start that is a tensor, got none: give limit times, "
                "measured.times for instance, or the measured trajectory itself as the start"
            )
        return u0, times
    if not len(u0):
        raise ValueError(f"expected a trajectory with rows, got {u0!r}: record a step first")
    given = set(u0.names)
    missing = [name for name in names if name not in given]
    state = set(names) - set(names if needed is None else needed)
    if missing and state.issuperset(missing):
        if int(u0.steps.flatten()[0]) > 0:
            raise ValueError(
                "expected the optimizer's state in a trajectory that begins after step 0, got one "
                f"from step {int(u0.steps.flatten()[0])} without {_names.listed(missing)}: record "
                "dynamics.statistics, or start at step 0"
            )
        names, missing = [name for name in names if name not in state], []
    if missing:
        raise ValueError(
            f"expected a trajectory of the statistics {_names.listed(names)}, got one without "
            f"{_names.listed(missing)}: record problem.statistics, or give a start as a tensor"
        )
    known = {*names, *state}
    unknown = [name for name in u0.names if name not in known]
    if unknown:
        _checks.warn(
            f"these dynamics do not know {_names.listed(unknown)} and leave "
            f"{'it' if len(unknown) == 1 else 'them'} out of the prediction"
        )
    return u0.select(names).initial, u0.times if times is None else times

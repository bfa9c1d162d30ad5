"""`with_performance`: how good the models of a trajectory are, beside their statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from torchlimits.trajectory import Trajectory, spread_rows

#: rows with values, for pictures; each value is an integral over the data
_ROWS = 40


def with_performance(
    path: Trajectory, functions: Mapping[str, Callable[[Tensor], Tensor]]
) -> Trajectory:
    """Return a trajectory with functions of u before u: values in some rows, NaN in the others.

    The functions have no band.

    Args:
        path: the trajectory of the statistics.
        functions: functions of u, by name.

    Example:
        >>> path = Trajectory(torch.zeros(1), torch.zeros(1), torch.tensor([[3.0]]), ["m"])
        >>> with_performance(path, {"risk": lambda u: u.square().sum(-1)})["risk"]
        tensor([9.], dtype=torch.float64)
    """
    if not functions:
        return path
    rows = spread_rows(len(path), _ROWS)
    shape = (*path.values.shape[:-1], len(functions))
    found = torch.full(shape, torch.nan, dtype=torch.float64)
    some = path.values[..., rows, :]
    for i, function in enumerate(functions.values()):
        found[..., rows, i] = function(some)
    return path.extended(list(functions), found)


def performance_text(measured: Trajectory, predicted: Trajectory, names: Sequence[str]) -> str:
    """Return a line for each function: where it begins and ends, measured and predicted.

    Args:
        measured, predicted: as `with_performance` returns them.
        names: the functions' names.

    Example:
        >>> times, steps = torch.tensor([0.0, 1.0]), torch.tensor([0, 9])
        >>> path = Trajectory(times, steps, torch.tensor([[1.0], [0.5]]), ["risk"])
        >>> print(performance_text(path, path, ["risk"]), end="")
        risk: 1.0000 at the start, 0.5000 at the end; predicted 0.5000
    """
    lines: list[str] = []
    for name in names:
        begin, end = (measured[name].reshape(-1, len(measured))[:, i].mean() for i in (0, -1))
        mean = f", means of {measured.runs} runs" if measured.runs > 1 else ""
        lines.append(
            f"{name}: {begin:.4f} at the start, {end:.4f} at the end{mean}; predicted "
            f"{predicted[name][..., -1].mean():.4f}\n"
        )
    return "".join(lines)

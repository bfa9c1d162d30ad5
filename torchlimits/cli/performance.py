"""`with_performance`: how good the models of a trajectory are, beside their statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

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
    return _beside(path, functions, found)


def _beside(
    path: Trajectory, functions: Mapping[str, Callable[[Tensor], Tensor]], found: Tensor
) -> Trajectory:
    """The trajectory with further values, of which nothing else is known."""
    known = {name: getattr(path, name) for name in ("std", "lower", "upper", "samples")}
    columns = {
        name: torch.cat([x.new_full((*x.shape[:-1], len(functions)), torch.nan), x], dim=-1)
        for name, x in known.items()
        if x is not None
    }
    values = torch.cat([found, path.values], dim=-1)
    return replace(path, values=values, names=[*functions, *path.names], **columns)


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

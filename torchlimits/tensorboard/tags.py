"""What a trajectory is called in TensorBoard, and where it goes: tags, layout, columns, folders."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from torchlimits import checks
from torchlimits.tensorboard import summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.trajectory import BAND, Trajectory


def tag(name: str) -> str:
    """The TensorBoard tag of a statistic: its indices become a level of their own.

    Example:
        >>> tag("v[0]"), tag("m[0,1]"), tag("r2"), tag("layer 1/norm")
        ('v/0', 'm/0,1', 'r2', 'layer 1/norm')
    """
    match = re.fullmatch(r"([^\[\]]+)((?:\[[^\[\]]+\])+)", name)
    return name if match is None else "/".join([match[1], *match[2][1:-1].split("][")])


def tags_of(names: Sequence[str], band: bool) -> list[str]:
    """The k tags, with a band followed by those of its k lower and k upper ends."""
    ends = ["", "/lower", "/upper"] if band else [""]
    tags = [tag(name) + end for end in ends for name in names]
    owners: dict[str, str] = {}
    for one, name in zip(tags, list(names) * len(ends), strict=True):
        if one in owners:
            raise ValueError(
                f"expected statistics with different tags, got {owners[one]!r} and {name!r}, "
                f"both {one!r}: rename one of them"
            )
        owners[one] = name
    return tags


def layout_of(names: Sequence[str], band: bool) -> Summary:
    """One chart with a band for each statistic, or one chart for each group of statistics."""
    if band:
        ends = [(name, tag(name)) for name in names]
        charts = [summaries.band_chart(n, t, f"{t}/lower", f"{t}/upper") for n, t in ends]
    else:
        groups: dict[str, list[str]] = {}
        for name in names:
            one = tag(name)
            groups.setdefault(one.rpartition("/")[0] or one, []).append(one)
        charts = [summaries.lines_chart(group, tags) for group, tags in groups.items()]
    return summaries.layout({"effective dynamics": charts})


def run_folders(folder: Path, path: Trajectory, max_runs: int) -> list[Path]:
    """The run directories: the folder itself, or one in it for each run."""
    if path.values.ndim == 2:
        return [folder]
    return [folder / str(run) for run in range(min(path.runs, max_runs))]


def columns_of(path: Trajectory, band: bool) -> Float[np.ndarray, "runs T columns"]:
    """What belongs to `tags_of`."""
    columns = path.values
    if band:
        half = torch.zeros_like(path.values) if path.std is None else BAND * path.std
        columns = torch.cat([columns, columns - half, columns + half], dim=-1)
    return columns.reshape(-1, *columns.shape[-2:]).numpy()


def check_cap(max_points: int | None) -> None:
    """An int >= 4 or None, or ValueError."""
    if max_points is not None:
        checks.positive_int("max_points", max_points)
        if max_points < 4:
            raise ValueError(f"expected max_points to be at least 4 or None, got {max_points}")


def log_folder(logdir: str | Path) -> Path:
    """The folder, made and writable, or an OSError that says what is wrong."""
    if not isinstance(logdir, (str, Path)):
        raise TypeError(f"expected logdir as a str or Path, got {type(logdir).__name__}")
    folder = Path(logdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        message = f"expected a folder to write to as logdir, got {folder}: {reason}; give another"
        raise type(error)(message) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"expected a folder to write to as logdir, got {folder}: no write permission; "
            "give another"
        )
    return folder

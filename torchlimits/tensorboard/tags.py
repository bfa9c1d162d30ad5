"""What a trajectory looks like in TensorBoard, and where it goes: layout, columns, folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from torchlimits import _checks
from torchlimits.contracts.tags import LEVELS, ends_of, parts_of, tag_in
from torchlimits.tensorboard import summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.trajectory import BAND, Trajectory

_LAYOUT = "effective dynamics"

_HOUR = 3600.0


def layout_of(names: Sequence[str], band: bool, style: str = LEVELS) -> Summary:
    """One chart for each family of statistics; with a band, one for each statistic instead.

    Families that have a band and more than one member are a category of their own.
    """
    families: dict[str, list[str]] = {}
    for name in names:
        family, indices = parts_of(name)
        one = family if indices else name.rpartition("/")[0] or name
        families.setdefault(one, []).append(name)
    if not band:
        charts = [
            summaries.lines_chart(family, [tag_in(name, style) for name in members])
            for family, members in families.items()
        ]
        return summaries.layout({_LAYOUT: charts})
    categories: dict[str, list[Any]] = {}
    for family, members in families.items():
        title = _LAYOUT if len(members) == 1 else f"{_LAYOUT}: {family}"
        tags = {name: tag_in(name, style) for name in members}
        charts = [summaries.band_chart(name, one, *ends_of(one)) for name, one in tags.items()]
        categories.setdefault(title, []).extend(charts)
    # TensorBoard shows the band charts of a category in reverse
    return summaries.layout({title: charts[::-1] for title, charts in categories.items()})


def run_folders(folder: Path, path: Trajectory, max_runs: int) -> list[Path]:
    """The run directories: the folder itself, or one in it for each of several runs."""
    if path.runs == 1:
        return [folder]
    return [folder / str(run) for run in range(min(path.runs, max_runs))]


def columns_of(path: Trajectory, band: bool) -> Float[np.ndarray, "runs T columns"]:
    """What belongs to `tags_of`."""
    columns = path.values
    if band:
        half = torch.zeros_like(path.values) if path.std is None else BAND * path.std
        columns = torch.cat([columns, columns - half, columns + half], dim=-1)
    return columns.reshape(-1, *columns.shape[-2:]).numpy()


def wall_times_of(path: Trajectory, now: float) -> Float[np.ndarray, " T"]:
    """Limit time in hours, the unit of TensorBoard's relative axis; ends now, in no future."""
    return now + _HOUR * (path.times - path.times[-1]).double().numpy()


def check_cap(max_points: int | None) -> None:
    """An int >= 4 or None, or ValueError."""
    if max_points is not None:
        _checks.positive_int("max_points", max_points)
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

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
from torchlimits.contracts.tags import LEVELS, check_different, parts_of, tag_in, tags_of
from torchlimits.tensorboard import summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.trajectory import Trajectory

_HOUR = 3600.0
#: seconds between the starts that the files of two runs tell
APART = 1e-3

#: the charts of an experiment have tags of their own, or they would show other experiments' runs as
#: well; TensorBoard opens the first groups of tags, by name, and these come after all letters
_LINES, _BANDS = "· Custom Scalars", "± band"
#: TensorBoard takes what follows the first of these for the name of the run
_ROUND = str.maketrans("()", "（）")


def experiment_of(folder: Path) -> str:
    """What the charts call an experiment: the last two levels of its folder.

    One level is not enough where the experiments of several problems are numbered.

    >>> experiment_of(Path("/runs/xor/0001")), experiment_of(Path("/runs/xor/measured"))
    ('xor/0001', 'runs/xor')
    """
    whole = folder.resolve()
    if whole.name == "measured":
        whole = whole.parent  # a live recording of what `write` will complete
    return "/".join(part for part in whole.parts[-2:] if part != whole.anchor) or whole.anchor


def chart_tags(one: str, experiment: str, band: bool) -> list[str]:
    """Under which tags the charts of an experiment find a statistic's value and its band's ends.

    >>> chart_tags("m/0/1", "runs/xor", band=True)
    ['± band/runs/xor/m/0/1/value', '± band/runs/xor/m/0/1/lower', \
'± band/runs/xor/m/0/1/upper']
    """
    stem = f"{_BANDS if band else _LINES}/{experiment}/{one}".translate(_ROUND)
    return [f"{stem}/{end}" for end in ("value", "lower", "upper")] if band else [stem]


def all_tags(
    names: Sequence[str], experiment: str, *, band: bool = False, style: str = LEVELS
) -> list[str]:
    """The tags of the statistics, then those of the charts, as the columns of `columns_of`.

    Raises:
        ValueError: if two statistics have the same tag.
    """
    tags = tags_of(names, style=style)
    charts = zip(*[chart_tags(one, experiment, band) for one in tags], strict=True)
    tags += [one for column in charts for one in column]
    check_different(tags, names)
    return tags


def layout_of(names: Sequence[str], experiment: str, band: bool, style: str = LEVELS) -> Summary:
    """One chart for each statistic: TensorBoard's colours tell runs apart, and nothing else.

    Families with more than one member are a category of their own.
    """
    families: dict[str, list[str]] = {}
    for name in names:
        family, indices = parts_of(name)
        one = family if indices else name.rpartition("/")[0] or name
        families.setdefault(one, []).append(name)
    categories: dict[str, list[Any]] = {}
    for family, members in families.items():
        title = experiment if len(members) == 1 else f"{experiment}: {family}"
        charts = [
            _chart(name, chart_tags(tag_in(name, style), experiment, band)) for name in members
        ]
        categories.setdefault(title, []).extend(charts)
    if band:
        # TensorBoard shows the band charts of a category in reverse
        categories = {title: charts[::-1] for title, charts in categories.items()}
    return summaries.layout(categories)


def _chart(name: str, tags: Sequence[str]) -> Any:
    return summaries.band_chart(name, *tags) if len(tags) > 1 else summaries.line_chart(name, *tags)


def run_folders(folder: Path, path: Trajectory, max_runs: int) -> list[Path]:
    """The run directories: the folder itself, or one in it for each of several runs."""
    if path.runs == 1:
        return [folder]
    return [folder / str(run) for run in range(min(path.runs, max_runs))]


def place_of(run: int, predicted: bool, runs: int) -> int:
    """Where a run stands in TensorBoard's list, which decides on its colour.

    The colours alternate between warm and cool ones (orange, blue, red, cyan, magenta, teal, grey).
    So the two sides of the first run are the warm ones and those of the second the cool ones, if
    two measured runs stand before two predicted ones. A run without a second one has its sides next
    to each other.

    >>> [place_of(run, predicted, 3) for predicted in (False, True) for run in range(3)]
    [0, 1, 4, 2, 3, 5]
    """
    alone = run % 2 == 0 and run + 1 == runs
    return 4 * (run // 2) + run % 2 + (predicted if alone else 2 * predicted)


def columns_of(path: Trajectory, band: bool) -> Float[np.ndarray, "runs T columns"]:
    """The columns of values that belong to `all_tags`."""
    columns = torch.cat([path.values, path.values], dim=-1)
    if band:
        columns = torch.cat([columns, *(path.bounds or (path.values, path.values))], dim=-1)
    return columns.reshape(-1, *columns.shape[-2:]).numpy()


def wall_times_of(path: Trajectory, now: float) -> Float[np.ndarray, " T"]:
    """Limit time in hours, the unit of TensorBoard's relative axis; it ends now, not later."""
    return now + _HOUR * (path.times - path.times[-1]).double().numpy()


def check_cap(max_points: int | None) -> None:
    """Raise ValueError unless the cap is an int >= 4 or None."""
    if max_points is not None:
        _checks.positive_int("max_points", max_points)
        if max_points < 4:
            raise ValueError(f"expected max_points to be at least 4 or None, got {max_points}")


def path_of(logdir: str | Path) -> Path:
    """The path that is given as a log directory, or TypeError."""
    if not isinstance(logdir, (str, Path)):
        raise TypeError(f"expected logdir as a str or Path, got {type(logdir).__name__}")
    return Path(logdir)


def log_folder(logdir: str | Path) -> Path:
    """The folder, made and writable, or an OSError that says what is wrong."""
    folder = path_of(logdir)
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

"""`write`: measured and predicted trajectories as two runs with the same tags."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchlimits import _checks
from torchlimits.comparison import compare
from torchlimits.tensorboard import events, summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.tensorboard.tags import (
    check_cap,
    columns_of,
    layout_of,
    log_folder,
    run_folders,
    tags_of,
    wall_times_of,
)
from torchlimits.trajectory import Trajectory

_HELP = """\
### How to read the charts

* [Custom Scalars](?smoothing=0#custom_scalars&_smoothingWeight=0) has the bands, and \
[Images](#images) all statistics at once: click on the picture.
* *Smoothing*, 0.6 by default, bends curves: these links, \
[Time Series](?smoothing=0#timeseries) and \
[Scalars](?smoothing=0#scalars&_smoothingWeight=0) set it to 0.
* The horizontal axis *Relative* is limit time t: one hour is one unit.
* [HParams](#hparams) compares the experiments: tick *torchlimits/sup difference* there.
"""

#: how torch.optim computes a step, which changes nothing that it computes
_IMPLEMENTATION = {"capturable", "differentiable", "foreach", "fused"}


def write(
    logdir: str | Path,
    *,
    measured: Trajectory | None = None,
    predicted: Trajectory | None = None,
    hparams: Mapping[str, Any] | None = None,
    max_points: int | None = 1000,
    max_runs: int = 16,
) -> None:
    """Write measured and predicted statistics so that TensorBoard draws them in one chart.

    Two run directories, ``<logdir>/measured`` and ``<logdir>/predicted``, with the same tags (see
    `tag`): one chart a statistic, two colours. Several runs (leading dimensions) go to
    ``<logdir>/measured/0``, ``<logdir>/measured/1`` ... Besides the curves: a custom-scalars
    layout, the hyperparameters, a text panel, and one image with all statistics. If both
    have the same times, ``torchlimits/sup difference`` is the largest difference of each run.

    With a predicted standard deviation, ``±1.96 sd/<tag>/lower`` and ``.../upper`` hold the value
    -+ 1.96 of them, drawn as a band under *Custom Scalars*. The other side repeats its value
    there, as TensorBoard leaves out a run that lacks them: so write both sides in one call.

    The step axis is the optimizer step. The wall time of a row is the limit time t in hours, from
    a common base: TensorBoard's *Relative* axis, which counts hours, is t (*Time Series* writes
    "12 hr").

    Writing again replaces: event files that this package wrote for the sides given, live ones
    included, are removed (their names end in ``.torchlimits``); files of others are not touched.
    The new files are complete before the old ones go. A running TensorBoard follows: the file that
    it may be reading is emptied, and deleted by the next write.

    Args:
        logdir: the experiment's folder; made if it is not there. Live files directly in it, of
            ``tl.track(..., writer=logdir)``, count as measured.
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)``, one run for each measured one or one for all; the same
            statistics, in any order.
        hparams: scalars for the hparams dashboard, over those of ``metadata["parameters"]``.
        max_points: at most so many rows, evenly spread, first and last included (of more than
            1000, TensorBoard shows a random thousand); None: all.
        max_runs: at most so many runs of each side; the text panel says so.

    Raises:
        ValueError: if neither is given, a trajectory is empty, the statistics or the runs of the
            two do not match, two names have the same tag, or a number is out of range.
        TypeError: if an argument is of a wrong type.
        OSError: if ``logdir`` is a file or cannot be written to.

    Example:
        >>> import tempfile
        >>> values = torch.tensor([[0.0, 1.0], [0.5, 1.5]])
        >>> path = Trajectory(torch.tensor([0.0, 0.1]), torch.tensor([0, 100]), values, ["m", "r2"])
        >>> with tempfile.TemporaryDirectory() as logdir:
        ...     write(logdir, measured=path, predicted=path, hparams={"dim": 1000})
        ...     sorted(run.name for run in Path(logdir).iterdir())
        ['measured', 'predicted']
    """
    check_cap(max_points)
    _checks.positive_int("max_runs", max_runs)
    sides = _checked_sides(measured, predicted)
    names = next(iter(sides.values())).names
    band = any(path.std is not None for path in sides.values())
    tags = tags_of(names, band)
    parameters = _parameters(sides, hparams)
    notes = _notes(sides, max_points, max_runs)
    panels = [_about(sides, parameters, notes), _picture(sides)]
    folder, now = log_folder(logdir), time.time()
    old = [file for side in sides for file in _replaceable(folder, side)]
    files = {}
    for side, path in sides.items():
        rows = path if max_points is None else path.thin(max_points)
        files[side] = _write_runs(folder / side, rows, tags, band, max_runs, now)
    for side in sides:
        files[side][0].add(layout_of(names, band), wall_time=now)
    for panel in panels:
        files["predicted" if "predicted" in files else "measured"][0].add(panel, wall_time=now)
    sessions = files["measured" if "measured" in files else "predicted"]
    _add_sessions(sessions, sides, parameters, _trial(folder))
    for file in [file for side in sides for file in files[side]]:
        file.publish()
    events.retire(old)


def _write_runs(
    folder: Path, path: Trajectory, tags: list[str], band: bool, max_runs: int, now: float
) -> list[events.EventFile]:
    files = []
    wall_times = wall_times_of(path, now)
    for place, values in zip(
        run_folders(folder, path, max_runs), columns_of(path, band), strict=False
    ):
        file = events.EventFile(place, partial=True)
        file.add_scalars(tags, path.steps.numpy(), wall_times, values)
        files.append(file)
    return files


def _replaceable(folder: Path, side: str) -> list[Path]:
    files = events.own_files(folder / side, numbered=True)
    return files + events.own_files(folder) if side == "measured" else files


def _picture(sides: Mapping[str, Trajectory]) -> Summary:
    # matplotlib takes most of a second to load: only for those who write
    from torchlimits import figures

    figure = figures.overlay(sides.get("measured"), sides.get("predicted"))
    # in full size, the picture is to fit into a window beside TensorBoard's settings
    return summaries.image("torchlimits/overlay", figures.png(figure, dpi=80))


def _add_sessions(
    files: Sequence[events.EventFile],
    sides: Mapping[str, Trajectory],
    parameters: Mapping[str, bool | int | float | str],
    trial: str,
) -> None:
    """Hyperparameters and how far theory is off, for each run; one row for all runs together."""
    from tensorboard.plugins.hparams import summary_v2

    last = int(next(iter(sides.values())).steps[-1])
    if _comparable(sides):
        difference = (sides["measured"].values - sides["predicted"].values).abs()
        worst = difference.flatten(-2).amax(dim=-1).reshape(-1).tolist()
        for file, value in zip(files, worst, strict=False):
            metric = Summary.Value(tag="torchlimits/sup difference", simple_value=value)
            file.add(Summary(value=[metric]), step=last)
    if parameters:
        # no experiment-wide config: TensorBoard takes the first it finds for a whole logdir and
        # would hide hyperparameters of every other experiment in it
        for file in files:
            file.add(summary_v2.hparams_pb(dict(parameters), trial_id=trial))


def _trial(folder: Path) -> str:
    """What the hparams dashboard calls an experiment; folders of one name stay apart."""
    whole = folder.resolve()
    return f"{whole.name} ({hashlib.sha256(str(whole).encode()).hexdigest()[:6]})"


# --- the text panel ----------------------------------------------------------------------------


def _about(
    sides: Mapping[str, Trajectory], parameters: Mapping[str, Any], notes: Sequence[str]
) -> Summary:
    equations = [
        path.metadata["equation"] for path in sides.values() if "equation" in path.metadata
    ]
    parts = [f"## {' and '.join(sides).capitalize()}", *map(str, equations[-1:])]
    parts.append(_HELP + "".join(f"* {note}\n" for note in notes))
    if _comparable(sides):
        result = compare(sides["measured"], sides["predicted"])
        columns = (result.names, result.sup_difference, result.sup_time)
        rows = [[n, f"{d:.4g}", f"{t:.4g}"] for n, d, t in zip(*columns, strict=True)]
        rows.sort(key=lambda row: -float(row[1]))
        parts.append(_table(["statistic", "sup difference, mean over the runs", "at t"], rows))
    if parameters:
        parts.append(_table(["parameter", "value"], [list(item) for item in parameters.items()]))
    return summaries.text("torchlimits/about", "\n\n".join(parts))


def _table(header: list[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _notes(sides: Mapping[str, Trajectory], max_points: int | None, max_runs: int) -> list[str]:
    notes = []
    for side, path in sides.items():
        if path.runs > max_runs:
            notes.append(f"{side}: the first {max_runs} of {path.runs} runs are shown.")
        if max_points is not None and len(path) > max_points:
            notes.append(f"{side}: {max_points} of {len(path)} recorded rows are shown.")
    return notes


def _parameters(
    sides: Mapping[str, Trajectory], hparams: Mapping[str, Any] | None
) -> dict[str, bool | int | float | str]:
    if hparams is not None and not isinstance(hparams, Mapping):
        raise TypeError(f"expected hparams as a dict of scalars, got {type(hparams).__name__}")
    merged: dict[str, Any] = {}
    for side in ("predicted", "measured"):
        if side in sides:
            merged |= sides[side].metadata.get("parameters") or {}
    told = {key: value for key, value in merged.items() if key not in _IMPLEMENTATION}
    return {str(key): _scalar(value) for key, value in (told | dict(hparams or {})).items()}


def _scalar(value: Any) -> bool | int | float | str:
    """What the hparams dashboard can hold; anything else as text."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    return value if isinstance(value, (bool, int, float, str)) else str(value)


# --- checks ------------------------------------------------------------------------------------


def _checked_sides(
    measured: Trajectory | None, predicted: Trajectory | None
) -> dict[str, Trajectory]:
    """Those given, predicted with its statistics in the order of measured."""
    sides = {"measured": measured, "predicted": predicted}
    sides = {side: path for side, path in sides.items() if path is not None}
    if not sides:
        raise ValueError("expected a measured or a predicted trajectory, got neither: give one")
    for side, path in sides.items():
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected {side} as a Trajectory, got {type(path).__name__}")
        if not len(path) or not path.names or not path.runs:
            raise ValueError(f"expected {side} to hold values, got {path!r}: record a step first")
    if measured is None or predicted is None:
        return sides
    only = sorted(set(measured.names) ^ set(predicted.names))
    if only:
        whose = [f"{n} ({'measured' if n in measured.names else 'predicted'} only)" for n in only]
        raise ValueError(
            f"expected the same statistics measured and predicted, got {', '.join(whose)}: "
            "rename them, or write each to a logdir of its own"
        )
    if predicted.runs != 1 and predicted.runs != measured.runs:
        raise ValueError(
            f"expected a prediction for each of the {measured.runs} measured runs or one for all, "
            f"got {predicted.runs}"
        )
    return {"measured": measured, "predicted": _reordered(predicted, measured.names)}


def _reordered(path: Trajectory, names: Sequence[str]) -> Trajectory:
    columns = [path.index(name) for name in names]
    std = None if path.std is None else path.std[..., columns]
    return replace(path, values=path.values[..., columns], names=names, std=std)


def _comparable(sides: Mapping[str, Trajectory]) -> bool:
    """Whether both are there, at the same times."""
    if len(sides) < 2:
        return False
    ours, theirs = sides["measured"], sides["predicted"]
    shapes = (
        len(theirs.values.shape) <= 2
        or theirs.runs == 1
        or (theirs.values.shape == ours.values.shape)
    )
    same = len(ours) == len(theirs)
    return shapes and same and torch.allclose(ours.times, theirs.times, rtol=1e-9, atol=1e-12)

"""`write`: measured and predicted trajectories as two runs with the same tags."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchlimits import _checks
from torchlimits.comparison.match import Match, matched, unmatched_lines
from torchlimits.comparison.means import means
from torchlimits.tensorboard import events, summaries
from torchlimits.tensorboard.events import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.tensorboard.pictures import pictures
from torchlimits.tensorboard.tags import (
    APART,
    all_tags,
    check_cap,
    columns_of,
    experiment_of,
    layout_of,
    log_folder,
    path_of,
    place_of,
    run_folders,
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
    logdir: str | Path, *, measured: Trajectory | None = None, predicted: Trajectory | None = None,
    hparams: Mapping[str, Any] | None = None, max_points: int | None = 1000, max_runs: int = 3,
) -> None:  # fmt: skip
    """Write measured and predicted statistics so that TensorBoard draws them in one chart.

    The run directories ``<logdir>/measured`` and ``<logdir>/predicted`` have the same tags (see
    `tag`): one chart for each statistic, two colours. Several runs (leading dimensions) go to
    ``<logdir>/measured/0``, ``.../1`` ... Statistics match by name; the text panel lists those that
    only one side has. Besides the curves there are a custom-scalars layout, hyperparameters, a text
    panel, an image with all statistics and one of each panel (of at most as many as
    `figures.overlay` draws, and 8); ``torchlimits/sup difference`` is the largest difference of
    each run, if both sides have the same times.

    *Custom Scalars* has one chart for each statistic of each experiment, in categories that carry
    the last two levels of ``logdir``. A chart finds its runs by their tags, so these curves have
    tags of their own, ``± band/<experiment>/<tag>/value``. With a predicted band
    (`Trajectory.bounds`), ``.../lower`` and ``.../upper`` hold its ends. The other side repeats its
    value there, as TensorBoard leaves out a run that lacks them: so write both sides in one call.
    Without a band, the tag is
    ``· Custom Scalars/<experiment>/<tag>``.

    TensorBoard colours a run by its place in the list of runs: of two runs, both sides of the first
    have a warm colour and both sides of the second a cool one, if nothing stands before them in the
    log directory. It draws about 20 markers on each curve of *Custom Scalars*, which cannot be
    switched off; *Time Series* and *Scalars* have none.

    The step axis is the optimizer step; for both sides, it is that of the measured one if they have
    the same times. The wall time of a row is the limit time t in hours: so TensorBoard's *Relative*
    axis, which counts hours, is t (*Time Series* writes "12 hr").

    Writing again replaces, once the new files are complete, those that this package wrote for the
    sides given, live ones included; their names end in ``.torchlimits``. A running TensorBoard
    follows. Files of other programs are not touched; where there are some, ours are in a
    subdirectory ``torchlimits``.

    Args:
        logdir: the experiment's folder; made if it is not there. Live files directly in it, of
            ``tl.track(..., writer=logdir)``, count as measured.
        measured: values ``(..., T, k)``.
        predicted: values ``(..., T, k)``, one run for each measured one or one for all.
        hparams: scalars for the hparams dashboard, over those of ``metadata["parameters"]``.
        max_points: at most so many rows, evenly spread, first and last included (of more than
            1000, TensorBoard shows a random thousand); None stands for all.
        max_runs: at most so many runs of each side; the text panel says what is left out.

    Raises:
        ValueError: if neither is given, one is empty, no statistic is in both, the numbers of runs
            do not fit, two names have the same tag, or a number is out of range.
        TypeError: if an argument is of a wrong type.
        OSError: if ``logdir`` is a file or cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> values = torch.tensor([[0.0, 1.0], [0.5, 1.5]])
        >>> path = Trajectory(torch.tensor([0.0, 0.1]), torch.tensor([0, 9]), values, ["m", "r2"])
        >>> with tempfile.TemporaryDirectory() as logdir:
        ...     write(logdir, measured=path, predicted=path, hparams={"dim": 1000})
        ...     sorted(run.name for run in Path(logdir).iterdir())
        ['measured', 'predicted']
    """
    check_cap(max_points)
    _checks.positive_int("max_runs", max_runs)
    match = matched(measured, predicted)
    parameters = _parameters(match.sides, hparams)
    panels = [_about(match, parameters, _notes(match, max_points, max_runs)), *pictures(match)]
    _replace(logdir, match, panels, parameters, max_points, max_runs)


def _replace(
    logdir: str | Path, match: Match, panels: Sequence[Summary],
    parameters: Mapping[str, bool | int | float | str], max_points: int | None, max_runs: int,
) -> None:  # fmt: skip
    """Write the files of the sides given, then remove those that they replace."""
    band = any(path.bounds is not None for path in match.sides.values())
    experiment = experiment_of(path_of(logdir))
    # this refuses two statistics with one tag, before there is a folder
    all_tags(match.all_names, experiment, band=band)
    folder, now = log_folder(logdir), time.time()
    old = [file for side in match.sides for file in _replaceable(folder, side)]
    begun, runs = _begun(match, now), max(path.runs for path in match.sides.values())
    files: list[list[events.EventFile]] = []
    for side, path in match.sides.items():
        if match.comparable:
            # time need not tell the step: it stands still where the learning rate is 0
            path = replace(path, steps=match.sides["measured"].steps)
        rows = path if max_points is None else path.thin(max_points)
        places = [
            place_of(run, side == "predicted", min(runs, max_runs))
            for run in range(min(path.runs, max_runs))
        ]
        starts = [begun + APART * place for place in places]
        tags = all_tags(rows.names, experiment, band=band)
        files.append(_write_runs(folder / side, rows, tags, starts, now))
        files[-1][0].add(layout_of(match.all_names, experiment, band), wall_time=now)
    for panel in panels:
        files[-1][0].add(panel, wall_time=now)
    _add_sessions(files[0], match, parameters, _trial(folder))
    for file in itertools.chain(*files):
        file.publish()
    events.retire(old)


def _write_runs(
    folder: Path, path: Trajectory, tags: Sequence[str], starts: Sequence[float], now: float
) -> list[events.EventFile]:
    files: list[events.EventFile] = []
    wall_times, columns = (
        wall_times_of(path, now),
        columns_of(path, len(tags) > 2 * len(path.names)),
    )
    places = run_folders(folder, path, len(starts))
    for place, values, start in zip(places, columns, starts, strict=False):
        room = events.room(place, folder)
        file = events.EventFile(room, root=folder, partial=True, began=start)
        file.add_scalars(tags, path.steps.numpy(), wall_times, values)
        files.append(file)
    return files


def _begun(match: Match, now: float) -> float:
    """A second before all rows: TensorBoard orders runs by the first event, or the earliest."""
    return min(float(wall_times_of(path, now)[0]) for path in match.sides.values()) - 1.0


def _replaceable(folder: Path, side: str) -> list[Path]:
    files = events.own_files(folder / side, numbered=True)
    return files + events.own_files(folder) if side == "measured" else files


def _add_sessions(
    files: Sequence[events.EventFile],
    match: Match,
    parameters: Mapping[str, bool | int | float | str],
    trial: str,
) -> None:
    """Add hyperparameters and how far theory is off, for each run; all runs make one row."""
    from tensorboard.plugins.hparams import summary_v2

    if match.comparable:
        worst = match.difference.abs().amax(dim=(1, 2)).tolist()
        last = int(match.sides["measured"].steps[-1])
        for file, value in zip(files, worst, strict=False):
            metric = Summary.Value(tag="torchlimits/sup difference", simple_value=value)
            file.add(Summary(value=[metric]), step=last)
    if parameters:
        # no experiment-wide config: TensorBoard takes the first it finds for a whole logdir and
        # would hide hyperparameters of every other experiment in it
        for file in files:
            file.add(summary_v2.hparams_pb(dict(parameters), trial_id=trial))


def _trial(folder: Path) -> str:
    """What the hparams dashboard calls an experiment; folders with the same name stay apart."""
    whole = folder.resolve()
    return f"{whole.name} ({hashlib.sha256(str(whole).encode()).hexdigest()[:6]})"


# --- the text panel ----------------------------------------------------------------------------


def _about(match: Match, parameters: Mapping[str, Any], notes: Sequence[str]) -> Summary:
    sides = match.sides
    equations = [
        path.metadata["equation"] for path in sides.values() if "equation" in path.metadata
    ]
    parts = [f"## {' and '.join(sides).capitalize()}", *map(str, equations[-1:])]
    parts.append(_HELP + "".join(f"* {note}\n" for note in notes))
    if match.comparable:
        apart = means(match)
        columns = (match.names, apart.sup_difference, apart.sup_time)
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


def _notes(match: Match, max_points: int | None, max_runs: int) -> list[str]:
    notes = [f"{line}." for line in unmatched_lines(match.unmatched)]
    if len(match.sides) == 2 and not match.comparable:
        notes.append("measured and predicted have different times: no differences are listed.")
    for side, path in match.sides.items():
        if path.runs > max_runs:
            notes.append(
                f"{side}: the first {max_runs} of {path.runs} runs are shown; max_runs= shows more."
            )
        if max_points is not None and len(path) > max_points:
            notes.append(
                f"{side}: {max_points} of {len(path)} recorded rows are shown, evenly spread, the "
                "first and the last included; max_points= shows more."
            )
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

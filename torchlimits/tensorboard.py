"""Measured statistics and their prediction side by side in TensorBoard, afterwards and live."""

from __future__ import annotations

import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from torchlimits import checks, events
from torchlimits.comparison import compare
from torchlimits.events import Event, Summary  # pyright: ignore[reportAttributeAccessIssue]
from torchlimits.trajectory import Trajectory

#: half the width of the band, in predicted standard deviations: 95 % of a normal distribution
_BAND = 1.96
#: a live run of unknown length stays under the cap up to this many steps
_LONGEST = 10**9

_HELP = """\
### How to read the charts

* Set *Smoothing* to 0: TensorBoard's default of 0.6 bends the curves.
* On the horizontal axis *Relative*, one second is one unit of limit time t.
* Bands, and related statistics in one chart, are under *Custom Scalars*.
"""


# --- names -------------------------------------------------------------------------------------


def tag(name: str) -> str:
    """The TensorBoard tag of a statistic: its indices become a level of their own.

    Example:
        >>> tag("v[0]"), tag("m[0,1]"), tag("r2"), tag("layer 1/norm")
        ('v/0', 'm/0,1', 'r2', 'layer 1/norm')
    """
    match = re.fullmatch(r"([^\[\]]+)((?:\[[^\[\]]+\])+)", name)
    return name if match is None else "/".join([match[1], *match[2][1:-1].split("][")])


def _tags(names: Sequence[str], band: bool) -> list[str]:
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


def _layout(names: Sequence[str], band: bool) -> Summary:
    """One chart with a band for each statistic, or one chart for each group of statistics."""
    if band:
        ends = [(name, tag(name)) for name in names]
        charts = [events.band_chart(n, t, f"{t}/lower", f"{t}/upper") for n, t in ends]
    else:
        groups: dict[str, list[str]] = {}
        for name in names:
            one = tag(name)
            groups.setdefault(one.rpartition("/")[0] or one, []).append(one)
        charts = [events.lines_chart(group, tags) for group, tags in groups.items()]
    return events.layout({"effective dynamics": charts})


# --- the finished run --------------------------------------------------------------------------


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
    `tag`): one chart a statistic, two colours. Independent runs (leading dimensions) go to
    ``<logdir>/measured/0``, ``<logdir>/measured/1`` ... Besides the curves: a custom-scalars
    layout, the hyperparameters, a text panel, and one image with all statistics. If both
    have the same times, ``torchlimits/sup difference`` is the largest difference of each run.

    With a predicted standard deviation, ``<tag>/lower`` and ``<tag>/upper`` hold the value -+ 1.96
    of them, drawn as a band under *Custom Scalars*. The other side repeats its value there, as
    TensorBoard leaves out a run that lacks them: so write both sides in one call.

    The step axis is the optimizer step. The wall time of a row is the limit time t in seconds,
    from a common base: on TensorBoard's *Relative* axis "12 sec" is t = 12.

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
    _check_cap(max_points)
    checks.positive_int("max_runs", max_runs)
    sides = _checked_sides(measured, predicted)
    names = next(iter(sides.values())).names
    band = any(path.std is not None for path in sides.values())
    tags = _tags(names, band)
    parameters = _parameters(sides, hparams)
    notes = _notes(sides, max_points, max_runs)
    panels = [_about(sides, parameters, notes), _picture(sides)]
    folder, now = _folder(logdir), time.time()
    old = [file for side in sides for file in _replaceable(folder, side)]
    files = {}
    for side, path in sides.items():
        rows = path if max_points is None else path.thin(max_points)
        files[side] = _write_runs(folder / side, rows, tags, band, max_runs, now)
    for side in sides:
        files[side][0].add(_layout(names, band), wall_time=now)
    for panel in panels:
        files["predicted" if "predicted" in files else "measured"][0].add(panel, wall_time=now)
    _add_sessions(files["measured" if "measured" in files else "predicted"], sides, parameters)
    for file in [file for side in sides for file in files[side]]:
        file.publish()
    events.retire(old)


def _write_runs(
    folder: Path, path: Trajectory, tags: list[str], band: bool, max_runs: int, now: float
) -> list[events.EventFile]:
    files = []
    # the last row is written now, so that no time stamp lies in the future
    wall_times = now + (path.times - path.times[-1]).numpy()
    for place, values in zip(_places(folder, path, max_runs), _columns(path, band), strict=False):
        file = events.EventFile(place, partial=True)
        file.add_scalars(tags, path.steps.numpy(), wall_times, values)
        files.append(file)
    return files


def _places(folder: Path, path: Trajectory, max_runs: int) -> list[Path]:
    """The run directories: the folder itself, or one in it for each run."""
    if path.values.ndim == 2:
        return [folder]
    return [folder / str(run) for run in range(min(path.runs, max_runs))]


def _columns(path: Trajectory, band: bool) -> Float[np.ndarray, "runs T columns"]:
    """What belongs to `_tags`."""
    columns = path.values
    if band:
        half = torch.zeros_like(path.values) if path.std is None else _BAND * path.std
        columns = torch.cat([columns, columns - half, columns + half], dim=-1)
    return columns.reshape(-1, *columns.shape[-2:]).numpy()


def _replaceable(folder: Path, side: str) -> list[Path]:
    files = events.own_files(folder / side, numbered=True)
    return files + events.own_files(folder) if side == "measured" else files


def _picture(sides: Mapping[str, Trajectory]) -> Summary:
    # matplotlib takes most of a second to load: only for those who write
    from torchlimits import figures

    figure = figures.overlay(sides.get("measured"), sides.get("predicted"))
    return events.image("torchlimits/overlay", figures.png(figure))


def _add_sessions(
    files: Sequence[events.EventFile],
    sides: Mapping[str, Trajectory],
    parameters: Mapping[str, bool | int | float | str],
) -> None:
    """Hyperparameters and how far theory is off, for each run; runs of equal ones are grouped."""
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
            file.add(summary_v2.hparams_pb(dict(parameters)))


# --- the text panel ----------------------------------------------------------------------------


def _about(
    sides: Mapping[str, Trajectory], parameters: Mapping[str, Any], notes: Sequence[str]
) -> Summary:
    equations = [
        path.metadata["equation"] for path in sides.values() if "equation" in path.metadata
    ]
    parts = ["## Effective dynamics", *map(str, equations[-1:])]
    if parameters:
        parts.append(_table(["parameter", "value"], [list(item) for item in parameters.items()]))
    if _comparable(sides):
        result = compare(sides["measured"], sides["predicted"])
        columns = (result.names, result.sup_difference, result.sup_time)
        rows = [[n, f"{d:.4g}", f"{t:.4g}"] for n, d, t in zip(*columns, strict=True)]
        rows.sort(key=lambda row: -float(row[1]))
        parts.append(_table(["statistic", "sup difference, mean over the runs", "at t"], rows))
    parts += [_HELP + "".join(f"* {note}\n" for note in notes)]
    return events.text("torchlimits/about", "\n\n".join(parts))


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
    return {str(key): _scalar(value) for key, value in (merged | dict(hparams or {})).items()}


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


def _check_cap(max_points: int | None) -> None:
    if max_points is not None:
        checks.positive_int("max_points", max_points)
        if max_points < 4:
            raise ValueError(f"expected max_points to be at least 4 or None, got {max_points}")


def _folder(logdir: str | Path) -> Path:
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


# --- live --------------------------------------------------------------------------------------


class _Live(ABC):
    """Takes the pieces of a growing trajectory and passes on few enough of their rows."""

    def __init__(self, max_points: int | None, total_steps: int | None) -> None:
        _check_cap(max_points)
        if total_steps is not None:
            checks.positive_int("total_steps", total_steps)
        self._max_points, self._total_steps = max_points, total_steps
        self._bucket, self._newest = -1, -1
        self._tail: tuple[Trajectory, np.ndarray] | None = None
        self._clock = time.time()
        self._like: Trajectory | None = None
        self._closed = False

    def add(self, chunk: Trajectory) -> None:
        """Take the next rows: values ``(..., T, k)``; steps that were there before are skipped.

        Raises:
            ValueError: if the statistics or runs are not those of the first chunk, or after
                `close`.
        """
        self._check(chunk)
        if not len(chunk):
            return
        steps = chunk.steps.numpy()
        buckets = self._buckets(steps)
        before = np.maximum.accumulate(np.concatenate([[self._bucket], buckets]))[:-1]
        keep = (buckets > before) & (steps > self._newest)
        # nobody noted when each row was made: evenly, since the last piece
        wall_times = np.linspace(self._clock, time.time(), len(steps) + 1)[1:]
        if keep.any():
            self._write(chunk.slice(torch.from_numpy(keep)), wall_times[keep])
        if steps[-1] > self._newest:
            last = (chunk.slice(slice(len(steps) - 1, None)), wall_times[-1:])
            self._tail = None if keep[-1] else last
        self._bucket = max(self._bucket, int(buckets[-1]))
        self._newest = max(self._newest, int(steps[-1]))
        self._clock = float(wall_times[-1])

    @abstractmethod
    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""

    def close(self) -> None:
        """Write the last row, whatever the spacing, and flush."""
        if self._closed:
            return
        if self._tail is not None:
            self._write(*self._tail)
            self._tail = None
        self.flush()
        self._closed = True

    @abstractmethod
    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None: ...

    def _buckets(self, steps: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
        """Increasing with the step; the first row of each bucket is shown."""
        if self._max_points is None:
            return steps
        if self._total_steps is not None:
            # one point is kept back for the last row
            return steps * (self._max_points - 2) // self._total_steps
        density = _points_per_doubling(self._max_points - 2)
        knee = density / math.log(2)
        late = knee + density * np.log2(np.maximum(steps, knee) / knee)
        return np.where(steps < knee, steps, late).astype(np.int64)

    def _check(self, chunk: Trajectory) -> None:
        if self._closed:
            raise ValueError("expected an open writer, got one that was closed: make another")
        first = self._like = self._like or chunk
        if (
            list(chunk.names) != list(first.names)
            or chunk.values.ndim != first.values.ndim
            or (chunk.values.shape[:-2] != first.values.shape[:-2])
        ):
            raise ValueError(
                f"expected pieces of one trajectory, {first!r} of {list(first.names)}, got "
                f"{chunk!r} of {list(chunk.names)}: give each trajectory a writer of its own"
            )


def _points_per_doubling(points: int) -> float:
    """d such that every step up to s = d / log 2, then d points a doubling, make ``points``."""
    density = points / 30
    for _ in range(50):
        density = points / (1 / math.log(2) + math.log2(_LONGEST * math.log(2) / density))
    return density


class Writer(_Live):
    """Writes statistics while they are being recorded; give it to `tl.track` as ``writer``.

    At most ``max_points`` rows, step 0 and (at `close`) the last one included: evenly spread when
    the number of steps is known; otherwise every step at first, then about 40 a doubling of the
    step (for 1000 points), which lasts for 10^9 steps. Steps past ``total_steps`` keep the spacing
    and go over the cap.

    Event files that this package wrote into the folder before are replaced at the first `add`. One
    folder takes one writer at a time. After the run, `write` replaces the live file by an evenly
    spread one. Wall times are real ones.

    Args:
        logdir: the run directory itself, ``<logdir>/measured`` for a later
            ``write(logdir, ...)``; independent runs go to its subdirectories 0, 1, 2 ...
        max_points: how many rows at most; None: all.
        total_steps: how many optimizer steps there will be, if that is known.
        max_runs: how many runs at most.

    Raises:
        ValueError: if a number is out of range.
        OSError: if ``logdir`` is a file or cannot be written to.

    Example:
        >>> import tempfile
        >>> piece = Trajectory(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 1), ["m"])
        >>> with tempfile.TemporaryDirectory() as logdir, Writer(logdir) as writer:
        ...     writer.add(piece)
        ...     writer.flush()
        ...     len(list(Path(logdir).iterdir()))
        1
    """

    def __init__(
        self,
        logdir: str | Path,
        *,
        max_points: int | None = 1000,
        total_steps: int | None = None,
        max_runs: int = 16,
    ) -> None:
        super().__init__(max_points, total_steps)
        self._max_runs = checks.positive_int("max_runs", max_runs)
        self._folder = _folder(logdir)
        self._files: list[events.EventFile] = []

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        tags = _tags(rows.names, band=False)
        if not self._files:
            self._start(rows)
        for file, values in zip(self._files, _columns(rows, band=False), strict=False):
            file.add_scalars(tags, rows.steps.numpy(), wall_times, values)

    def _start(self, rows: Trajectory) -> None:
        """Files with a layout; they are there before those that they replace go."""
        old = events.own_files(self._folder, numbered=True)
        places = _places(self._folder, rows, self._max_runs)
        self._files = [events.EventFile(place) for place in places]
        self._files[0].add(_layout(rows.names, band=False))
        self.flush()
        events.retire(old)

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        for file in self._files:
            file.flush()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Borrowed(_Live):
    """Writes into a SummaryWriter of the user's, which stays open; run r has tags ``.../run r``."""

    def __init__(self, writer: Any, max_points: int | None = 1000, max_runs: int = 16) -> None:
        super().__init__(max_points, None)
        self._writer, self._max_runs = writer, max_runs

    def _write(self, rows: Trajectory, wall_times: Float[np.ndarray, " T"]) -> None:
        tags = _tags(rows.names, band=False)
        if rows.values.ndim > 2:
            runs = range(min(rows.runs, self._max_runs))
            tags = [f"{one}/run {run}" for run in runs for one in tags]
        # (T, runs * k): everything of one step goes into one event
        columns = np.moveaxis(_columns(rows, band=False)[: self._max_runs], 0, 1)
        with np.errstate(over="ignore"):
            values = columns.reshape(len(rows), -1).astype(np.float32).tolist()
        file = self._writer._get_file_writer()
        for step, wall_time, row in zip(rows.steps.tolist(), wall_times, values, strict=True):
            pairs = zip(tags, row, strict=True)
            summary = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in pairs])
            file.add_event(Event(summary=summary), step, float(wall_time))

    def flush(self) -> None:
        """Make what was added visible to a running TensorBoard."""
        self._writer.flush()


def live(writer: Any) -> Any:
    """What shows a growing trajectory: an object with ``add(chunk)``, ``flush()``, ``close()``.

    Args:
        writer: a log directory (-> `Writer`), a `Writer` or another object with ``add`` and
            ``flush`` (-> itself), or a ``torch.utils.tensorboard.SummaryWriter``, which gets one
            event a step and is flushed, never closed.

    Raises:
        TypeError: if it is none of these.
        OSError: if the log directory cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as logdir:
        ...     type(live(logdir)).__name__
        'Writer'
    """
    if isinstance(writer, (str, Path)):
        return Writer(writer)
    if hasattr(writer, "add") and hasattr(writer, "flush"):
        return writer
    # not isinstance: torch.utils.tensorboard takes more than a second to import
    if hasattr(writer, "_get_file_writer"):
        return _Borrowed(writer)
    raise TypeError(
        "expected writer as a log directory, a torchlimits.tensorboard.Writer or a "
        f"torch.utils.tensorboard.SummaryWriter, got {type(writer).__name__}"
    )

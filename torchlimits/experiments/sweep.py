"""`sweep`: a function over a grid, by one process or many, which can be stopped and goes on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, track
from torch import Tensor

from torchlimits import _checks
from torchlimits.experiments.grid import Grid, Value, named, seed_of
from torchlimits.experiments.identity import identity
from torchlimits.experiments.plain import plain
from torchlimits.experiments.point_folder import PointFolder
from torchlimits.experiments.ranks import rank_and_size
from torchlimits.experiments.shared_points import SharedPoints
from torchlimits.statistics.seeded import seeded

#: how many points that failed a message names
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Sweep:
    """What `sweep` found; `Sweep.load` opens what a folder has so far.

    Attributes:
        axes: the names and values of the grid's axes.
        results: the result of each point, None where there is none; the last axis changes fastest.
        failures: by the number of a point that failed, the error that ended it.

    Example:
        >>> import torchlimits as tl
        >>> found = tl.sweep(lambda a, b: {"sum": a + b}, {"a": [1, 2], "b": [10, 20, 30]})
        >>> found, found.shape
        (Sweep(a x b: 2 x 3 points), (2, 3))
        >>> found.points[1], found.results[1]
        ({'a': 1, 'b': 20}, {'sum': 21})
        >>> found["sum"]
        tensor([[11, 21, 31],
                [12, 22, 32]])
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     whole = tl.sweep(lambda a: a / 2, {"a": [1, 2]}, folder=folder)
        ...     tl.Sweep.load(folder).values
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    axes: dict[str, list[Value]]
    results: list[Any]
    failures: dict[int, str] = field(default_factory=dict[int, str])

    @classmethod
    def load(cls, folder: str | Path) -> Sweep:
        """Return what is in a folder, while a sweep goes on as well; points may be missing.

        Args:
            folder: that of a sweep.

        Raises:
            ValueError: if it is not that of a sweep.
        """
        kept = PointFolder.read(Path(folder))
        grid = Grid(dict(kept.about["grid"]))
        numbers = range(len(grid.points()))
        errors = {n: said for n in numbers if (said := kept.said(n))}
        return cls(grid.axes, [_so_far(kept, n) for n in numbers], errors)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has."""
        return Grid(self.axes).shape

    @property
    def points(self) -> list[dict[str, Value]]:
        """The parameters of each point, in the order of the results."""
        return Grid(self.axes).points()

    @property
    def values(self) -> Tensor:
        """Results that are numbers or tensors of one shape, as one tensor over the grid.

        It has the shape of the grid, and then that of a result. Points without a result are NaN.

        Raises:
            ValueError: if results are neither, or their shapes differ, or there are none.
        """
        return self._stacked("results", self.results)

    def __getitem__(self, name: str) -> Tensor:
        """Return one entry of results that are dicts, as `values` does.

        Raises:
            ValueError: as `values`; if a result is not a dict, or has no such entry.
        """
        for point, result in zip(self.points, self.results, strict=True):
            if result is not None and (not isinstance(result, dict) or name not in result):
                has = list(result) if isinstance(result, dict) else type(result).__name__
                raise ValueError(
                    f"expected results with {name!r} at every point, got {has} at {named(point)}"
                )
        entries = [None if result is None else result[name] for result in self.results]
        return self._stacked(name, entries)

    def _stacked(self, name: str, entries: list[Any]) -> Tensor:
        found: list[tuple[dict[str, Value], Tensor]] = []
        for point, entry in zip(self.points, entries, strict=True):
            if entry is None:
                continue
            try:
                found.append((point, _tensor(entry)))
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"expected {name} as numbers or tensors, got {entry!r} at {named(point)}: take "
                    "them from .results"
                ) from error
        if not found:
            raise ValueError(f"expected {name} at one point at least, got none")
        (first, like), *_ = found
        for point, tensor in found:
            if tensor.shape != like.shape:
                raise ValueError(
                    f"expected {name} of one shape, got {tuple(like.shape)} at {named(first)} and "
                    f"{tuple(tensor.shape)} at {named(point)}: take them from .results"
                )
        tensors = iter([tensor for _, tensor in found])
        if len(found) < len(entries):
            nan = torch.full(like.shape, torch.nan, dtype=torch.float64, device="cpu")
            whole = [nan if e is None else next(tensors).double() for e in entries]
        else:
            whole = list(tensors)
        return torch.stack(whole).reshape(*self.shape, *like.shape)

    def __repr__(self) -> str:
        grid = f"{' x '.join(self.axes)}: {' x '.join(map(str, self.shape))} points"
        missing = sum(result is None for result in self.results) - len(self.failures)
        notes = [f"{len(self.failures)} failed"] if self.failures else []
        notes += [f"{missing} without a result"] if missing > 0 else []
        return f"Sweep({', '.join([grid, *notes])})"


class PointsFailed(RuntimeError):
    """The function raised an error at some points; ``sweep`` has the results of the others."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        points, failed = sweep.points, sweep.failures
        told = [f"{said} (at {named(points[n])})" for n, said in failed.items()]
        more = f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        super().__init__(
            f"{len(told)} of {len(points)} points failed: {'; '.join(told[:_NAMED])}{more}. What "
            f"they raised is in {folder}/point-*.error.txt, where the results of the others are; "
            "the same call tries these again"
        )


def sweep(
    function: Callable[..., Any], grid: Mapping[str, Iterable[Any]], *,
    folder: str | Path | None = None, seed: int = 0, progress: bool = False,
) -> Sweep:  # fmt: skip
    """Compute a function at every point of a grid, shared by all processes that have its folder.

    Start the same program as often as you like, by ``torchrun`` on one machine or several, or by
    hand: processes that see the folder take the points one by one, write a file for each, and all
    return the whole. They do not talk to each other, and need no process group. One that is killed
    loses the point that it was at, which another takes over; the same call goes on later with what
    is missing, by any number of processes. Nothing depends on who computes a point: random numbers
    (of torch on the CPU, numpy and Python) start at a seed of the point's own.

    Args:
        function: called with the parameters of a point by name. It returns numbers, texts, tensors,
            lists or dicts of these, or dataclasses, which become dicts.
        grid: the names and the values of the parameters: numbers or texts. Every combination is a
            point; of the points, the last parameter changes fastest.
        folder: where the results are kept, which all processes have to see; None: in memory alone,
            and each process computes all.
        seed: an int >= 0, on which the seeds of the points depend.
        progress: show a progress bar.

    Raises:
        TypeError: if ``function`` does not take the parameters, or ``grid`` is not a dict.
        ValueError: if the grid or an axis is empty, values repeat or are NaN, or the folder is that
            of another sweep, with another grid, seed or function. A function is known by its code,
            its defaults, what it encloses, and the arguments of a partial; global variables that it
            reads are not looked at.
        OSError: if the folder cannot be written to.
        RuntimeError: if the function raised an error at some points, or returned what no file can
            hold, after all others have been computed; its ``sweep`` has those. Without a folder the
            error itself is raised, at once.

    Example:
        >>> import tempfile, torchlimits as tl
        >>> def threshold(order, step_size):
        ...     problem = tl.SpikedTensor(dim=100, order=order, snr=1.0)
        ...     return problem.dynamics(step_size=step_size).critical_snr
        >>> grid = {"order": [2, 3], "step_size": [0.5, 1.0]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tl.sweep(threshold, grid, folder=folder).values.shape
        torch.Size([2, 2])
    """
    found = Grid.of(grid)
    points = found.points()
    _check_function(function, points[0])
    _checks.path("folder", folder)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected seed as an int >= 0, got {seed!r}")
    compute = partial(_computed, function, seed)
    if folder is None:
        steps = track(points, description="points", disable=not progress)
        return Sweep(found.axes, [compute(point) for point in steps])
    kept = PointFolder.of(Path(folder), found, identity(function), seed)
    shared = SharedPoints(kept, points, compute)
    with _bar(len(points), progress and rank_and_size()[0] == 0) as tell:
        shared.finish(tell)
    results = [shared.results.get(number) for number in range(len(points))]
    whole = Sweep(found.axes, results, dict(sorted(shared.failures.items())))
    if whole.failures:
        raise PointsFailed(whole, kept.path)
    return whole


def _tensor(entry: Any) -> Tensor:
    """A tensor as it is, and numbers in double precision."""
    if isinstance(entry, Tensor):
        return entry
    dtype = torch.as_tensor(entry, device="cpu").dtype
    if dtype.is_floating_point or dtype.is_complex:
        dtype = torch.promote_types(dtype, torch.float64)
    return torch.as_tensor(entry, dtype=dtype, device="cpu")


def _so_far(folder: PointFolder, number: int) -> Any:
    """The result of a point, or None."""
    try:
        return folder.result(number)
    except FileNotFoundError:
        return None
    except ValueError as error:
        _checks.warn(f"{folder.file(number)} is not used: {error}")
        return None


def _computed(function: Callable[..., Any], seed: int, point: Mapping[str, Value]) -> Any:
    with seeded(seed_of(point, seed)):
        return plain(function(**point))


@contextmanager
def _bar(count: int, progress: bool) -> Generator[Callable[[int], object]]:
    with Progress(disable=not progress) as bar:
        task = bar.add_task("points", total=count)
        yield lambda done: bar.update(task, completed=done)


def _check_function(function: object, point: Mapping[str, Value]) -> None:
    if not callable(function):
        raise TypeError(
            f"expected function as a function of {', '.join(point)}, got {type(function).__name__}"
        )
    try:
        parameters = signature(function)
    except ValueError:  # some of those written in C have none
        return
    try:
        parameters.bind(**point)
    except TypeError as error:
        raise TypeError(
            f"expected function to take the parameters {', '.join(point)} by name, got one of "
            f"{parameters}: {error}"
        ) from error

"""`Trajectory`: the values of named summary statistics along time, measured or predicted."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks, _curves, _frames, _names
from torchlimits._overview import overview
from torchlimits._values import BAND as BAND
from torchlimits._values import Values
from torchlimits.files import npz, row_reader
from torchlimits.files.folder import prepared
from torchlimits.files.place import unfinished
from torchlimits.files.rows import MAGIC, Header

if TYPE_CHECKING:
    import pandas
    import xarray
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Trajectory(Values):
    r"""Summary statistics along a run: :math:`u(t_0), \dots, u(t_{T-1})`, in float64 on the CPU.

    Measured and predicted trajectories are objects of the same kind.

    Args:
        times: limit time t = (sum of the learning rates so far), shape ``(T,)``. They do not fall,
            and repeat where the learning rate is 0.
        steps: optimizer steps, shape ``(T,)``. They do not fall; recorded ones increase, and those
            of a prediction repeat where its times are closer than a step.
        values: the statistics, shape ``(..., T, k)``; leading dimensions are independent runs. If
            they have a graph, as a solution from tensors that require gradients has, they keep it:
            ``loss(path.final).backward()`` works. Files, tables, plots and copies have the values.
        names: the k statistics' names.
        std: predicted standard deviation, of the shape of ``values``, or None.
        lower, upper: predicted bounds, quantiles of the runs' law, of the shape of ``values``, or
            None; see `ReducedChain.law`.
        samples: values of predicted runs, one more leading dimension than ``values``, or None.
        error: standard error of the values where they are estimates themselves, as those of
            `EmpiricalDynamics` are, of the shape of ``values``, or None.
        metadata: JSON-able facts about where the numbers come from (``"equation"``, ``"dim"`` ...).

    Raises:
        ValueError: if the shapes do not fit, names repeat, or times or steps fall.

    Example:
        >>> import torch
        >>> u = torch.tensor([[0.0, 1.0], [0.5, 1.5]], dtype=torch.float64)
        >>> path = Trajectory(torch.tensor([0.0, 0.1]), torch.tensor([0, 100]), u, ["m", "r2"])
        >>> path["m"]
        tensor([0.0000, 0.5000], dtype=torch.float64)
        >>> path.initial, "r3" in path
        (tensor([0., 1.], dtype=torch.float64), False)
        >>> path.run(0) is path, path.transformed(u[1], torch.ones(2)).final.tolist()
        (True, [0.0, 0.0])
        >>> path.bounds is None, replace(path, std=u).bounds[0][0]
        (True, tensor([ 0.0000, -0.9600], dtype=torch.float64))
        >>> path.index("r2"), path.slice(path.steps > 0).values.tolist(), len(path.thin(2))
        (1, [[0.5, 1.5]], 2)
        >>> path.detach() is path  # no graph
        True
        >>> path.extended(["risk"], u[:, :1] ** 2).names
        ['risk', 'm', 'r2']
        >>> path.select(["r2", "m"]).final.tolist(), path.plot("m").get_ylabel()
        ([1.5, 0.5], 'm')
        >>> path.to_pandas().columns.tolist(), path.to_pandas(wide=False).shape
        (['step', 'time', 'm', 'r2'], (4, 5))
        >>> path.to_xarray().value.sel(statistic="r2").values.tolist()
        [1.0, 1.5]
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path.save(Path(folder) / "u.npz")
        ...     Trajectory.load(Path(folder) / "u.npz")["r2"].tolist()
        [1.0, 1.5]
    """

    def __repr__(self) -> str:
        span = f"t = {self.times[0]:g} ... {self.times[-1]:g}" if len(self) else "no times"
        return (
            f"Trajectory({len(self.names)} statistics, {len(self)} times, {span}, runs={self.runs})"
        )

    def _repr_html_(self) -> str:
        values = self._numbers.reshape(self.runs, *self.values.shape[-2:])
        return overview(repr(self), self.names, values).html()

    def select(self, names: str | Sequence[str]) -> Trajectory:
        """The trajectory of some of its statistics, in the order of ``names``.

        Args:
            names: names of statistics and families, or one such name; a family stands for all of
                its statistics.

        Raises:
            ValueError: for an unknown name; the message lists the known ones. Also if a statistic
                is asked for twice.
        """
        asked = [names] if isinstance(names, str) else list(names)
        if asked == list(self.names):
            return self
        columns = {name: column for column, name in enumerate(self.names)}
        found = [one for name in asked for one in _names.chosen(name, columns)]
        rows = [columns[name] for name in found]
        return replace(self, names=found, **self._of_all(lambda x: x[..., rows]))

    def extended(self, names: Sequence[str], values: Float[Tensor, "*runs T more"]) -> Trajectory:
        """The trajectory with further statistics in front, of which no band is known: NaN there.

        Args:
            names: of the further statistics.
            values: theirs, shape ``(..., T, len(names))``.

        Raises:
            ValueError: if the shape does not fit, or a name is there already.
        """

        names, values = _checks.names(names), _checks.float64("values", values, graph=True)
        shape = (*self.values.shape[:-1], len(names))
        if values.shape != shape:
            raise ValueError(
                f"expected values of shape {tuple(shape)}, a column for each name at each time, "
                f"got {tuple(values.shape)}"
            )

        def beside(entries: Tensor) -> Tensor:
            unknown = entries.new_full((*entries.shape[:-1], len(names)), torch.nan)
            return torch.cat([unknown, entries], dim=-1)

        known = self._of_all(beside)
        known["values"] = torch.cat([values, self.values], dim=-1)
        return replace(self, names=[*names, *self.names], **known)

    def run(self, number: int) -> Trajectory:
        """The trajectory of one of its runs.

        Args:
            number: of the run, counted from 0 over all leading dimensions.

        Raises:
            ValueError: if there is no such run.
        """
        if not 0 <= number < self.runs:
            raise ValueError(f"expected a run from 0 to {self.runs - 1}, got {number}")
        before = self.values.ndim - 2

        def one(entries: Tensor) -> Tensor:
            ahead = entries.ndim - self.values.ndim
            return entries.flatten(ahead, ahead + before - 1).select(ahead, number)

        return self if not before else replace(self, **self._of_all(one))

    def transformed(self, shift: Float[Tensor, " k"], scale: Float[Tensor, " k"]) -> Trajectory:
        """The trajectory of (u - shift) * scale, with its band.

        Args:
            shift, scale: a number for each statistic; scales are > 0.
        """
        moved = {
            name: entries * scale if name in ("std", "error") else (entries - shift) * scale
            for name, entries in self._of_all(lambda x: x).items()
        }
        return replace(self, **moved)

    def slice(self, rows: slice | Tensor) -> Trajectory:
        """The trajectory at some of its times.

        Args:
            rows: a slice, or a tensor of row numbers or booleans.
        """
        times, steps = self.times[rows], self.steps[rows]
        return replace(self, times=times, steps=steps, **self._of_all(lambda x: x[..., rows, :]))

    def thin(self, points: int) -> Trajectory:
        """At most ``points`` times, evenly spread over the rows, first and last included.

        Raises:
            ValueError: if ``points`` < 2.
        """
        if points < 2:
            raise ValueError(f"expected at least 2 points to keep first and last, got {points}")
        if len(self) <= points:
            return self
        return self.slice(spread_rows(len(self), points))

    def detach(self) -> Trajectory:
        """The same trajectory without the graph of its values, as `torch.Tensor.detach`."""
        return replace(self, values=self.values.detach()) if self.values.requires_grad else self

    def to_pandas(self, *, wide: bool = True) -> pandas.DataFrame:
        """A table of the statistics; needs pandas.

        Args:
            wide: one row for each time (and run), one column for each statistic, and
                ``<name>/std``, ``<name>/lower``, ``<name>/upper`` and ``<name>/error`` where there
                are any; otherwise one row for each value, with columns ``statistic``, ``value``,
                ``std`` and, where there are any, ``lower``, ``upper`` and ``error``.

        Returns:
            Columns ``step``, ``time`` (limit time), ``run`` where there are independent runs, then
            the statistics.

        Raises:
            ImportError: without pandas.
        """
        return _frames.to_pandas(self._columns(), wide)

    def to_xarray(self) -> xarray.Dataset:
        """Arrays ``value`` (``std``, ``lower``, ``upper``) with labelled axes; needs xarray.

        Returns:
            Dimensions ``run`` (one for each leading dimension: ``run``, ``run_1`` ...), ``time``
            (limit time; ``step`` is a coordinate along it) and ``statistic``; metadata as attrs.

        Raises:
            ImportError: without xarray.
        """
        return _frames.to_xarray(self._columns())

    @overload
    def plot(
        self, name: str, axes: Axes | None = None, *, x: Literal["time", "step"] = "time",
        **style: Any,
    ) -> Axes: ...  # fmt: skip
    @overload
    def plot(
        self, name: None = None, axes: None = None, *, x: Literal["time", "step"] = "time",
        **style: Any,
    ) -> list[Axes]: ...  # fmt: skip
    def plot(
        self, name: str | None = None, axes: Axes | None = None, *,
        x: Literal["time", "step"] = "time", **style: Any,
    ) -> Axes | list[Axes]:  # fmt: skip
        """Draw a statistic or a family, each run as a line, with its 95 % band if there is one.

        The y axis has its name, and a legend names the entries or the runs. A family has a colour
        for each entry, the same for all runs. Draw another trajectory into the same axes, with
        ``linestyle="--"`` for instance, and its entries have the same colours. Where a value is NaN
        because the loop gave none (`Tracker.log`), the line goes on to the next one.

        Args:
            name: a statistic or a family; None draws every family, each in a panel of its own.
            axes: matplotlib axes to draw into; by default new ones.
            x: what is on the x axis: limit time, or the optimizer's steps.
            style: for matplotlib's ``plot``.

        Returns:
            The axes or, without a name, a list of the axes of all panels; their ``.figure`` is the
            figure.

        Raises:
            ValueError: for an unknown statistic or x, or if axes are given without a name.

        Example:
            >>> t = torch.linspace(0, 1, 3)
            >>> path = Trajectory(t, torch.arange(3), torch.rand(3, 3), ["m[0]", "m[1]", "r2"])
            >>> axes = path.plot("m")
            >>> axes.get_ylabel(), [label.get_text() for label in axes.get_legend().get_texts()]
            ('m', ['m[0]', 'm[1]'])
            >>> [axes.get_ylabel() for axes in path.plot(x="step")]
            ['m', 'r2']
        """
        if x not in ("time", "step"):
            raise ValueError(f"expected x as 'time' or 'step', got {x!r}")
        if name is None and axes is not None:
            raise ValueError("expected axes together with a name, got axes alone: give a name")
        families = _names.families(self.names) if name is None else {name: [name]}
        panels = [axes] if axes is not None else _curves.new_panels(len(families))
        for panel, (title, members) in zip(panels, families.items(), strict=True):
            label = "limit time t" if x == "time" else "step"
            _curves.draw(panel, self.select(members)._panel(title, x), label, style)
        return panels if name is None else panels[0]

    def _panel(self, title: str, x: str) -> _curves.Curves:
        shape = (self.runs, *self.values.shape[-2:])
        along, values = self.times if x == "time" else self.steps, self._numbers.reshape(shape)
        ends = self.bounds
        band = None if ends is None else tuple(end.detach().reshape(shape).numpy() for end in ends)
        return _curves.Curves(title, along.numpy(), self.names, values, band)

    def _columns(self) -> _frames.Columns:
        beside = {name: x.numpy() for name, x in self._beside().items() if name != "samples"}
        return _frames.Columns(
            self.steps.numpy(), self.times.numpy(), self._numbers, beside, self.names,
            self.metadata,
        )  # fmt: skip

    def save(self, path: str | Path, *, samples: bool = False) -> None:
        """Write a ``.npz`` that numpy alone can read, one array for each field, metadata as JSON.

        Args:
            path: the file; its folder is made if it is not there.
            samples: write ``samples`` too, which are many times as large as the rest; without them
                the file's trajectory has none.

        Raises:
            ValueError: if names or metadata are so long that the file could not be read again.
            OSError: if it cannot be written; then what was at ``path`` is still there.
        """
        # the file behind a symbolic link, not a file in the place of the link
        place = prepared(Path(os.path.realpath(path)))
        fields: dict[str, np.ndarray] = {
            "times": self.times.numpy(),
            "steps": self.steps.numpy(),
            "values": self._numbers,
            "metadata": np.array(_checks.json_text("metadata", self.metadata)),
        }
        beside = {n: x for n, x in self._beside().items() if samples or n != "samples"}
        fields |= {name: entries.numpy() for name, entries in beside.items()}
        npz.write(place, self.names, fields)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read what `save` or a recording (``.rows``, ``.unfinished``) wrote, exactly.

        Nothing is unpickled, and every bit is checked. A large recording is memory-mapped: its
        values are read when they are used. A torn row at the end of an unfinished recording, whose
        program was killed, is left out. `torchlimits.files.row_file` describes the layout.

        Args:
            path: the file. If there is none, but there is a ``<path>.unfinished`` of a run that
                goes on or was killed, that is read, and a warning says so.

        Raises:
            ValueError: if the file is not a trajectory, or damaged.
            OSError: if it cannot be opened: FileNotFoundError, PermissionError.
        """
        path = Path(path)
        if not path.exists() and unfinished(path).exists():
            _checks.warn(
                f"there is no {path}: its run goes on or was killed, and what it has recorded so "
                f"far is read from {unfinished(path)}"
            )
            path = unfinished(path)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f"expected a trajectory file, got {path}, which is not a regular file")
        with path.open("rb") as file:
            try:
                if file.read(len(MAGIC)) == MAGIC:
                    return trajectory_of_rows(*row_reader.read(path))
                return cls(**npz.read(file))
            # whatever error a damaged file causes in the libraries that read it
            except Exception as error:
                raise ValueError(
                    f"expected a trajectory file, {path} cannot be read: "
                    f"{error or type(error).__name__}"
                ) from error


def spread_rows(count: int, points: int) -> Int[Tensor, " rows"]:
    """At most so many row numbers, evenly spread, first and last included.

    Example:
        >>> spread_rows(101, 5).tolist(), spread_rows(2, 5).tolist()
        ([0, 25, 50, 75, 100], [0, 1])
    """
    return torch.linspace(0, count - 1, min(count, points), device="cpu").round().long()


def trajectory_of_rows(header: Header, rows: np.ndarray) -> Trajectory:
    """The trajectory made of recorded rows, which are not copied.

    Args:
        header: what all rows share; see `torchlimits.files.row_file`.
        rows: rows of the type ``header.row``, shape ``(T,)``.

    Example:
        >>> header = Header(["m"], (), {})
        >>> trajectory_of_rows(header, np.zeros(1, header.row))
        Trajectory(1 statistics, 1 times, t = 0 ... 0, runs=1)
    """
    times, steps, values = (torch.from_numpy(rows[key]) for key in ("time", "step", "values"))
    return Trajectory(times, steps, values.movedim(0, -2), header.names, metadata=header.metadata)

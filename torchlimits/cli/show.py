"""``torchlimits show``: what a trajectory, or every run below a folder, holds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from torchlimits.trajectory import Trajectory

#: what a run's trajectories are called, finished or not
_ENDS = (".npz", ".rows", ".unfinished")


@dataclass
class Show:
    """Print what a trajectory holds, or what there is below a log directory.

    Runs that are still going, and runs that were killed, can be shown too.
    """

    path: Annotated[Path, Positional]
    """A trajectory file, the folder of a run, or a log directory."""
    plot: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Draw a picture of it; the ending, .png, .pdf or .svg, sets the format."""
    to: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write its values to a file that ends in .csv or in .npz, which numpy reads."""

    def main(self) -> None:
        """Print it, and write what was asked for."""
        if not self.path.is_dir():
            self._one(self.path)
            return
        files = trajectories_below(self.path)
        if not files:
            raise ValueError(
                f"expected a trajectory, or a folder with some in it or below it, got {self.path}, "
                "which has none: `torchlimits run xor` makes one"
            )
        if self.plot is not None or self.to is not None:
            self._write_of(files)
        elif all(file.parent == self.path for file in files):
            for file in files:
                self._one(file)
        else:
            _print_list(self.path, files)

    def _one(self, file: Path) -> None:
        """Print one trajectory, and write what was asked for."""
        from torchlimits.cli.tables import laid_out, trajectory_rows
        from torchlimits.trajectory import Trajectory

        path = Trajectory.load(file)
        print(f"{file}: {path!r}")
        print(laid_out(trajectory_rows(path)), end="\n\n")
        self._write(path)
        if self.plot is not None:
            self._draw(measured=path)

    def _write_of(self, files: list[Path]) -> None:
        """Write one trajectory, or draw what one run has measured and predicted."""
        from torchlimits.trajectory import Trajectory

        if len(files) == 1:
            self._one(files[0])
            return
        sides = {file.name.split(".")[0]: file for file in files if file.parent == self.path}
        if self.to is not None or set(sides) != {"measured", "predicted"}:
            raise ValueError(
                "expected one trajectory for --to, and for --plot one or the folder of one run, "
                f"got {self.path} with {len(files)} trajectories: give one of them, such as "
                f"{files[0]}"
            )
        self._draw(*(Trajectory.load(sides[side]) for side in ("measured", "predicted")))

    def _write(self, path: Trajectory) -> None:
        if self.to is None:
            return
        kind = self.to.suffix.lower()
        if kind == ".npz":
            path.save(self.to)
        elif kind == ".csv":
            from torchlimits.record.sinks.csv import CSV

            sink = CSV(self.to)
            sink.add(path)
            sink.finish()
        else:
            raise ValueError(f"expected --to as a file that ends in .csv or .npz, got {self.to}")
        print(f"Written: {self.to}")

    def _draw(self, measured: Trajectory, predicted: Trajectory | None = None) -> None:
        from torchlimits import figures

        assert self.plot is not None
        figures.save(figures.overlay(measured, predicted), self.plot, dpi=120)
        print(f"Picture: {self.plot}")


def trajectories_below(folder: Path) -> list[Path]:
    """Return the trajectory files in a folder and below it, in order.

    Args:
        folder: where to look.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trajectories_below(Path(folder))
        []
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(place, name) for name in sorted(names) if name.endswith(_ENDS)]
    return found


def _print_list(folder: Path, files: list[Path]) -> None:
    """A row for each trajectory: where it is, how far it goes, and whether it can be read."""
    from torchlimits.cli.tables import laid_out
    from torchlimits.trajectory import Trajectory

    rows = [["trajectory", "statistics", "rows", "last step", "t", "runs", "state"]]
    troubles: list[str] = []
    for file in files:
        name = str(file.relative_to(folder))
        try:
            path = Trajectory.load(file)
        except (ValueError, OSError) as error:
            troubles.append(f"{name}: {' '.join(str(error).split())}")
            continue
        last = [f"{int(path.steps[-1])}", f"{float(path.times[-1]):g}"] if len(path) else ["", ""]
        rows.append(
            [name, str(len(path.names)), str(len(path)), *last, str(path.runs), _state(file)]
        )
    if len(rows) > 1:
        print(laid_out(rows))
    for trouble in troubles:
        print(trouble)


def _state(file: Path) -> str:
    """How far the run of a trajectory has come."""
    from torchlimits.cli.folders import Folder

    if file.name.endswith(".unfinished"):
        return "unfinished"
    try:
        _, stage = Folder(file.parent).read()
    except ValueError:  # not a run of the command
        return "complete"
    return "complete" if stage == "finished" else "interrupted"

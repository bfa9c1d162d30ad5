"""``torchlimits figures``: figures 1 to 3 of the paper, and their numbers against theory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from torchlimits.cli.programs import program


def _cores() -> int:
    """The cores that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Figures:
    """Draw figures 1 to 3 of arXiv 2206.04030: real SGD with the paper's parameters, and theory.

    Figure 1 is matrix PCA (n = 1500, 10 n steps, dense data), below and above the threshold.
    Figures 2 and 3 are the binary and the XOR mixture (N = 250, K = 2 and 4, 200 runs each).
    With each, its numbers are printed beside those of theory, and while they are made, how far each
    part of them has come is shown on the standard error.
    On two cores they take about six minutes, half a minute and one minute.
    """

    figure: Annotated[Literal["1", "2", "3", "all"], Positional]
    """Which of the figures to draw."""
    smoke: Annotated[bool, FlagCreatePairsOff] = False
    """Take small sizes, to see within seconds that all works; the numbers mean little then."""
    seed: int = 0
    """The seed of starts and data."""
    logdir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/figures")
    """The folder for the pictures, and for TensorBoard's files."""

    jobs: int = field(default_factory=_cores)
    """How many processes work at once, as many as there are cores by default; the numbers do not
    depend on it."""

    def main(self) -> None:
        """Draw the figures asked for, each as soon as its parts are done."""
        import contextlib

        from rich.console import Console

        from torchlimits import _checks, figures
        from torchlimits.cli.paper.board import Board
        from torchlimits.cli.paper.common import PaperOptions, say
        from torchlimits.cli.paper.workers import results

        jobs = _checks.positive_int("--jobs", self.jobs)
        options, console = PaperOptions(self.smoke, self.seed, self.logdir), Console()
        numbers = ("1", "2", "3") if self.figure == "all" else (self.figure,)
        parts = {number: _parts(number, options) for number in numbers}
        board = Board([part for some in parts.values() for part in some])
        found: dict[str, dict[str, Any]] = {number: {} for number in numbers}
        done: list[Path] = []
        try:
            with (
                board.shown(),
                contextlib.closing(results([*board.parts], jobs, board)) as coming,
            ):
                for part, result in coming:
                    found[part.figure][part.name] = result
                    if len(found[part.figure]) < len(parts[part.figure]):
                        continue
                    with board.away():
                        console.rule(f"figure {part.figure}")
                        picture = self.logdir / f"figure{part.figure}.png"
                        drawn = _figure(part.figure, options, console, found.pop(part.figure))
                        figures.save(drawn, picture, dpi=90)
                        done.append(picture)
                        say(console, f"Picture: {picture}")
        except KeyboardInterrupt:
            names = ", ".join(map(str, done)) or "no picture yet"
            raise KeyboardInterrupt(f"there is {names}") from None
        say(console, f"TensorBoard: {program('tensorboard')} --logdir {self.logdir}")


def _parts(number: str, options: Any) -> list[Any]:
    from torchlimits.cli.paper.matrix_pca import parts1
    from torchlimits.cli.paper.mixtures import mixture_parts
    from torchlimits.cli.paper.specs import BINARY, XOR

    return (
        parts1(options)
        if number == "1"
        else mixture_parts(BINARY if number == "2" else XOR, options)
    )


def _figure(number: str, options: Any, console: Any, done: dict[str, Any]) -> Any:
    from torchlimits.cli.paper.matrix_pca import figure1
    from torchlimits.cli.paper.mixtures import mixture_figure
    from torchlimits.cli.paper.specs import BINARY, XOR

    if number == "1":
        return figure1(options, console, done)
    return mixture_figure(BINARY if number == "2" else XOR, options, console, done)

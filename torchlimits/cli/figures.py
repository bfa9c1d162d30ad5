"""``torchlimits figures``: figures 1 to 3 of the paper, and their numbers against theory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from torchlimits.cli.programs import program


@dataclass
class Figures:
    """Draw figures 1 to 3 of arXiv 2206.04030: real SGD with the paper's parameters, and theory.

    Figure 1 is matrix PCA (n = 1500, 10 n steps, dense data), below and above the threshold.
    Figures 2 and 3 are the binary and the XOR mixture (N = 250, K = 2 and 4, 200 runs each).
    Under each, its numbers are printed beside those of theory.
    On two cores they take about four minutes, one minute and one minute.
    """

    figure: Annotated[Literal["1", "2", "3", "all"], Positional]
    """Which of the figures to draw."""
    smoke: Annotated[bool, FlagCreatePairsOff] = False
    """Take small sizes, to see within seconds that all works; the numbers mean little then."""
    seed: int = 0
    """The seed of starts and data."""
    logdir: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/figures")
    """The folder for the pictures, and for TensorBoard's files."""

    def main(self) -> None:
        """Draw the figures asked for, one after the other."""
        from rich.console import Console

        from torchlimits import figures
        from torchlimits.cli.paper.common import PaperOptions, say

        options, console = PaperOptions(self.smoke, self.seed, self.logdir), Console()
        done: list[Path] = []
        try:
            for number in ("1", "2", "3") if self.figure == "all" else (self.figure,):
                console.rule(f"figure {number}")
                picture = self.logdir / f"figure{number}.png"
                figures.save(_figure(number, options, console), picture, dpi=90)
                done.append(picture)
                say(console, f"Picture: {picture}")
        except KeyboardInterrupt:
            names = ", ".join(map(str, done)) or "no picture yet"
            raise KeyboardInterrupt(f"there is {names}") from None
        say(console, f"TensorBoard: {program('tensorboard')} --logdir {self.logdir}")


def _figure(number: str, options: Any, console: Any) -> Any:
    from torchlimits.cli.paper.matrix_pca import figure1
    from torchlimits.cli.paper.mixtures import mixture_figure
    from torchlimits.cli.paper.specs import BINARY, XOR

    if number == "1":
        return figure1(options, console)
    return mixture_figure(BINARY if number == "2" else XOR, options, console)

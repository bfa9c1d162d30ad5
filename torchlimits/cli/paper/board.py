"""`Board`: how far each part of the figures has come, as bars in a terminal or as lines."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from torchlimits.cli.paper.common import say
from torchlimits.cli.paper.parts import Part

#: seconds from one line about a part to the next, where there is no terminal
_PAUSE = 15.0


class Board:
    """Shows parts on the standard error, so that numbers alone go where the output goes.

    Args:
        parts: in the order in which they are shown.
        console: where; by default the standard error.

    Attributes:
        parts: those parts.
        begun: the parts that somebody works at, or has worked at.
    """

    def __init__(self, parts: Sequence[Part], console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self.parts = [*parts]
        self.begun: dict[Part, float] = {}
        self._said: dict[Part, float] = {}
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.fields[far]}"),
            TimeRemainingColumn(),
            console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._tasks = {
            part: self._bars.add_task(str(part), start=False, total=None, far="waits")
            for part in parts
        }

    @contextmanager
    def shown(self) -> Generator[None]:
        """Show it until the end of the block."""
        if not self._console.is_terminal:
            say(self._console, f"parts to be done: {len(self.parts)}")
            yield
            return
        with self._bars:
            yield

    @contextmanager
    def away(self) -> Generator[None]:
        """Take it away for a block in which something else is printed."""
        if not self._console.is_terminal:
            yield
            return
        self._bars.stop()
        yield
        self._bars.start()

    def tell(self, part: Part, made: int, steps: int) -> None:
        """Say that a part has begun, and how far it has come.

        Args:
            part: the part.
            made: the number of steps made.
            steps: the number of all; 0 as long as that is not known.
        """
        now = time.monotonic()
        if part not in self.begun:
            self.begun[part] = self._said[part] = now
            self._bars.start_task(self._tasks[part])
            self._line(f"{part}: begins")
        far, total = "begins", None
        if made < steps:
            far, total = f"{made:,}/{steps:,} steps", steps
        elif steps:  # and something is left to do
            far = f"{steps:,} steps made"
        self._bars.update(self._tasks[part], total=total, completed=made, far=far)
        if now - self._said[part] >= _PAUSE:
            self._said[part] = now
            self._line(f"{part}: {far} after {now - self.begun[part]:.0f} s")

    def end(self, part: Part, seconds: float) -> None:
        """Say that a part is done.

        Args:
            part: the part.
            seconds: how long it took.
        """
        far = f"done after {seconds:.0f} s"
        self._bars.update(self._tasks[part], total=1, completed=1, far=far)
        self._line(f"{part}: {far}")

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:
            say(self._console, text)

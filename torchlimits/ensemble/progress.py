"""`counted`: a progress bar of training steps, with steps a second and the time left."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Speed(ProgressColumn):
    """The number of steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s")


@contextmanager
def counted(steps: int, progress: bool, begin: int = 0) -> Generator[Iterator[int]]:
    """Yield range(begin, steps), whose use a progress bar shows if ``progress``."""
    if not progress:
        yield iter(range(begin, steps))
        return
    counts = TextColumn("{task.completed:,}/{task.total:,} steps")
    with Progress(
        TextColumn("training"), BarColumn(), counts, _Speed(), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("training", total=steps, completed=begin)

        def ticks() -> Iterator[int]:
            for step in range(begin, steps):
                yield step
                # the bar takes a lock: telling it of every step would cost as much as the step
                if step % 64 == 63 or step == steps - 1:
                    bar.update(task, completed=step + 1)

        yield ticks()

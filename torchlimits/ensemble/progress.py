"""`counted`: training steps, shown by a bar with the time left, or told to a function."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Speed(ProgressColumn):
    """The number of steps a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s")


#: whether to show a bar, or a function of the steps made and of all steps
Progressing = bool | Callable[[int, int], object]


@contextmanager
def counted(steps: int, progress: Progressing, begin: int = 0) -> Generator[Iterator[int]]:
    """Yield range(begin, steps), whose use a progress bar shows if ``progress``.

    Args:
        steps: the number of steps in all.
        progress: whether to show a bar; or a function, which is called with the number of steps
            made and the number of all, at the beginning, at the end, and every 64 steps.
        begin: the number of steps that were made before.

    Example:
        >>> with counted(3, lambda made, steps: print(made, "of", steps), begin=1) as ticks:
        ...     steps = list(ticks)
        1 of 3
        3 of 3
        >>> steps
        [1, 2]
    """
    if callable(progress):
        progress(begin, steps)
        yield _told(steps, progress, begin)
        return
    if not progress:
        yield iter(range(begin, steps))
        return
    counts = TextColumn("{task.completed:,}/{task.total:,} steps")
    with Progress(
        TextColumn("training"), BarColumn(), counts, _Speed(), TimeRemainingColumn()
    ) as bar:
        task = bar.add_task("training", total=steps, completed=begin)
        yield _told(steps, lambda made, _: bar.update(task, completed=made), begin)


def _told(steps: int, tell: Callable[[int, int], object], begin: int) -> Iterator[int]:
    for step in range(begin, steps):
        yield step
        # a bar takes a lock: telling it of every step would cost as much as the step
        if step % 64 == 63 or step == steps - 1:
            tell(step + 1, steps)

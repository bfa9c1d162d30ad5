"""`Part`: a piece of a figure's experiment that needs none of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchlimits._threads import threads

#: is told the number of steps made and the number of all
Tell = Callable[[int, int], object]


@dataclass(frozen=True)
class Part:
    """Work with seeds of its own: its result is the same wherever, and beside whatever, it is done.

    Args:
        figure: the number of the figure that it belongs to.
        name: what is done, in a few words.
        cost: about how many seconds one core takes; parts that take long are begun first.
        work: a function that other processes can import; it is called with the arguments and with
            a function to tell how many steps were made.
        arguments: what can be pickled.
    """

    figure: str
    name: str
    cost: float
    work: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"figure {self.figure}, {self.name}"

    def __call__(self, tell: Tell) -> Any:
        """Do the work with one thread: with another number of them, last digits may differ."""
        with threads(1):
            return self.work(*self.arguments, tell)

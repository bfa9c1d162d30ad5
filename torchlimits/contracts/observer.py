"""`Observer`: what follows a run beside the recorded statistics; a `Watcher` makes one."""

# methods that an observer may leave out do nothing
# ruff: noqa: B027

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from torchlimits.contracts.explanation import Explanation
from torchlimits.statistics.summary import SummaryStatistics


class Observer(ABC):
    """Follows one training run; its tracker tells it of steps and keeps its state.

    A `Watcher` makes one for each run.

    Example:
        >>> class Counter(Observer):
        ...     count = 0
        ...     def observe(self, step, time):
        ...         self.count += 1
        >>> counter = Counter()
        >>> counter.observe(step=0, time=0.0)
        >>> counter.count, counter.explanation(), counter.state_dict()
        (1, None, None)
        >>> counter.moved({}), counter.check_state(None), counter.load_state_dict(None)
        (None, None, None)
        >>> counter.timed(lambda: 0.1)

    Attributes:
        every: the tracker calls `observe` after every so many optimizer steps.
    """

    every: int = 1

    @abstractmethod
    def observe(self, step: int, time: float) -> None:
        """Look at the run after an optimizer step.

        It is called at the start, then after every `every` steps, and at the latest step when an
        explanation is asked for or the tracker is closed: possibly more than once for a step.

        Args:
            step: the number of optimizer steps so far.
            time: the limit time so far, the sum of the learning rates.
        """

    def timed(self, rate: Callable[[], float]) -> None:
        """Learn how fast limit time runs; called once, before the first `observe`.

        Args:
            rate: returns the learning rate that a step adds to limit time now. Where parameter
                groups differ it is that of one of them, which `tl.track` chooses.
        """

    def moved(self, parameters: Mapping[str, Tensor]) -> None:
        """Go on with these parameters: the model was moved, or they were replaced.

        Args:
            parameters: all that the model now has, by name.
        """

    def explanation(self) -> Explanation | None:
        """What has been found so far, for `Tracker.explanation` and for sinks; by default None."""
        return None

    def state_dict(self) -> Any:
        """What `Tracker.state_dict` has to hold for a resumed run; by default None."""
        return None

    def check_state(self, state: Any) -> None:
        """Raise ValueError, and change nothing, if `load_state_dict` could not load the state."""

    def load_state_dict(self, state: Any) -> None:
        """Continue with the ``state`` of a `state_dict`; called after `check_state`."""


class Watcher(ABC):
    """Makes the `Observer` of a run; hand one to `tl.track` as ``probe``. `tl.Probe` is one.

    Example:
        >>> import torch, torchlimits as tl
        >>> class Momentum(Observer):
        ...     every = 2
        ...     def __init__(self, optimizer):
        ...         self.optimizer, self.found = optimizer, {}
        ...     def observe(self, step, time):
        ...         state = self.optimizer.state.values()
        ...         self.found[step] = sum(float(s["momentum_buffer"].norm()) for s in state)
        ...     def state_dict(self):
        ...         return dict(self.found)
        ...     def load_state_dict(self, state):
        ...         self.found = dict(state)
        >>> class OfMomentum(Watcher):
        ...     def watch(self, model, optimizer, statistics):
        ...         return Momentum(optimizer)
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> statistics = {"norm": lambda p: p["weight"].norm()}
        >>> tracker = tl.track(model, optimizer, statistics, probe=OfMomentum())
        >>> for _ in range(4):
        ...     model(torch.randn(8, 3)).square().mean().backward()
        ...     optimizer.step()
        >>> list(tracker.state_dict()["probe"])
        [0, 2, 4]
        >>> OfMomentum().watch(model, optimizer, tl.SummaryStatistics(statistics)).every
        2
    """

    @abstractmethod
    def watch(
        self, model: nn.Module, optimizer: Optimizer, statistics: SummaryStatistics
    ) -> Observer:
        """The observer of a run that begins; called once for each tracker.

        Args:
            model: the user's own module, without what is wrapped around it.
            optimizer: the optimizer that is followed, with its state.
            statistics: those that are recorded.
        """

"""`Steps`: the steps of an optimizer, counted, and the limit time that they add up to."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from torchlimits import _checks
from torchlimits._checks import warn
from torchlimits.record.begun import Begun, happened, running, witness_of
from torchlimits.record.limit_time import LimitTime, number
from torchlimits.record.unseen import Versions, sentence
from torchlimits.record.wrappers import followed


class Steps(ABC):
    """Follows an optimizer by hooks; limit time is the sum of its learning rates.

    A hook before the step notes that it began, a hook after it counts it. Number and time of a step
    are one value, replaced by one assignment: whatever interrupts a hook, the step is counted once.
    If the hook after the step did not come to that, the hook before the next step does it first,
    provided that the step moved a parameter: a step that raised an error before does not count.

    Args:
        model: a module.
        optimizer: holds at least one of its parameters. Several in a list: a step ends when the
            last of them steps, whatever the others did before.
        every: record every so many steps.
        time_of: the parameter whose learning rates limit time adds up, see `LimitTime`.

    Attributes:
        step: the number of steps so far.
        time: the limit time so far.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        every: int, time_of: str | None = None,
    ) -> None:  # fmt: skip
        self.every = _checks.positive_int("every", every)
        self._counted: tuple[int, float] = (0, 0.0)
        self._begun: Begun | None = None
        #: the last step whose end was seen, and the version of its parameter then
        self._ended: tuple[Begun, int] | None = None
        #: the last step within which another call of ``step`` began
        self._nested: Begun | None = None
        self._captured = self._in_hook = self._by_hand = False
        self._model, self._optimizers = model, followed(model, optimizer)
        #: the optimizer whose steps are seen
        self._optimizer = self._optimizers[-1]
        self._limit_time = LimitTime(model, self._optimizers, time_of)
        self._told = self._limit_time.stands_still
        self._witness: Tensor | None = None
        self._versions = Versions(self._optimizer)
        self._handles: list[Any] = []
        self._attached, self._verdict = False, None
        # other threads may look at what is recorded
        self._lock = threading.RLock()

    def __deepcopy__(self, memo: object) -> Steps:
        # what holds it, a model for instance, may be copied: the training of the copy is another
        return self

    @property
    def step(self) -> int:
        """The number of optimizer steps so far."""
        return self._counted[0]

    @property
    def time(self) -> float:
        """The limit time so far, the sum of the learning rates."""
        return self._counted[1]

    def _find_group(self) -> None:
        """Find the learning rate that counts after parameters were replaced, or ValueError."""
        self._limit_time.find()
        self._witness = None

    def _settings(self) -> dict[str, bool | int | float | str]:
        """The optimizer's name and settings, of the parameter group whose learning rate counts."""
        group = dict(self._limit_time.group() or {})
        if math.isfinite(lr := number(group.pop("lr", None))):
            group["lr"] = lr
        settings = {k: v for k, v in group.items() if isinstance(v, (bool, int, float, str))}
        names = ", ".join(type(one).__name__ for one in self._optimizers)
        chosen = self._limit_time.time_of
        return {
            "optimizer": names, **settings, **({} if chosen is None else {"time_of": chosen})
        }  # fmt: skip

    def _attach(self) -> None:
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        self._attached = True

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_compiling():
            _untraced(self._before_step, optimizer, args, kwargs)
            return
        begun, counted = self._begun, self._counted
        if begun is not None and begun[0] is counted:
            if not self._settle(1):
                # the step is under way: a subclass calls that of its base, which has hooks as well
                self._nested = begun
                return
            counted = self._counted
        parameter = self._witness
        if parameter is None or parameter.grad is None:
            parameter = self._witness = witness_of(optimizer)
        self._begun = (
            counted,
            self._limit_time.rate(),
            parameter,
            0 if parameter is None else parameter._version,
            # a GradScaler leaves it to fused optimizers to skip a step, and tells them so by this
            getattr(optimizer, "found_inf", None),
            # a closure: the optimizer itself is the first of the arguments
            len(args) > 1 or len(kwargs) > 0,
        )

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if is_compiling():
            _untraced(self._after_step, optimizer, args, kwargs)
            return
        begun = self._begun
        if begun is not None and begun is self._nested and running(optimizer) > 1:
            return  # the step of the subclass goes on
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            # nothing runs now; a copy that were recorded here would be made by every replay
            self._begun = None
            if not self._captured:
                self._captured = True
                warn(
                    "a step is captured as a CUDA graph, whose replays call no hooks: they are not "
                    "recorded unless you .remove() the tracker before the capture and call "
                    ".stepped() after each replay"
                )
            return
        if begun is not None:
            parameter, found_inf = begun[2], begun[4]
            if found_inf is not None and bool(found_inf):
                self._begun = None
                return
            self._ended = (begun, 0 if parameter is None else parameter._version)
        self._in_hook = True
        try:
            self.stepped()
        finally:
            self._in_hook = False

    @abstractmethod
    def stepped(self) -> None:
        """Take note of an optimizer step."""

    def _advance(self) -> bool:
        """Count a step; return whether it is to be recorded."""
        if not self._in_hook:
            # called by hand, maybe after a step whose hook was interrupted
            self._by_hand = True
            self._settle(0)
        step, time = self._counted
        step, lr = step + 1, self._limit_time.rate()
        later = time + lr
        if time <= later < math.inf:
            self._counted = (step, later)
        else:
            self._counted = (step, time)
            self._tell(lr)
        return step % self.every == 0

    def _tell(self, lr: float) -> None:
        """Say, once, that limit time stands still."""
        if not self._told:
            self._told = True
            warn(
                f"the learning rate is {lr} at step {self.step}: it adds nothing to limit time; "
                "later ones that are no number >= 0 will not be told"
            )

    def _settle(self, calls: int) -> bool:
        """Count a step whose hook was interrupted before it did; its own row is missing.

        Args:
            calls: how many calls of ``step`` are under way without being that step.

        Returns:
            Whether it is settled; False if the step is still under way.
        """
        begun = self._begun
        if begun is None or begun[0] is not self._counted:
            return True
        ended = self._ended
        if ended is None or ended[0] is not begun:
            if running(self._optimizer) > calls:
                return False
            if not happened(begun, ended, self._optimizer):
                return True
        (step, time), rate, *_ = begun
        self._counted = (step + 1, _later(time, rate))
        return True

    def unseen(self) -> str | None:
        """What to say if parameters changed and no step, or none since some step, was seen.

        That is so if an optimizer other than the tracked one steps: for instance, the loop makes a
        new one. A few changes after the last step, as from loading the best parameters or
        averaging them, are not worth a word. None also if `stepped` was called by hand.

        Example:
            >>> import torch, torchlimits as tl
            >>> model = torch.nn.Linear(3, 1)
            >>> tracked, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
            >>> tracker = tl.track(model, tracked, {"norm": lambda p: p["weight"].norm()})
            >>> model(torch.randn(8, 3)).sum().backward()
            >>> for _ in range(5):
            ...     other.step()
            >>> tracker.unseen().partition(":")[0]
            'no step of the optimizer was seen, but parameters that it holds have changed'
        """
        if not self._attached or self._by_hand:
            return self._verdict
        return sentence(self._versions, self._begun, self._ended, self._optimizers, self.step)

    def remove(self) -> None:
        """Detach from the optimizer: later steps are not recorded; what was recorded stays."""
        if self._attached:
            # what happens from now on is not to be seen
            self._settle(0)
            self._verdict = self.unseen()
        self._attached = False
        for handle in self._handles:
            handle.remove()


def _later(time: float, lr: float) -> float:
    """The limit time after a step; it stands still where the rate is not a number >= 0."""
    later = time + lr
    return later if time <= later < math.inf else time


def _call(hook: Any, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    hook(optimizer, args, kwargs)


#: calls a hook untraced: if traced, it would be compiled again and again. Only compiled steps come
#: here, as keeping a hook from being traced takes longer than the hook itself
_untraced: Any = torch.compiler.disable(_call)

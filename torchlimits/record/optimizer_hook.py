"""`Steps`: the steps of an optimizer, counted, and the limit time that they add up to."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from torchlimits import _checks
from torchlimits._checks import warn


class Steps(ABC):
    """Follows an optimizer by a hook; limit time is the sum of its learning rates.

    Of several parameter groups, the first one that holds a parameter of the model has the learning
    rate that counts.

    Args:
        model: a module.
        optimizer: holds at least one of its parameters.
        every: record every so many steps.

    Attributes:
        step: steps so far.
        time: limit time so far.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int) -> None:
        self.every = _checks.positive_int("every", every)
        self.step, self.time = 0, 0.0
        self._rate = _Rate()
        self._captured = False
        self._model, self._optimizer = model, _unwrapped(optimizer)
        self._stands_still = False
        # other threads may look at what is recorded
        self._lock = threading.RLock()
        self._find_group()
        _check_rate(self._group())

    def __deepcopy__(self, memo: object) -> Steps:
        # whatever holds it may be copied, a model for instance: that copy's training is another
        return self

    def _find_group(self) -> None:
        """Note the number of the parameter group whose learning rate counts."""
        own = {id(p) for p in self._model.parameters()}
        for number, group in enumerate(self._optimizer.param_groups):
            if any(id(p) in own for p in group["params"]):
                self._number = number
                return
        raise ValueError(
            "expected an optimizer that holds the model's parameters, got one that holds none of "
            "them: build it from this model's .parameters(), after moving, replacing or sharding "
            "them"
        )

    def _group(self) -> dict[str, Any]:
        # groups are other dicts after optimizer.load_state_dict
        return self._optimizer.param_groups[self._number]

    def _settings(self) -> dict[str, bool | int | float | str]:
        """The optimizer's name and settings, of that parameter group."""
        group = {**self._group(), "lr": float(self._group()["lr"])}
        settings = {k: v for k, v in group.items() if isinstance(v, (bool, int, float, str))}
        return {"optimizer": type(self._optimizer).__name__, **settings}

    def _attach(self) -> None:
        # compiled steps call it as it is: traced, it would be compiled again and again
        hook: Any = torch.compiler.disable(self._after_step)
        self._hook = self._optimizer.register_step_post_hook(hook)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            # nothing runs now; what were recorded here would be copied by every replay
            if not self._captured:
                self._captured = True
                warn(
                    "a step is captured as a CUDA graph, whose replays call no hooks: they are not "
                    "recorded unless you .remove() the tracker before the capture and call "
                    ".stepped() after each replay"
                )
            return
        # a GradScaler leaves it to fused optimizers to skip a step, and tells them so by this
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self.stepped()

    @abstractmethod
    def stepped(self) -> None:
        """Take note of an optimizer step."""

    def _advance(self) -> bool:
        """Count a step; returns whether it is one to record."""
        self.step += 1
        lr = self._rate.of(self._group())
        moved = self.time < self.time + lr < math.inf
        if moved:
            self.time += lr
        return self.step % self.every == 0 and self._recordable(moved, lr)

    def _go_on_at(self, step: int, time: float) -> None:
        """Count from these."""
        self.step, self.time = step, time

    def _recordable(self, moved: bool, lr: float) -> bool:
        """Whether limit time moved: rows are functions of it."""
        if not moved and not self._stands_still:
            self._stands_still = True
            warn(
                f"the learning rate is {lr} at step {self.step}: limit time stands still, and "
                "steps at which it does are not recorded"
            )
        return moved

    def remove(self) -> None:
        """Detach from the optimizer: later steps are not recorded; what was recorded stays."""
        self._hook.remove()


class _Rate:
    """Reads learning rates as numbers.

    A learning rate on a device is read when it was changed, not each time, as that waits for the
    device; a change that a replayed CUDA graph makes is not seen.
    """

    def __init__(self) -> None:
        self._tensor: torch.Tensor | None = None
        self._version, self._value = -1, math.nan

    def of(self, group: dict[str, Any]) -> float:
        """The learning rate of a parameter group."""
        lr = group["lr"]
        if not isinstance(lr, torch.Tensor) or lr.device.type == "cpu" or lr.is_inference():
            return float(lr)
        if lr is not self._tensor or lr._version != self._version:
            self._tensor, self._version, self._value = lr, lr._version, float(lr)
        return self._value


def check_types(model: object, optimizer: object) -> None:
    """Raise TypeError unless these are a module and an optimizer."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"expected optimizer to be a torch.optim.Optimizer, got {type(optimizer).__name__}"
        )


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The one that steps: Accelerate's stand in front of it and have no hooks."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _check_rate(group: dict[str, Any]) -> None:
    """Whether limit time moves, now or, with a scheduler that starts from 0, later."""
    lr = group.get("lr")
    if lr is None:
        raise ValueError(
            "expected an optimizer with a learning rate 'lr' in its parameter groups, got one with "
            f"{sorted(set(group) - {'params'})}: limit time is the sum of the learning rates"
        )
    if not 0 < max(float(lr), float(group.get("initial_lr", 0.0))) < math.inf:
        raise ValueError(
            f"expected a finite learning rate > 0, got lr={float(lr)}: limit time t = step * lr "
            "would stand still"
        )

"""`LimitTime`: the learning rates that add up to limit time, however parameter groups change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchlimits._checks import warn
from torchlimits.record.model_state import ModelState

#: a message lists at most so many names
_SHOWN = 20


class LimitTime:
    """The learning rate of one parameter of the model, read at every step.

    The parameter's group is found by the parameter itself: groups may be added, removed, reordered
    or loaded. A parameter that was replaced in the model is followed by its name. If the optimizers
    do not hold it any more, another one is chosen, with a warning, unless it was ``time_of``: then
    its learning rate is 0.

    Args:
        model: any module.
        optimizers: at least one of them holds a parameter of the model.
        time_of: the parameter's name; by default the first one in the optimizers' groups that is
            trained: it requires a gradient and has a learning rate > 0, now or, with a scheduler
            that warms up from 0, later.

    Raises:
        ValueError: if the optimizers hold no parameter of the model, or not ``time_of``, or its
            learning rate is negative or not finite.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> groups = [{"params": [model.weight], "lr": 0.0}, {"params": [model.bias], "lr": 0.1}]
        >>> sgd = torch.optim.SGD(groups)
        >>> LimitTime(model, [sgd]).rate(), LimitTime(model, [sgd], time_of="weight").rate()
        (0.1, 0.0)
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer],
        time_of: str | None = None,
    ) -> None:  # fmt: skip
        self._model, self._optimizers, self.time_of = model, list(optimizers), time_of
        self._rates = _Rate()
        self._lost = False
        self._at = self._first()
        _check_rate(self._at.name, self._at.group)

    def find(self) -> None:
        """Find the parameter again after some were moved or replaced in the model.

        Raises:
            ValueError: if the optimizers hold no parameter of the model any more.
        """
        self._held_or_refused()
        # the optimizer may hold the one that it replaces as well
        if not self._go_to(ModelState(self._model).parameters.get(self._at.name)):
            self._lost = False
            self.group()

    @property
    def stands_still(self) -> bool:
        """Whether there is no learning rate, as a warning said if there was none at the start."""
        return self._at.group.get("lr") is None

    def rate(self) -> float:
        """The learning rate now; 0 if there is none any more, NaN if it is not a number."""
        at = self._at
        try:
            # as in `group`, at every step
            group = at.optimizer.param_groups[at.number]
            if group["params"][at.place] is at.parameter:
                lr = group["lr"]
                return lr if lr.__class__ is float else self._rates.of(group)
        except (IndexError, KeyError):
            pass
        found = self.group()
        return 0.0 if found is None else self._rates.of(found)

    def group(self) -> dict[str, Any] | None:
        """The parameter group that holds the parameter now, or None."""
        at = self._at
        try:
            # at every step; another group may have come to this place, or another parameter
            group = at.optimizer.param_groups[at.number]
            if group["params"][at.place] is at.parameter:
                return group
        except (IndexError, KeyError):
            pass
        return self._search()

    def _search(self) -> dict[str, Any] | None:
        """Go to where the parameter is now; it may have left the model and be trained."""
        name = self._at.name
        if self._go_to(self._at.parameter):
            return self._at.group
        if self._lost:
            return None
        held = self._held()
        if self._go_to(ModelState(self._model).parameters.get(name)):
            return self._at.group
        if self.time_of is None and held:
            self._at = _trained_first(held)
            warn(
                f"limit time was the sum of the learning rates of {name!r}, which the optimizer "
                f"does not hold any more: from here on those of {self._at.name!r} are added; "
                "choose by time_of="
            )
            return self._at.group
        self._lost = True
        warn(
            f"limit time is the sum of the learning rates of {name!r}, which the optimizer does "
            "not hold any more: limit time stands still, steps are recorded all the same"
        )
        return None

    def _go_to(self, parameter: Tensor | None) -> bool:
        """Whether the optimizers hold a parameter; if so, that one counts from here on."""
        for place in _places(self._optimizers):
            if place.parameter is parameter:
                self._at, self._lost = place._replace(name=self._at.name), False
                return True
        return False

    def _held(self) -> list[_Place]:
        """The places of the model's parameters in the optimizers."""
        names = {id(p): name for name, p in ModelState(self._model).parameters.items()}
        return [
            place._replace(name=names[id(place.parameter)])
            for place in _places(self._optimizers)
            if id(place.parameter) in names
        ]

    def _held_or_refused(self) -> list[_Place]:
        held = self._held()
        if not held:
            raise ValueError(
                "expected an optimizer that holds the model's parameters, got one that holds none "
                "of them: build it from this model's .parameters(), after moving, replacing or "
                "sharding them"
            )
        return held

    def _first(self) -> _Place:
        held = self._held_or_refused()
        if self.time_of is None:
            return _trained_first(held)
        for place in held:
            if place.name == self.time_of:
                return place
        names = [place.name for place in held]
        more = f" and {len(names) - _SHOWN} others" * (len(names) > _SHOWN)
        raise ValueError(
            f"expected time_of as one of the model's parameters that the optimizer holds, "
            f"{names[:_SHOWN]}{more}, got {self.time_of!r}"
        )


class _Place(NamedTuple):
    """Where an optimizer holds a parameter."""

    optimizer: torch.optim.Optimizer
    number: int
    place: int
    parameter: Tensor
    name: str = ""

    @property
    def group(self) -> dict[str, Any]:
        return self.optimizer.param_groups[self.number]


def _places(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[_Place]:
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                yield _Place(optimizer, number, place, parameter)


def _trained_first(held: list[_Place]) -> _Place:
    """The first place whose parameter is trained, as far as that can be told."""

    def moves(place: _Place, key: str) -> bool:
        return place.parameter.requires_grad and number(place.group.get(key)) > 0

    by_now = (place for place in held if moves(place, "lr"))
    # there, schedulers keep what the rate will be
    later = (place for place in held if moves(place, "initial_lr"))
    some_time = (place for place in held if place.parameter.requires_grad)
    return next(itertools.chain(by_now, later, some_time, held))


class _Rate:
    """Reads learning rates as numbers.

    A learning rate on a device is read when it has changed, not each time, as reading waits for the
    device; a change that a replayed CUDA graph makes is not seen.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version, self._value = -1, math.nan

    def of(self, group: dict[str, Any]) -> float:
        """The learning rate of a parameter group; NaN if it is not a number."""
        lr = group.get("lr")
        if not isinstance(lr, Tensor) or lr.device.type == "cpu" or lr.is_inference():
            return number(lr)
        changed = lr is not self._tensor or lr._version != self._version
        # nothing may wait while a step is captured as a CUDA graph
        if changed and not (lr.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._tensor, self._version, self._value = lr, lr._version, number(lr)
        return self._value


def number(lr: Any) -> float:
    """A learning rate as a number; NaN if it is not one."""
    try:
        return float(lr)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _check_rate(name: str, group: dict[str, Any]) -> None:
    """Refuse learning rates that no optimizer has, and say where there is none."""
    lr = group.get("lr")
    if lr is None:
        has = "lr=None" if "lr" in group else f"only {sorted(set(group) - {'params'})}"
        warn(
            f"the parameter group of {name!r} has no learning rate 'lr' ({has}): limit time, the "
            "sum of the learning rates, stands still, steps are counted and recorded all the same"
        )
    elif not 0 <= number(lr) < math.inf:
        raise ValueError(
            f"expected a finite learning rate >= 0, got lr={lr!r} in the parameter group of "
            f"{name!r}: limit time is the sum of the learning rates"
        )

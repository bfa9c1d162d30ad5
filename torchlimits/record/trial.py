"""`tried`: every statistic evaluated once, on copies, to see what it reads and what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from torchlimits.record.evaluation import Surroundings, exact
from torchlimits.record.model_state import ModelState
from torchlimits.record.untouched import Untouched, same
from torchlimits.statistics.reads import ReadRecorder
from torchlimits.statistics.summary import SummaryStatistics

#: what to do about a statistic that has hold of the model itself
_REMEDY = (
    "it is evaluated some time after the step, and would see what is there then. Read the "
    "argument, as in lambda p: p['weight'].norm(), or take the module that is handed to f by "
    "tl.statistics.of_model(f)"
)
_NOT_IN_PLACE = (
    "use x.mul(...) for x.mul_(...), or a .clone(); for a forward pass in training mode, "
    "tl.statistics.of_model(f, train=True)"
)


@dataclass(frozen=True)
class Trial:
    """What one evaluation of all statistics has shown.

    Attributes:
        statistics: the same, each given a plain dict of what it reads.
        names: all tensors that are read.
        shapes: of each statistic's value, for one model.
        reads: for each statistic, the tensors that it reads.
        lists: whether a statistic depends on which tensors there are.
    """

    statistics: SummaryStatistics
    names: list[str]
    shapes: dict[str, tuple[int, ...]]
    reads: dict[str, list[str]]
    lists: bool

    def near(self, tensors: Mapping[str, Tensor]) -> Trial:
        """The same, with all that the statistics hold beside these ``tensors``."""
        return replace(self, statistics=self.statistics.near(tensors))


def tried(statistics: SummaryStatistics, state: ModelState, surroundings: Surroundings) -> Trial:
    """Evaluate each statistic once, on copies, and refuse what cannot be recorded truly.

    Parameters, buffers, gradients, modes and generators of random numbers are afterwards what they
    were.

    Args:
        statistics: those of the model.
        state: the tensors that they may read.
        surroundings: how to evaluate; it is told whether the statistics draw random numbers.

    Raises:
        ValueError: if a statistic reads the live model beside its argument, changes its argument or
            the model, gives another value in training mode than in evaluation mode, or if none
            reads anything; a `StatisticError` if one fails.
        TypeError: if one does not return a tensor.
    """
    with torch.inference_mode(False), torch.no_grad():
        copies = _Copies(state)
    shapes: dict[str, tuple[int, ...]] = {}
    reads: dict[str, list[str]] = {}
    lists = False
    with Untouched(state, surroundings) as untouched, surroundings.entered():
        for name in statistics.functions:
            recorder = _evaluated(name, statistics, copies, shapes)
            # not what was asked about by `in`, which need not be there
            reads[name] = list(recorder.read)
            lists = lists or recorder.lists
    if untouched.changed:
        raise ValueError(
            "expected statistics that leave the parameters alone, got some among "
            f"{list(statistics.functions)} that changed {untouched.changed} of the model: "
            f"{_NOT_IN_PLACE}"
        )
    names = [name for name in copies if name in copies.given]
    names += [name for name in copies.given if name not in names]
    if not names:
        raise ValueError(
            "expected statistics that are functions of the parameters they are given, got some "
            "that read none: use the argument, as in lambda p: p['weight'].norm(), not the model"
        )
    copies.check()
    surroundings.draws = untouched.drawn
    return Trial(statistics.given(reads), names, shapes, reads, lists)


def _evaluated(
    name: str, statistics: SummaryStatistics, copies: _Copies, shapes: dict[str, tuple[int, ...]]
) -> ReadRecorder:
    """Evaluate one statistic, note its value's shape, and see that it uses nothing but `copies`."""
    alone = statistics.select([name])
    recorder = ReadRecorder(copies, copies.state.parameters)
    with _Watch(copies) as watch:
        copies.watch = watch
        value = alone.values_of(recorder)[name]
        fails = None if watch.seen else _depends_on_mode(name, alone, recorder, watch.called)
    copies.watch = None
    if watch.seen:
        fails = f"reads the model's own {sorted(watch.seen)} beside them"
    if fails is not None:
        raise ValueError(
            "expected statistics that are functions of the parameters they are given, got "
            f"{name!r} that {fails}: {_REMEDY}"
        )
    shapes[name] = tuple(value.shape[alone.batch_dims(recorder) :])
    return recorder


def _depends_on_mode(
    name: str, alone: SummaryStatistics, recorder: ReadRecorder, modules: list[nn.Module]
) -> str | None:
    """What to say of a statistic that runs the model and depends on the mode it finds it in."""
    if not modules:
        return None
    modes, found = [module.training for module in modules], []
    for training in (True, False):
        for module in modules:
            module.training = training
        try:
            found.append(alone.values_of(recorder)[name])
        except Exception:
            found.append(None)
    for module, training in zip(modules, modes, strict=True):
        module.training = training
    first, second = found
    if first is None or second is None or first.shape != second.shape or not same(first, second):
        return "runs the model in whatever mode it is, training or evaluation, and depends on that"
    return None


class _Copies(Mapping[str, Tensor]):
    """Copies of the tensors of a training, made when they are read, the same for all statistics."""

    def __init__(self, state: ModelState) -> None:
        self.state, self._made = state, dict[str, Tensor]()
        self.given: dict[str, Tensor] = {}
        self.written: set[str] = set()
        self.watch: _Watch | None = None
        # looked up once, not for each statistic: there may be as many as there are parameters
        self.live = {_address(tensor): name for name, tensor in state.live().items()}
        self.live.pop(0, None)  # tensors without entries
        self.modules = list(state.model.modules())
        # before torch.func may ask within a transformation, which would take them for its own;
        # what processes share is gathered only where it is read
        if not state.sharded:
            self._made = {n: self._copy(n) for n in state if not state.source(n).is_meta()}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.given:
            self.given[name] = self._made[name] if name in self._made else self._copied(name)
        return self.given[name]

    def _copied(self, name: str) -> Tensor:
        if self.watch is None:
            return self._copy(name)
        # the copying itself is not what is watched for
        before, self.watch.paused = self.watch.paused, True
        try:
            return self._copy(name)
        finally:
            self.watch.paused = before

    def _copy(self, name: str) -> Tensor:
        return exact(self.state[name]).clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def check(self) -> None:
        """Raise ValueError if a statistic has written into what it was given.

        Also if that changed nothing now, as steps of a power iteration that has converged.
        """
        changed = [
            name
            for name, copy in self.given.items()
            if name in self.written or not same(copy, exact(self.state[name]))
        ]
        if changed:
            raise ValueError(
                f"expected statistics that leave the parameters alone, got some that changed "
                f"{changed} in place: {_NOT_IN_PLACE}"
            )


class _Watch(TorchDispatchMode):
    """Sees whether the tensors, or the modules, of a training are used in a block.

    It notes which of the copies are written into, by whatever name for their memory.

    Attributes:
        seen: the names of the tensors.
        called: all modules of the model, if one of them was called.
    """

    def __init__(self, copies: _Copies) -> None:
        super().__init__()
        self._copies = copies
        self.paused = False
        self.seen: set[str] = set()
        self.called: list[nn.Module] = []

    def __enter__(self) -> _Watch:
        self._hook = register_module_forward_pre_hook(self._before_forward)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hook.remove()

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        if any(module is one for one in self._copies.modules):
            self.called = self._copies.modules

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self.paused:
            for one in pytree.tree_leaves((args, kwargs)):
                if isinstance(one, Tensor) and _address(one) in self._copies.live:
                    self.seen.add(self._copies.live[_address(one)])
            written = {_address(one) for one in _written(function, args, kwargs or {})} - {0}
            if written:
                given = self._copies.given.items()
                self._copies.written.update(n for n, copy in given if _address(copy) in written)
        return function(*args, **(kwargs or {}))


def _written(function: Any, args: Any, kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of an operation that it writes into, as its schema says."""
    for place, name in _places(function):
        given = args[place] if place < len(args) else kwargs.get(name)
        yield from (x for x in pytree.tree_leaves(given) if isinstance(x, Tensor))


@cache
def _places(function: Any) -> list[tuple[int, str]]:
    schema = getattr(function, "_schema", None)
    return [
        (place, one.name)
        for place, one in enumerate(schema.arguments if schema is not None else ())
        if one.alias_info is not None and one.alias_info.is_write
    ]


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if that cannot be told."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

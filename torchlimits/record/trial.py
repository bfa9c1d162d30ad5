"""`tried`: every statistic evaluated once, on copies, to see what it reads and what it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
            f"{list(statistics.functions)} that changed {untouched.changed} of the model: use "
            "x.mul(...) for x.mul_(...), or a .clone(); for a forward pass in training mode, "
            "tl.statistics.of_model(f, train=True)"
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
    with _Watch(copies.state) as watch:
        copies.watch = watch
        value = alone.values_of(recorder)[name]
    copies.watch = None
    if watch.seen:
        raise ValueError(
            f"expected statistics that are functions of the parameters they are given, got {name!r}"
            f" that reads the model's own {sorted(watch.seen)} beside them: {_REMEDY}"
        )
    if watch.called:
        _check_modes(name, alone, recorder, watch.called)
    shapes[name] = tuple(value.shape[alone.batch_dims(recorder) :])
    return recorder


def _check_modes(
    name: str, alone: SummaryStatistics, recorder: ReadRecorder, modules: list[nn.Module]
) -> None:
    """Raise ValueError if a statistic that runs the model depends on the mode it finds it in."""
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
        raise ValueError(
            f"expected statistics that are functions of the parameters they are given, got {name!r}"
            " that runs the model in whatever mode it is, training or evaluation, and depends on "
            f"that: {_REMEDY}"
        )


class _Copies(Mapping[str, Tensor]):
    """Copies of the tensors of a training, made when they are read, the same for all statistics."""

    def __init__(self, state: ModelState) -> None:
        self.state, self._made = state, dict[str, Tensor]()
        self.given: dict[str, Tensor] = {}
        self.watch: _Watch | None = None
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
        """Raise ValueError if a statistic has changed what it was given."""
        changed = [n for n, copy in self.given.items() if not same(copy, exact(self.state[n]))]
        if changed:
            raise ValueError(
                f"expected statistics that leave the parameters alone, got some that changed "
                f"{changed} in place: use x.mul(...) for x.mul_(...), or a .clone()"
            )


class _Watch(TorchDispatchMode):
    """Sees whether the tensors, or the modules, of a training are used in a block.

    Attributes:
        seen: the names of the tensors.
        called: all modules of the model, if one of them was called.
    """

    def __init__(self, state: ModelState) -> None:
        super().__init__()
        self._live = {_address(tensor): name for name, tensor in state.live().items()}
        self._live.pop(0, None)  # tensors without entries
        self._modules = list(state.model.modules())
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
        if any(module is one for one in self._modules):
            self.called = self._modules

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not self.paused:
            for one in pytree.tree_leaves((args, kwargs)):
                if isinstance(one, Tensor) and _address(one) in self._live:
                    self.seen.add(self._live[_address(one)])
        return function(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 if that cannot be told."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0

"""`of_model`: a statistic that is a function of the module, which holds the tensors of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchlimits._exact import exactly
from torchlimits.statistics.footprint import Footprint, multiplicity
from torchlimits.statistics.private_copy import PrivateCopy, transformed
from torchlimits.statistics.quadratic import Parameters
from torchlimits.statistics.seeded import seeded

#: bytes that the operations of all evaluations together may make under vmap
_ROOM_ON_CPU, _ROOM = 2**28, 2**30

Evaluation = Callable[[Mapping[str, Tensor]], Tensor]


class OfModel(ABC):
    """A statistic that needs the module; `tl.track` binds it to the one that it records.

    Attributes:
        train: whether it is evaluated in training mode.
        seed: the seed of its random numbers in every evaluation.

    Example:
        >>> import torch, torchlimits as tl
        >>> layer = torch.nn.Linear(2, 1)
        >>> total = tl.statistics.of_model(lambda module: module.weight.sum())
        >>> total.bound(layer)({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        tensor(2.)
    """

    train: bool = False
    seed: int = 0

    @abstractmethod
    def evaluation(self, private: PrivateCopy) -> Evaluation:
        """The function of the parameters and buffers.

        Args:
            private: what makes modules that hold them.
        """

    def near(self, parameters: Parameters) -> OfModel:
        """The same statistic, with its data on the device of ``parameters``."""
        return self

    def bound(self, module: nn.Module) -> Bound:
        """The statistic as a function of the parameters and buffers of ``module``.

        Args:
            module: whose parameters and buffers it will be given, under their names.

        Raises:
            ValueError, TypeError: if the statistic does not fit the module, or it cannot be copied.
        """
        private = PrivateCopy(module, self.train)
        tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
        return Bound(self, private, _widened(tensors))

    def __call__(self, parameters: Parameters) -> Tensor:
        """Refuse to be called before it is bound."""
        raise TypeError(
            "expected a statistic that is bound to a module, got one that is not: tl.track binds "
            "it to the module that it records; elsewhere, call .bound(module) of it, or of the "
            "SummaryStatistics that it is in"
        )


class Bound:
    """A statistic of the module, bound to one: a function of its parameters and buffers."""

    def __init__(
        self, statistic: OfModel, private: PrivateCopy, near: Parameters, nbytes: int | None = None
    ) -> None:
        self._statistic, self._private = statistic.near(near), private
        self._evaluate = self._statistic.evaluation(private)
        #: the bytes that an evaluation takes, known after the first one outside of vmap
        self._nbytes = nbytes

    def near(self, parameters: Parameters) -> Bound:
        """The same function, with what it holds on the device of ``parameters``."""
        return Bound(self._statistic, self._private, parameters, self._nbytes)

    def __call__(self, parameters: Parameters) -> Tensor:
        """The value; differentiable by `torch.func` where the function of the module is."""
        tensors = {name: parameters[name] for name in self._private.places}
        with _calm(), seeded(self._statistic.seed, {x.device for x in tensors.values()}):
            try:
                value = self._measured(tensors)
            except RuntimeError as error:
                raise self._explained(error) from error
        # if it is not a tensor, SummaryStatistics says which statistic returned it
        return value.detach() if isinstance(value, Tensor) and not transformed() else value

    def _measured(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The value, by vmap only for as many steps as there is room for."""
        if transformed():
            self._check_room(list(tensors.values()))
            return self._evaluate(tensors)
        if self._nbytes is not None:
            return self._evaluate(tensors)
        with Footprint() as footprint:
            value = self._evaluate(tensors)
        self._nbytes = footprint.nbytes
        return value

    def _check_room(self, tensors: list[Tensor]) -> None:
        """Raise RuntimeError where all at once would take too much: recorders then go one by one.

        Such evaluations take long: making them together would save next to nothing.
        """
        room = _ROOM_ON_CPU if all(x.device.type == "cpu" for x in tensors) else _ROOM
        if self._nbytes and self._nbytes > room // multiplicity(tensors):
            raise RuntimeError(
                f"expected evaluations that fit into {room >> 20} MiB together, got "
                f"{multiplicity(tensors)} of {self._nbytes / 2**20:.3g} MiB each: evaluate them "
                "one by one, or on fewer samples"
            )

    def _explained(self, error: RuntimeError) -> RuntimeError:
        """The same error, with what the user cannot know."""
        if isinstance(error, torch.OutOfMemoryError):
            return error
        halves = (torch.float16, torch.bfloat16)
        if "dtype" in str(error) and any(x.dtype in halves for x in self._private.places.values()):
            return RuntimeError(
                f"{error}. Statistics get half-precision parameters and buffers in float32: a "
                "module that fixes the dtype in its forward, or has several, cannot be run so; "
                "have it read the dtype from its parameters"
            )
        return error


@contextmanager
def _calm() -> Generator[None]:
    """Turn off autocast and gradients, except where torch.func asks for them."""
    if transformed():
        yield  # already within exactly(), or in a derivative, which no_grad would make 0
        return
    # a user's inference mode would make tensors that can have no gradient
    with torch.inference_mode(False), exactly():
        yield


def _widened(tensors: Parameters) -> dict[str, Tensor]:
    """The tensors as recorders give them: half-precision ones in float32."""
    halves = (torch.float16, torch.bfloat16)
    return {
        name: x.new_empty(0, dtype=torch.float32) if x.dtype in halves else x.detach()
        for name, x in tensors.items()
    }


def of_model(f: Callable[[nn.Module], Tensor], *, train: bool = False, seed: int = 0) -> OfModel:
    """A statistic that is a function of the module, which holds a step's parameters and buffers.

    ``f(module)`` gets a private copy, made for this evaluation alone: what f does to it (gradients,
    running means, ``module.to(...)``, values set to 0) reaches neither the training nor the next
    evaluation. Tensors that the module has in plain attributes are as they were when `tl.track`
    was called; using one that training changed since is an error. Plain numbers among its
    attributes that training changes (a temperature) are not followed: make them buffers.

    **Modes.** The copy is in evaluation mode or, with ``train``, in training mode; autocast is off,
    unless the module itself turns it on.
    Gradients are off at first; if f fails for want of one, it is called with gradients enabled, and
    parameters require them as they did at `tl.track`. So ``loss.backward()`` and
    `torch.autograd.grad` work, and `torch.func.grad` in any case.

    **Random numbers** (torch's, Python's and numpy's own) start at ``seed`` in every evaluation and
    are restored after it: rows differ through the parameters and buffers alone.

    **Hooks.** Forward hooks that are objects or methods of the module are copied with it and run
    (`torch.nn.utils.spectral_norm`, pruning). One that is a function is refused, for it may keep
    what it sees: register it after `tl.track` if it only looks on. Backward hooks are left out.

    **Cost.** A deepcopy of the module without its tensors (0.2 ms for three layers, 10 ms for a
    hundred), a copy of its parameters and buffers, and f; for many steps at once, by
    `torch.func.vmap`, where f allows that, which `.item()`, `.backward()`, `torch.autograd.grad`
    and random numbers do not, and where they fit into 256 MiB (1 GiB on other devices) together.
    Otherwise all statistics are evaluated step by step.

    Args:
        f: function of a module, returning a tensor of any fixed shape.
        train: whether the copy is in training mode; its running means are its own.
        seed: an int >= 0.

    Returns:
        A statistic for `tl.track`, which binds it to the module; by hand, call ``.bound(module)``.

    Raises:
        TypeError: if f is not callable; when it is called before it is bound.
        ValueError: if seed is not an int >= 0; at `tl.track`, if the module cannot be copied.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5))
        >>> x = torch.ones(5, 3)
        >>> output = tl.SummaryStatistics({
        ...     "mean": tl.statistics.of_model(lambda module: module(x).mean()),
        ... })
        >>> output.bound(model)(dict(model.named_parameters())).shape
        torch.Size([1])
    """
    if not callable(f):
        raise TypeError(f"expected a function of the module, got {type(f).__name__}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"expected seed as an int >= 0, got {seed!r}")
    return _OfFunction(f, bool(train), seed)


@dataclass(frozen=True, eq=False)
class _OfFunction(OfModel):
    f: Callable[[nn.Module], Tensor]
    train: bool = False
    seed: int = 0

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        return _WithGradientIfNeeded(self.f, private)


class _WithGradientIfNeeded:
    """f of the module, with gradients enabled once it has failed for want of one."""

    def __init__(self, f: Callable[[nn.Module], Tensor], private: PrivateCopy) -> None:
        self._f, self._private = f, private
        self._needed = False

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if not self._needed:
            try:
                return self._f(self._private.holding(tensors))
            except Exception as error:
                if transformed() or not _for_want_of_gradient(error):
                    raise
        with torch.enable_grad():
            value = self._f(self._private.holding(tensors))
        self._needed = True
        return value


def _for_want_of_gradient(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return False
    # "does not require grad", or the None that is the .grad of a parameter
    return "grad" in str(error) or "NoneType" in str(error)

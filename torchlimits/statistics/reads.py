"""What a statistic reads: found by one evaluation, and the only thing it is given from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from torchlimits.statistics.quadratic import Parameters, near


# a dict, as torch.func.functional_call wants it, with the methods of Mapping, from which dict does
# not inherit, whatever its stub says
class ReadRecorder(  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleMethodOverride]
    Mapping[str, Tensor], dict[str, Tensor]
):
    """The tensors that a statistic may read, and a note of those that it did read.

    Args:
        parameters: ``{name: tensor}``, read when they are looked at and not before.
        sources: the same tensors, whose names and shapes error messages tell.

    Example:
        >>> import torch
        >>> recorder = ReadRecorder({"weight": torch.ones(2), "bias": torch.ones(1)}, {})
        >>> float(recorder["weight"].sum()), list(recorder.read), recorder.lists
        (2.0, ['weight'], False)
        >>> _ = list(recorder)
        >>> recorder.lists
        True
    """

    def __init__(self, parameters: Parameters, sources: Parameters) -> None:
        self._parameters, self._sources = parameters, sources
        self.read: dict[str, Tensor] = {}
        #: whether it was asked which tensors there are
        self.lists = False

    def known(self) -> Parameters:
        """Each tensor as it was read, or its source."""
        return {**self._sources, **self.read}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.read:
            self.read[name] = self._parameters[name]
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        self.lists = True
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def copy(self) -> dict[str, Tensor]:
        """All of them, as a plain dict."""
        return {name: self[name] for name in self}


class Reading:
    """A statistic that is given a plain dict of what it reads and nothing else.

    Args:
        function: a function of ``{name: tensor}``.
        names: the tensors that it reads.

    Example:
        >>> import torch
        >>> names = Reading(list, ["bias"])
        >>> names({"weight": torch.ones(2), "bias": torch.ones(1)})
        ['bias']
    """

    def __init__(self, function: Callable[[Any], Tensor], names: list[str]) -> None:
        self.function, self.names = function, names

    def near(self, parameters: Parameters) -> Reading:
        """The same function, with what it holds moved to where the ``parameters`` are."""
        return Reading(near(self.function, parameters), self.names)

    def __call__(self, parameters: Parameters) -> Tensor:
        """The statistic's value."""
        # torch.func.grad and whatever else takes dicts apart knows plain ones only
        return self.function({name: parameters[name] for name in self.names})


def _flatten(recorder: ReadRecorder) -> tuple[list[Tensor], list[str]]:
    tensors = recorder.copy()
    return list(tensors.values()), list(tensors)


def _unflatten(tensors: Any, names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, tensors, strict=True))


# torch.func takes apart, and gives derivatives in the form of, registered types only
pytree.register_pytree_node(
    ReadRecorder, _flatten, _unflatten, serialized_type_name="torchlimits.ReadRecorder"
)

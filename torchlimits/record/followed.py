"""`Followed`: the tensors that the statistics read, found again after every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from torchlimits.record.model_state import ModelState
from torchlimits.record.sources import Gradient, Parameter, Source


class Followed(Mapping[str, Tensor]):
    """Some tensors of a training by name, whole and detached, as they are when asked for.

    What takes the place of a parameter or a buffer, in the model or by ``.data``, is followed as
    long as shape, dtype and device stay the same.

    Args:
        state: all tensors of the training.
        names: those that matter.
        all_there_are: whether further parameters or buffers would matter as well.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> followed = Followed(ModelState(model), ["weight", "bias.grad"])
        >>> [value.shape for value in followed.present()], followed.without
        ([torch.Size([1, 2]), torch.Size([1])], ['bias.grad'])
        >>> model.weight = torch.nn.Parameter(torch.zeros(7, 2))
        >>> followed.present() is None
        True
    """

    def __init__(
        self, state: ModelState, names: Sequence[str], *, all_there_are: bool = False
    ) -> None:
        sources = {name: state.source(name) for name in names}
        # parameters stay where they are; all others may be new tensors after every step
        self._still = [one for one in sources.values() if type(one) is Parameter]
        self._moving = [one for one in sources.values() if type(one) is not Parameter]
        self._sources: dict[str, Source] = {one.name: one for one in (*self._still, *self._moving)}
        self.sharded = state.sharded
        #: the names of gradients that were not there when `present` was last called
        self.without: list[str] = []
        # fully_shard itself replaces sharded parameters
        self._links = [] if self.sharded else state.links(names)
        self._places = state.places() if all_there_are and not self.sharded else []
        self._count = sum(map(len, self._places))
        self._alias()
        self._kinds = [_kind(tensor) for tensor in self.values()]

    def _alias(self) -> None:
        self._parameters = [one.owner[one.leaf] for one in self._still]
        # the same memory without gradient: cheaper at every step than entering no_grad
        self._aliases = [p.detach() for p in self._parameters]

    def __getitem__(self, name: str) -> Tensor:
        return self._sources[name].whole()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def present(self) -> list[Tensor] | None:
        """The present values, in the order of the names; called after every recorded step.

        None if a tensor is of another dtype, device or shape than before, or a parameter or a
        module was replaced, added or removed.

        Raises:
            KeyError: if an optimizer keeps no such state.
        """
        if self.sharded:
            return self._with_moving([one.whole() for one in self._still])
        # at every step: any() of a generator takes twice as long
        for children, name, child in self._links:
            if children.get(name) is not child:
                return None
        if self._places and sum(map(len, self._places)) != self._count:
            return None
        if not self._in_place():
            kinds = [_kind(p) for p in self._parameters]
            if kinds != self._kinds[: len(kinds)]:
                return None
            self._alias()
        return self._with_moving(self._aliases)

    def _in_place(self) -> bool:
        """Whether no parameter was moved, for instance by module.to(...) or ``.data``."""
        try:
            # same address, shape and strides, without a line of Python for each
            return all(map(Tensor.is_set_to, self._parameters, self._aliases))
        except NotImplementedError:  # on the meta device
            return False

    def _with_moving(self, values: list[Tensor]) -> list[Tensor] | None:
        if not self._moving:
            return values
        moving = [one.whole() for one in self._moving]
        self.without = [
            one.name for one in self._moving if isinstance(one, Gradient) and one.now() is None
        ]
        if [_kind(value) for value in moving] != self._kinds[len(values) :]:
            return None
        return [*values, *moving]

    @property
    def gradients(self) -> list[str]:
        """The names of the gradients among the tensors."""
        return [one.name for one in self._moving if isinstance(one, Gradient)]

    def gather(self) -> None:
        """Take part when the tensors are gathered for a record that is made elsewhere."""
        for source in self._sources.values() if self.sharded else []:
            source.whole()


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device

"""`Shapes`: tells which parameter of a network an optimizer holds, by identity, name or shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: the settings of a group, of whatever optimizer
Settings = Any
#: None stands for N, which may be one of several numbers
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class HeldParameter:
    """A parameter that an optimizer holds.

    Args:
        tensor: the parameter.
        settings: those of its group; None if it requires no gradient, and so does not move.
        name: what the optimizer calls it, if it was built from ``named_parameters()``.
    """

    tensor: Tensor
    settings: Settings | None
    name: str | None


class Shapes:
    """The shapes of a network's parameters, by which those of an optimizer are recognised.

    Args:
        shapes: the shape of each parameter, without the replicas' dimensions; None stands for N.
        dims: the numbers that N may be.

    Example:
        >>> import torch
        >>> from torchlimits.optim.sgd import SGDSettings
        >>> shapes = Shapes({"first.weight": (2, None), "first.bias": (2,)}, {5})
        >>> held = [HeldParameter(torch.zeros(7, 2, 5), SGDSettings(1.0), None)]
        >>> shapes.settings(held, None)["first.weight"]
        SGDSettings(step_size=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0, batch_size=1, \
maximize=False, normalized=False, nesterov=False)
    """

    def __init__(self, shapes: Mapping[str, Shape], dims: Iterable[int]) -> None:
        self.shapes, self.dims = dict(shapes), set(dims)

    def settings(
        self, held: list[HeldParameter], model: nn.Module | None
    ) -> dict[str, Settings | None]:
        """The settings of each parameter; None for parameters that do not move.

        Args:
            held: what the optimizer holds.
            model: the network that it trains, if that is known.

        Raises:
            ValueError: if the optimizer trains none of the network's parameters, or others too, or
                it cannot be told which is which.
        """
        if model is not None:
            return self._by_identity(held, model)
        if all(self._is_named(one) for one in held if one.settings is not None):
            named = {one.name: one.settings for one in held}
            found = {name: named.get(name) for name in self.shapes}
        else:
            found = self._by_shape(held)
        if not any(found.values()):
            raise ValueError(self._holds_none())
        return found

    def _by_identity(
        self, held: list[HeldParameter], model: nn.Module
    ) -> dict[str, Settings | None]:
        own = dict(model.named_parameters())
        for name, shape in self.shapes.items():
            if name not in own or not self._ends_in(own[name], shape):
                what = f"of shape {tuple(own[name].shape)}" if name in own else f"none, of {[*own]}"
                raise ValueError(
                    f"expected model= with a parameter {name} of shape {self._shown(shape)}, got "
                    f"{what}: give the network that the optimizer trains, without what wraps it"
                )
        names = {id(parameter): name for name, parameter in own.items()}
        found: dict[str, Settings | None] = dict.fromkeys(self.shapes)
        for one in held:
            name = names.get(id(one.tensor))
            if name in found:
                found[name] = one.settings
            elif one.settings is not None:
                raise ValueError(
                    "expected an optimizer of the parameters of model=, got one that holds "
                    + (f"{name}, which" if name else f"one of shape {tuple(one.tensor.shape)} that")
                    + " the network does not have: build it from that model's parameters"
                )
        if not any(found.values()):
            raise ValueError(self._holds_none())
        return found

    def _by_shape(self, held: list[HeldParameter]) -> dict[str, Settings | None]:
        replicas = self._replicas([one for one in held if one.settings is not None])
        found: dict[str, Settings | None] = {}
        for shape, count in Counter(self.shapes.values()).items():
            names = [name for name, own in self.shapes.items() if own == shape]
            mine = [o.settings for o in held if self._is_of(o.tensor, shape, replicas)]
            if not mine:
                found |= dict.fromkeys(names)
                continue
            if len({*mine}) > 1 or len(mine) < count:
                raise ValueError(self._ambiguous(shape, names, len(mine)))
            found |= dict.fromkeys(names, mine[0])
        return found

    def _replicas(self, trained: list[HeldParameter]) -> int:
        """The number of leading dimensions, the same for all, that copies of the network have."""
        if not any(self._ends_in_any(one.tensor) for one in trained):
            raise ValueError(self._holds_none())
        for one in trained:
            if not self._ends_in_any(one.tensor):
                raise ValueError(
                    "expected an optimizer of the network's parameters, "
                    f"{self._listed(' and ')}, got one that also holds a parameter of shape "
                    f"{tuple(one.tensor.shape)}, which the network does not have: what it does is "
                    "not in the prediction"
                )
        for count in range(max(one.tensor.ndim for one in trained) + 1):
            if len({one.tensor.shape[:count] for one in trained}) == 1 and all(
                any(self._is_of(one.tensor, shape, count) for shape in self.shapes.values())
                for one in trained
            ):
                return count
        raise ValueError(
            f"expected {self._listed(' and ')}, the dots being the same for all, got parameters of "
            f"shapes {[tuple(one.tensor.shape) for one in trained]}: give the optimizer of one "
            "network, or of replicas"
        )

    def _is_named(self, one: HeldParameter) -> bool:
        return one.name in self.shapes and self._ends_in(one.tensor, self.shapes[one.name])

    def _is_of(self, tensor: Tensor, shape: Shape, replicas: int) -> bool:
        return tensor.ndim == replicas + len(shape) and self._ends_in(tensor, shape)

    def _ends_in(self, tensor: Tensor, shape: Shape) -> bool:
        sizes = tensor.shape[max(0, tensor.ndim - len(shape)) :]
        return len(sizes) == len(shape) and all(
            size in self.dims if expected is None else size == expected
            for size, expected in zip(sizes, shape, strict=True)
        )

    def _ends_in_any(self, tensor: Tensor) -> bool:
        return any(self._ends_in(tensor, shape) for shape in self.shapes.values())

    def _shown(self, shape: Shape) -> str:
        sizes = [max(self.dims) if size is None else size for size in shape]
        return f"(..., {', '.join(map(str, sizes))})" if sizes else "(...)"

    def _listed(self, last: str) -> str:
        parts = [f"{name} of shape {self._shown(shape)}" for name, shape in self.shapes.items()]
        return last.join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)

    def _holds_none(self) -> str:
        what = "neither" if len(self.shapes) == 2 else "none of them"
        return (
            f"expected an optimizer that holds {self._listed(' or ')}, got one that holds {what}: "
            "build it from the parameters of problem.model()"
        )

    def _ambiguous(self, shape: Shape, names: list[str], count: int) -> str:
        if count > len(names):
            return (
                f"expected {len(names) if names[1:] else 'one'} parameter{'s' * bool(names[1:])} "
                f"of shape {self._shown(shape)}, got several in parameter groups that differ: give "
                "the optimizer of one network"
            )
        which = (
            "in parameter groups that differ" if count == len(names) else f"only {count} of them"
        )
        return (
            f"expected {', '.join(names)}, all of shape {self._shown(shape)}, with the same "
            f"settings, or to be told which is which, got {which}: pass model=, or build the "
            "optimizer from model.named_parameters()"
        )

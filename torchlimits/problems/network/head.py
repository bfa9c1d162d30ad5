"""`Head`: what follows the linear first layer, as a function of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchlimits._stateless import called, places


class Head:
    r"""The map h -> output of a network behind its first layer, for many parameters at once.

    Args:
        network: the whole module; it is copied.
        first: the name of its linear first layer, whose output is h.

    Attributes:
        names: the names of the head's trained parameters in the whole module.
        shapes: ``{name: shape}`` of these parameters.
        size: P, the number of their entries.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(10, 2), nn.Tanh(), nn.Linear(2, 3))
        >>> head = Head(network, first="0")
        >>> head.shapes, head.size
        ({'2.weight': (3, 2), '2.bias': (3,)}, 9)
        >>> head(torch.zeros(5, 9), torch.zeros(5, 7, 2)).shape  # 5 heads, 7 samples for each
        torch.Size([5, 7, 3])
    """

    def __init__(self, network: nn.Module, first: str) -> None:
        layer = network.get_submodule(first)
        skeleton = copy.deepcopy(network)
        self._given = _Given()
        self.in_features = int(getattr(layer, "in_features", 0))
        if first:
            parent, _, name = first.rpartition(".")
            setattr(skeleton.get_submodule(parent), name, self._given)
        else:
            skeleton = self._given
        self._skeleton = skeleton
        parameters = dict(skeleton.named_parameters())
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        self.shapes = {name: tuple(p.shape) for name, p in trained.items()}
        self.names, self.size = list(trained), sum(map(prod, self.shapes.values()))
        self.width = int(getattr(layer, "out_features", 0))
        #: buffers and frozen parameters, which stay as they are
        self._constants = {
            **{name: p.detach() for name, p in parameters.items() if not p.requires_grad},
            **dict(skeleton.named_buffers()),
        }
        self._places = places(skeleton)
        self._beside: dict[tuple[torch.device, torch.dtype], Mapping[str, Tensor]] = {}

    @property
    def start(self) -> Tensor:
        """The values that the module has, ``(P,)``, float64."""
        parameters = dict(self._skeleton.named_parameters())
        values = [parameters[name].detach().double().cpu().flatten() for name in self.names]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device="cpu"), *values])

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one sample's output."""
        with torch.no_grad():
            h = torch.zeros(2, self.width, dtype=torch.float64, device="cpu")
            return tuple(self(self.start, h).shape[1:])

    def __call__(self, theta: Tensor, h: Tensor) -> Tensor:
        """The outputs, shape ``(*S, M, *out)``.

        Args:
            theta: the head's parameters, ``(*S, P)``.
            h: the outputs of the first layer, ``(*S, M, K)``.
        """
        batch = theta.shape[:-1]
        if not batch:
            return self._one(theta, h, self._constants_beside(h))
        # (reshape(-1, 0) does not know how many)
        flat, hidden = theta.flatten(0, -2), h.flatten(0, len(batch) - 1)
        output = self.traced(flat, hidden, (), ())[0]
        return output.reshape(*batch, *output.shape[1:])

    def traced(
        self, theta: Tensor, h: Tensor, layers: Sequence[str], offsets: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The outputs, ``(S, M, *out)``, and what comes into some layers, ``(S, M, i)``.

        Args:
            theta: the head's parameters, ``(S, P)``.
            h: the outputs of the first layer, ``(S, M, K)``.
            layers: names of linear layers, as in ``named_modules()``.
            offsets: what is added to the outputs of each of these, ``(S, M, o)``: derivatives by it
                are those by the layer's output.

        Raises:
            ValueError: if a layer is not called once, for a row of each sample.
        """
        constants = self._constants_beside(h)

        def one(t: Tensor, x: Tensor, added: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            with _Traces([self._skeleton.get_submodule(name) for name in layers], added) as traces:
                output = self._one(t, x, constants)
            return output, traces.inputs

        if len(theta) != 1:
            return torch.func.vmap(one)(theta, h, list(offsets))
        output, inputs = one(theta[0], h[0], [x[0] for x in offsets])
        return output[None], [x[None] for x in inputs]

    @property
    def linear(self) -> dict[str, dict[str, str]]:
        """The trained parameters of the linear layers, ``{layer: {"weight": name, ...}}``."""
        found = {
            name: {
                own: self._places[f"{name}.{own}" if name else own]
                for own, parameter in part.named_parameters(recurse=False)
                if parameter.requires_grad
            }
            for name, part in self._skeleton.named_modules()
            if type(part) is nn.Linear
        }
        return {name: own for name, own in found.items() if own}

    def _one(self, theta: Tensor, h: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        pieces = theta.split([prod(shape) for shape in self.shapes.values()]) if self.names else ()
        parameters = {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        # only the first layer sees the inputs themselves: one number stands for all N of each
        # (h.new_zeros would be one for each head)
        zero = torch.zeros(1, 1, dtype=h.dtype, device=h.device)
        inputs = zero.expand(len(h), max(1, self.in_features))
        self._given.h = h
        try:
            return called(self._skeleton, {**parameters, **constants}, (inputs,), at=self._places)
        finally:
            self._given.h = None

    def _constants_beside(self, h: Tensor) -> Mapping[str, Tensor]:
        key = (h.device, h.dtype)
        if key not in self._beside:
            self._beside[key] = {
                name: value.to(h.device, h.dtype if value.is_floating_point() else value.dtype)
                for name, value in self._constants.items()
            }
        return self._beside[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> Head:
        return self  # a head never changes


class _Given(nn.Module):
    """Stand-in for the first layer, which returns h whatever the input is.

    It returns a copy of h, as what follows may work in place.
    """

    h: Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """h."""
        if self.h is None:
            raise RuntimeError("expected h before the head is called")
        return self.h.clone()


class _Traces:
    """While it is open, keeps what comes into linear layers, and adds to what they return.

    Args:
        layers: the layers.
        added: what is added to the outputs of each.
    """

    def __init__(self, layers: Sequence[nn.Module], added: Sequence[Tensor]) -> None:
        self._layers, self._added = layers, added
        self._seen: list[list[Tensor]] = [[] for _ in layers]
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> _Traces:
        self._hooks = [
            layer.register_forward_hook(partial(self._pass, i))
            for i, layer in enumerate(self._layers)
        ]
        return self

    def _pass(self, i: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._seen[i].append(inputs[0])
        if output.shape != self._added[i].shape:
            raise ValueError(
                f"expected outputs {tuple(self._added[i].shape)} of a linear layer, got "
                f"{tuple(output.shape)}: its gradient is more than one product for each sample"
            )
        return output + self._added[i]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def inputs(self) -> list[Tensor]:
        """What came into each layer."""
        calls = [len(seen) for seen in self._seen]
        if set(calls) - {1}:
            raise ValueError(f"expected one call of each linear layer, got {calls}")
        return [seen[0] for seen in self._seen]

"""`Head`: what follows the linear first layer, as a function of its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

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
        constants = self._constants_beside(h)
        batch = theta.shape[:-1]
        if not batch:
            return self._one(theta, h, constants)
        # (reshape(-1, 0) does not know how many)
        flat, hidden = theta.flatten(0, -2), h.flatten(0, len(batch) - 1)
        if len(flat) == 1:
            output = self._one(flat[0], hidden[0], constants)[None]
        else:
            output = torch.func.vmap(lambda t, x: self._one(t, x, constants))(flat, hidden)
        return output.reshape(*batch, *output.shape[1:])

    def _one(self, theta: Tensor, h: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        pieces = theta.split([prod(shape) for shape in self.shapes.values()]) if self.names else ()
        parameters = {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)
        }
        # only the first layer sees the inputs themselves
        # (h.new_zeros would be one for each head, of N numbers)
        zeros = torch.zeros(1, max(1, self.in_features), dtype=h.dtype, device=h.device)
        inputs = zeros.expand(len(h), -1)
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

"""`Network` and `Copies`: ordinary `nn.Module`s with a linear first layer, one or many."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchlimits._dir import OwnNames
from torchlimits._stateless import called, places


class FirstLayer(nn.Linear):
    """nn.Linear, whose product is formed so that many copies of it are fast."""

    def forward(self, input: Tensor) -> Tensor:
        """X W^T + b."""
        if input.ndim != 2:
            return functional.linear(input, self.weight, self.bias)
        # (W X^T)^T: for one sample a copy, backward is 8 times as fast as through X W^T
        product = (self.weight @ input.mT).mT
        return product + self.bias if has_bias(self) else product


def has_bias(layer: nn.Linear) -> bool:
    """Whether a linear layer has biases; torch declares them in any case."""
    return getattr(layer, "bias", None) is not None


class Network(OwnNames, nn.Module):
    r"""output = head(W x + b): a linear first layer and any module behind it.

    Args:
        dim: N.
        width: K.
        head: what follows; it is copied.
        bias: whether there are biases b.

    Parameters: ``first.weight`` (K, N), ``first.bias`` (K,), and the head's.

    Example:
        >>> import torch
        >>> network = Network(dim=5, width=3, head=torch.nn.Tanh())
        >>> network(torch.zeros(7, 5)).shape, [name for name, _ in network.named_parameters()]
        (torch.Size([7, 3]), ['first.weight', 'first.bias'])
    """

    def __init__(self, dim: int, width: int, head: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.first = FirstLayer(dim, width, bias=bias, device="cpu")
        self.head = copy.deepcopy(head)

    def forward(self, x: Tensor) -> Any:
        """The outputs for a batch x, ``(B, N)``."""
        return self.head(self.first(x))


class Copies(OwnNames, nn.Module):
    """Independent copies of a module in one module, whose parameters have leading dimensions.

    With the loss summed over the copies, one step of an optimizer that acts on every entry by
    itself is one step of each copy.

    Args:
        module: the module that is copied; buffers are shared.
        parameters: ``{name: tensor (*replicas, *shape)}`` for all parameters of the module.
        replicas: the leading dimensions.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> stacked = {name: p.expand(5, *p.shape) for name, p in layer.named_parameters()}
        >>> copies = Copies(layer, stacked, (5,))
        >>> copies(torch.zeros(5, 7, 3)).shape, copies.weight.shape
        (torch.Size([5, 7, 2]), torch.Size([5, 2, 3]))
    """

    def __init__(
        self, module: nn.Module, parameters: dict[str, Tensor], replicas: tuple[int, ...]
    ) -> None:
        super().__init__()
        shell = copy.deepcopy(module)
        stacks = {
            id(p): nn.Parameter(parameters[name].detach().clone(), requires_grad=p.requires_grad)
            for name, p in shell.named_parameters()
        }
        # every name of a parameter that has several, so that it stays one parameter
        for name, parameter in list(shell.named_parameters(remove_duplicate=False)):
            owner, _, last = name.rpartition(".")
            setattr(shell.get_submodule(owner), last, stacks[id(parameter)])
        self.replicas = replicas
        # ours are the shell's, under the same names; it is no submodule of its own
        self._modules, self._parameters = shell._modules, shell._parameters
        self._buffers = shell._buffers
        self._shell = (shell, places(shell))

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, ``(*replicas, B, ...)``, for x, ``(*replicas, B, ...)``."""
        (shell, at), depth = self._shell, len(self.replicas)
        count = prod(self.replicas)
        parameters = {
            name: p if depth == 1 else p.reshape(count, *p.shape[depth:])
            for name, p in self.named_parameters()
        }

        def one(parameters: dict[str, Tensor], x: Tensor) -> Any:
            return called(shell, parameters, (x,), at=at)

        flat = x if depth == 1 else x.reshape(count, *x.shape[depth:])
        output = torch.func.vmap(one)(parameters, flat)
        return output if depth == 1 else output.reshape(*self.replicas, *output.shape[1:])

"""`activations`: what a layer of a network returns on fixed inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchlimits.statistics.fixed_data import FixedData, Inputs, OnData
from torchlimits.statistics.of_model import Evaluation, OfModel
from torchlimits.statistics.private_copy import PrivateCopy


def mean_square(output: Any) -> Tensor:
    """The mean square of a layer's output, over samples and units."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"expected a layer that returns a tensor, got {type(output).__name__}: give reduce="
        )
    return output.square().mean()


def activations(
    layer: str, inputs: Inputs, reduce: Callable[[Any], Tensor] = mean_square
) -> OfModel:
    r"""A summary of a layer's output h on fixed inputs; by default :math:`\langle h^2\rangle`.

    The network is in evaluation mode. ``reduce`` sees the output before later layers can change it
    in place. Each unit's own mean square is ``reduce=lambda h: h.square().mean(0)``, and the
    fraction of active units is ``reduce=lambda h: (h > 0).float().mean()``.

    Cost: a forward pass of the whole network for each recorded step, as for `held_out`.

    Args:
        layer: its name, one of ``named_modules()``; ``""`` is the whole network.
        inputs: as in `held_out`.
        reduce: function of the layer's output ``(n, ...)``, returning a tensor; by default the mean
            square over samples and units.

    Returns:
        A statistic for `tl.track`, as `of_model` returns it.

    Raises:
        TypeError: if ``layer`` is not a text, ``reduce`` not callable, or inputs are not tensors.
        ValueError: at `tl.track`, if the module has no such layer, or the layer is not called
            exactly once.

    Example:
        >>> import torch, torchlimits as tl
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> size = tl.statistics.activations("1", torch.ones(4, 2))
        >>> size.bound(network)({"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)})
        tensor(4.)
    """
    if not isinstance(layer, str):
        raise TypeError(f"expected layer as a name, got {type(layer).__name__}")
    if not callable(reduce):
        raise TypeError(f"expected reduce as a function of the output, got {reduce!r}")
    return _Activations(FixedData.of(inputs), layer, reduce)


@dataclass(frozen=True, eq=False)
class _Activations(OnData):
    layer: str
    reduce: Callable[[Any], Tensor]

    def evaluation(self, private: PrivateCopy) -> Evaluation:
        known = private.layers
        if self.layer not in known:
            raise ValueError(f"expected a layer among {known}, got {self.layer!r}")
        return lambda tensors: self._of(private.holding(tensors))

    def _of(self, module: nn.Module) -> Tensor:
        seen: list[Any] = []

        def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
            value = self.reduce(output)
            # a view of the output would change with it
            seen.append(value.clone() if isinstance(value, Tensor) else value)

        # the module belongs to this evaluation alone, and the hook goes with it
        module.get_submodule(self.layer).register_forward_hook(see)
        self.data.output(module)
        if len(seen) != 1:
            raise ValueError(
                f"expected a forward pass to call the layer {self.layer!r} once, got "
                f"{len(seen)} calls: take its activations by tl.statistics.of_model"
            )
        return seen[0]

"""`FirstLayer`: the nn.Linear of a model that sees its inputs, and the gradients that reach it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: relative to the loss: how far the mean of samples may be from that of their batch
_ROUNDING = 1e-3
#: samples whose losses are looked at one by one
_FEW = 8
#: steps of the power iteration for the largest curvature of each sample
_ITERATIONS = 12


@dataclass(frozen=True)
class FirstLayer:
    """The only layer of a model that sees its inputs, an nn.Linear.

    Attributes:
        name: of the layer in ``model.named_modules()``.
        layer: the layer.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> FirstLayer.of(model, torch.randn(4, 2, 3)).name
        '1'
    """

    name: str
    layer: nn.Linear

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> FirstLayer:
        """Run the model on a batch and see which layers get it.

        Raises:
            ValueError: if the model cannot take the batch, or it is another kind of layer, or
                none, or several.
        """
        seen: dict[str, nn.Module] = {}
        handles = []
        for name, module in model.named_modules():
            if next(module.children(), None) is None and [*module.parameters(recurse=False)]:
                handles.append(module.register_forward_pre_hook(_noting(seen, name, inputs)))
        try:
            with torch.no_grad():
                model(inputs)
        except RuntimeError as error:
            raise ValueError(
                "expected a model that takes the inputs of the loader, got shape "
                f"{tuple(inputs.shape)} and dtype {inputs.dtype} and the error: {error}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        told = ", ".join(f"{name or 'the model'} ({type(m).__name__})" for name, m in seen.items())
        if len(seen) != 1:
            raise ValueError(
                "expected one nn.Linear that sees the inputs as the loader gives them, got "
                f"{told or 'none'}: what comes before it must only reshape"
            )
        ((name, layer),) = seen.items()
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"expected an nn.Linear to see the inputs first, got {told}: the theory of linear "
                "first layers does not apply; tl.Probe measures drift and corrector of any model"
            )
        return cls(name, layer)

    def gradients(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Tensor, y: Any
    ) -> tuple[Float[Tensor, "n K"], Float[Tensor, " n"] | None]:
        """Each sample's gradient in the layer's output, and its largest curvature there.

        The second is the largest eigenvalue of the Hessian of the sample's loss, or its size where
        that is negative and larger; None if the loss cannot be differentiated twice.

        Raises:
            ValueError: if the loss is not the mean over a batch.
        """
        _check_mean(model, loss, x, y)
        held: list[Tensor] = []

        def cut(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            del module, args
            held.append(output.detach().requires_grad_())
            return held[0]

        handle = self.layer.register_forward_hook(cut)
        try:
            with torch.enable_grad():
                total = loss(model(x), y) * len(x)
        finally:
            handle.remove()
        (h,) = held
        (g,) = torch.autograd.grad(total, h, create_graph=True)
        return g.detach().double(), _curvature(g, h)


def _noting(seen: dict[str, nn.Module], name: str, inputs: Tensor) -> Callable[..., None]:
    flat = inputs.flatten(1)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        first = args[0] if args else None
        if (
            isinstance(first, Tensor)
            and first.shape[:1] == flat.shape[:1]
            and first.numel() == flat.numel()
            and torch.equal(first.flatten(1), flat.to(first))
        ):
            seen[name] = module

    return note


def _check_mean(model: nn.Module, loss: Callable[[Any, Any], Tensor], x: Tensor, y: Any) -> None:
    """Raise ValueError unless the loss of a few samples is the mean of theirs, and finite."""
    few = min(_FEW, len(x))
    with torch.no_grad():
        total, whole = float(loss(model(x), y)), float(loss(model(x[:few]), y[:few]))
        each = [float(loss(model(x[i : i + 1]), y[i : i + 1])) for i in range(few)]
    if not all(map(math.isfinite, [total, *each])):
        raise ValueError(
            f"expected a finite loss, got {total:g} of {len(x)} samples: look for NaN or infinity "
            "in inputs, labels and weights"
        )
    mean = sum(each) / few
    if abs(mean - whole) > _ROUNDING * (abs(whole) + max(map(abs, each))):
        raise ValueError(
            f"expected a loss that is the mean over the samples of a batch, got {whole:g} of a "
            f"batch of {few} and {mean:g} for the mean of its samples' losses: reduce by the mean, "
            "and see that no layer mixes the samples of a batch, and that outputs and labels have "
            f"one shape (labels {tuple(y.shape)})"
        )


def _curvature(g: Tensor, h: Tensor) -> Float[Tensor, " n"] | None:
    """The curvature of largest size of each sample's loss, by power iteration on products."""
    if not g.requires_grad:
        return h.new_zeros(len(h), dtype=torch.float64)
    v = torch.randn(
        h.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(h)
    value = h.new_zeros(len(h))
    try:
        for _ in range(_ITERATIONS):
            v = v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
            (image,) = torch.autograd.grad(
                g, h, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            value, v = (v * image).sum(1), image
    except RuntimeError:
        return None
    return value.detach().double()

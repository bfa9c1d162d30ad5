"""A user's own module as a network in which only the named linear layer sees the inputs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from torchlimits.problems.network.checks import has_values, is_module
from torchlimits.problems.network.head import Head

#: the number of samples in the checks
_COUNT = 8


def copied(model: object, first: object) -> nn.Module:
    """A copy of a module, if its linear first layer has parameters of its own.

    Args:
        model: a module.
        first: the name of a linear layer in it, ``""`` if it is one itself.

    Raises:
        TypeError: if model is not a module or cannot be copied, or the named part is not an
            `nn.Linear`.
        ValueError: if parameters of the layer are shared, computed from others, or have no values.
    """
    is_module("model", model)
    assert isinstance(model, nn.Module)
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            "expected the module itself, got what torch.compile made of it: give model._orig_mod, "
            "which has the same parameters, and train the compiled one"
        )
    has_values(model)
    _check_layer(model, _layer(model, first), str(first))
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"expected a module that copy.deepcopy takes, got {type(error).__name__}: {error}"
        ) from error


def _layer(model: nn.Module, first: object) -> nn.Linear:
    parts = dict(model.named_modules(remove_duplicate=False))
    linear = [repr(name) for name, part in parts.items() if isinstance(part, nn.Linear)]
    there = f"the nn.Linear in it: {', '.join(linear)}" if linear else "it holds no nn.Linear"
    if first not in parts:
        raise ValueError(
            f"expected first as the name of the layer that sees x, got {first!r}, which is no part "
            f"of the module; {there}"
        )
    found = parts[str(first)]
    if not isinstance(found, nn.Linear):
        raise TypeError(
            f"expected first={first!r} as the name of an nn.Linear, got a {type(found).__name__}: "
            f"theory is known for h = W x + b; {there}"
        )
    return found


def _check_layer(model: nn.Module, layer: nn.Linear, first: str) -> None:
    own = {name for name, _ in layer.named_parameters()}
    if not {"weight"} <= own <= {"weight", "bias"}:
        raise ValueError(
            f"expected {first!r} with its weight and bias as parameters, got "
            f"{', '.join(sorted(own)) or 'none'}: SGD on what a weight is computed from (weight "
            "norm, spectral norm, pruning, parametrizations) has another limit"
        )
    mine = {f"{first}.{name}" if first else name: p for name, p in layer.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for own_name, of_layer in mine.items():
            if name != own_name and _share(parameter, of_layer):
                raise ValueError(
                    f"expected the parameters of {first!r} for itself alone, got {own_name!r} that "
                    f"is {name!r} as well: theory here does not cover what the head does "
                    "with W besides h = W x + b"
                )


def _share(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    )


def check_inputs(network: nn.Module, first: str) -> None:
    """Raise ValueError unless the named layer is called once, on x itself, and is linear.

    Args:
        network: the module; it is copied.
        first: the name of its first layer.
    """
    network = copy.deepcopy(network).to("cpu", torch.float64)
    layer = network.get_submodule(first)
    assert isinstance(layer, nn.Linear)
    x = _normal(_COUNT, layer.in_features)
    calls: list[tuple[Any, Any]] = []

    def note(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        # copies: what follows may change them in place
        calls.append(tuple(_copy_of(v) for v in ([*given, *named.values()][0], output)))  # type: ignore[arg-type]

    with torch.no_grad(), layer.register_forward_hook(note, with_kwargs=True):
        _called(network, x.clone())
    if len(calls) != 1:
        raise ValueError(
            f"expected {first!r} to be called once in a forward pass, got {len(calls)} calls: the "
            "theory is of h = W x + b, which the rest of the network sees once"
        )
    ((given, output),) = calls
    if not isinstance(given, Tensor) or given.shape != x.shape or not torch.equal(given, x):
        same = isinstance(given, Tensor) and given.numel() == x.numel()
        got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(
            f"expected {first!r} to see x itself, {tuple(x.shape)}, got "
            f"{'other numbers' if same and given.shape == x.shape else got}: nothing but a change "
            "of shape to (batch, N) may come before it; do the rest to the data beforehand"
        )
    if not isinstance(output, Tensor) or not _alike(
        output, functional.linear(x, layer.weight, layer.bias)
    ):
        raise ValueError(
            f"expected {first!r} to return x W^T + b, got something else from "
            f"{type(layer).__name__}: with a hook or a forward of its own, h is not linear in x"
        )


def check_head(network: nn.Module, first: str) -> None:
    """Raise ValueError unless what follows h = W x + b does not see x.

    Heads that fail, or are random, are left to the checks of heads.

    Args:
        network: the module; it is copied.
        first: the name of its first layer.
    """
    head, network = Head(network, first), copy.deepcopy(network).to("cpu", torch.float64)
    layer = network.get_submodule(first)
    assert isinstance(layer, nn.Linear)
    x = _normal(_COUNT, layer.in_features)
    with torch.no_grad():
        output, again = _called(network, x.clone()), _called(network, x.clone())
        alone = _headed(head, head.start, layer(x))
        if alone is None or not _alike(output, again):
            return
        if not _alike(output, alone):
            raise ValueError(
                f"expected an output that depends on x through {first!r} alone, got another one "
                "where the rest of the network does not see x: skip connections, and anything "
                "else that is done with x, have no limit here"
            )


def _headed(head: Head, theta: Tensor, h: Tensor) -> Tensor | None:
    """The head's output; None if the head fails."""
    try:
        return head(theta, h)
    except Exception:
        return None


def _called(network: nn.Module, x: Tensor) -> Any:
    try:
        return network(x)
    except Exception as error:
        raise ValueError(
            f"expected a module that takes x of shape {tuple(x.shape)} and dtype float64, in which "
            f"theory is computed, got {type(error).__name__}: {error}: constants belong in "
            "buffers, which follow the dtype"
        ) from error


def _alike(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a is b
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-8)


def _copy_of(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

"""Checks that a head treats samples singly, is deterministic and finite, and fits torch.func."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits.problems.network.head import Head

#: the number of samples in the checks
_COUNT = 8
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


def checked(head: Head, network: nn.Module, width: int) -> Tensor:
    """The outputs for some samples, of a head that has a limit.

    Args:
        head: as a function.
        network: the module.
        width: K.

    Raises:
        ValueError: if it has none: samples of a batch are coupled, outputs are random, not finite
            or not a floating-point tensor, or gradients are not those of one sample.
    """
    check_parts(network)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(_COUNT, width, generator=generator, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        output = _called(head, h)
        _check_output(output, h)
        again, few = _called(head, h), _called(head, h[: _COUNT // 2])
    if not torch.equal(output, again):
        raise ValueError(
            "expected a head without randomness and without a state that each call changes, got "
            "two outputs for the same h: there is no closed limit"
        )
    if few.shape != output[: _COUNT // 2].shape or not torch.allclose(few, output[: _COUNT // 2]):
        raise ValueError(
            "expected a head that treats each sample by itself, got outputs that depend on the "
            "rest of the batch: there is no closed limit for such a head"
        )
    _check_gradients(head, h, output)
    _check_used(network, head.in_features)
    return output


def check_parts(network: nn.Module) -> None:
    """Raise ValueError if a part couples samples or is random.

    Args:
        network: the module.
    """
    for name, part in network.named_modules():
        if isinstance(part, _BATCH_NORMS) and part.training:
            raise ValueError(
                f"expected a head that treats each sample by itself, got {type(part).__name__} "
                f"({name}), which couples the samples of a batch: there is no closed limit; take "
                "LayerNorm, or train with it in eval mode and put it in eval mode here"
            )
        if isinstance(part, _DROPOUTS) and part.training and part.p:
            raise ValueError(
                f"expected a head without randomness, got {type(part).__name__}({part.p:g}) "
                f"({name}): there is no closed limit; leave it out, or set p=0"
            )


def _called(head: Head, h: Tensor) -> Any:
    try:
        return head(head.start, h)
    except Exception as error:
        raise ValueError(
            f"expected a head that takes h of shape (batch, {h.shape[1]}) and dtype float64, in "
            f"which theory is computed, got {type(error).__name__}: {error}: constants belong "
            "in buffers, which follow the dtype"
        ) from error


def _check_output(output: object, h: Tensor) -> None:
    if not isinstance(output, Tensor) or output.shape[:1] != h.shape[:1]:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected a head with one output a sample, a tensor of shape (batch, ...), got {got} "
            f"for h of shape {tuple(h.shape)}"
        )
    if output.dtype != h.dtype:
        raise ValueError(
            f"expected outputs of the dtype of h, got {output.dtype} for {h.dtype}: leave .float() "
            "and the like out of the head"
        )
    if not bool(output.isfinite().all()):
        raise ValueError(
            "expected a head with finite outputs, got NaN or infinity for standard normal h: look "
            "at its parameters and at the logarithms, roots and quotients in it"
        )


def _check_used(network: nn.Module, dim: int) -> None:
    """Check that every trained parameter has a gradient, as SGD leaves others as they are."""
    network = copy.deepcopy(network).to("cpu", torch.float64)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            "expected a network with parameters to train, got none that requires a gradient"
        )
    x = torch.ones(2, dim, dtype=torch.float64, device="cpu")
    with torch.enable_grad():
        output = network(x).sum()
    slopes = (
        torch.autograd.grad(output, [*trained.values()], allow_unused=True)
        if output.requires_grad
        else [None] * len(trained)
    )
    unused = [name for name, slope in zip(trained, slopes, strict=True) if slope is None]
    if unused:
        raise ValueError(
            f"expected outputs that depend on every trained parameter, got none that does on "
            f"{', '.join(unused)} (in a copy of the network: a function made in __init__ that "
            "holds the network itself does not go with copies): SGD leaves a parameter without a "
            "gradient where it is, whatever its weight decay; leave it out, or freeze it by "
            "requires_grad_(False)"
        )


def _check_gradients(head: Head, h: Tensor, output: Tensor) -> None:
    """Refuse heads that torch.func, which makes the gradients of single samples, cannot take."""

    def one(theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        value = head(theta, x[None])[0]
        return value.sum(), value

    each = torch.func.vmap(torch.func.grad(one, argnums=(0, 1), has_aux=True))
    try:
        gradients, alone = each(head.start.expand(len(h), -1), h)
    except Exception as error:
        raise ValueError(
            "expected a head that torch.func.vmap and torch.func.grad can take, got "
            f"{type(error).__name__}: {error}: no .item(), no `if` on values of h or of "
            "parameters (torch.where), no autograd.Function without its vmap"
        ) from error
    if not all(bool(g.isfinite().all()) for g in gradients):
        raise ValueError(
            "expected a head with finite gradients, got NaN or infinity for standard normal h: a "
            "torch.where does not help a root or a logarithm whose gradient is infinite on the "
            "other side, a clamp before it does"
        )
    if not torch.allclose(alone, output):
        raise ValueError(
            "expected a head that gives a sample the same output alone and in a batch with "
            "others, got other outputs: there is no closed limit for a head that couples samples"
        )

"""Checks of a network's parts: what has no limit is refused before anything is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.problems.mixture.coordinates import distinct_up_to_sign
from torchlimits.problems.network.head import Head
from torchlimits.problems.network.labels import LabelLaw
from torchlimits.problems.network.sample_loss import SampleLoss

#: samples of the checks
_COUNT = 8
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def is_module(name: str, value: object) -> None:
    """Raise TypeError unless a value is an nn.Module.

    Args:
        name: of the argument.
        value: what was given.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"expected {name} as a torch.nn.Module, got {type(value).__name__}: for a function f "
            "take a module whose forward calls it"
        )


def means(value: object, dim: int) -> Float[Tensor, "A N"]:
    """The means of the components as float64; one at 0 where none are given.

    Args:
        value: rows of shape ``(A, N)``, or None.
        dim: N.

    Raises:
        ValueError: if the shape is another one.
    """
    if value is None:
        return torch.zeros(1, dim, dtype=torch.float64, device="cpu")
    given = _checks.float64("means", value)
    if given.ndim != 2 or given.shape[1] != dim:
        raise ValueError(
            f"expected means as rows of shape (A, {dim}), got shape {tuple(given.shape)}"
        )
    return given


def directions(value: object, means: Float[Tensor, "A N"]) -> Float[Tensor, "d N"]:
    """The orthonormal directions; by default those of the means, none where all are 0.

    Args:
        value: orthonormal rows, or None.
        means: of the components.
    """
    if value is not None:
        return _checks.float64("directions", value)
    return distinct_up_to_sign(means) if bool(means.any()) else means[:0]


def room(dim: int, width: int, count: int) -> None:
    """Raise ValueError unless W can have any Gram matrix beside the directions.

    Args:
        dim: N.
        width: K.
        count: d.
    """
    if dim < count + width:
        raise ValueError(
            f"expected dim >= number of directions + width = {count} + {width} = {count + width}, "
            f"got dim={dim}: the Gram matrix of the neurons does not fit; enlarge dim or shrink "
            "the network"
        )


def head(head: Head, network: nn.Module, width: int) -> Tensor:
    """The outputs for some samples, if the head gives each sample its own, always the same.

    Args:
        head: as a function.
        network: the module.
        width: K.

    Raises:
        ValueError: if it does not.
    """
    for name, part in network.named_modules():
        if isinstance(part, _BATCH_NORMS) and part.training:
            raise ValueError(
                f"expected a head that treats each sample by itself, got {type(part).__name__} "
                f"({name}), which couples the samples of a batch: there is no closed limit; take "
                "LayerNorm, or put it into eval mode"
            )
        if isinstance(part, _DROPOUTS) and part.training and part.p:
            raise ValueError(
                f"expected a head without randomness, got {type(part).__name__}({part.p:g}) "
                f"({name}): there is no closed limit; leave it out, or set p=0"
            )
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(_COUNT, width, generator=generator, dtype=torch.float64, device="cpu")
    theta = head.start
    try:
        with torch.no_grad():
            output, again, few = (head(theta, x) for x in (h, h, h[: _COUNT // 2]))
    except Exception as error:
        raise ValueError(
            f"expected a head that takes h of shape (batch, {width}), got "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != _COUNT:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"expected a head with one output a sample, shape (batch, ...), got {got} for h of "
            f"shape {tuple(h.shape)}"
        )
    if not output.is_floating_point() or not bool(output.isfinite().all()):
        raise ValueError(
            "expected a head with finite outputs, got NaN, infinity or integers for standard "
            "normal h: look at its parameters and at the logarithms, roots and quotients in it"
        )
    if not torch.equal(output, again):
        raise ValueError(
            "expected a head without randomness, got two outputs for the same h: there is no "
            "closed limit for a head that draws random numbers"
        )
    if few.shape != output[: _COUNT // 2].shape or not torch.allclose(few, output[: _COUNT // 2]):
        raise ValueError(
            "expected a head that treats each sample by itself, got outputs that depend on the "
            "rest of the batch: there is no closed limit for such a head"
        )
    return output


def labels(law: LabelLaw, coordinates: Float[Tensor, "A d"], snr: float) -> Tensor:
    """One target each for samples of all components, if the law is one.

    Args:
        law: of the labels.
        coordinates: of the means, ``(A, d)``.
        snr: lambda.

    Raises:
        ValueError: if targets or probabilities have wrong shapes or values.
    """
    generator = torch.Generator().manual_seed(0)
    A, d = coordinates.shape
    component = torch.arange(A, device="cpu").repeat(_COUNT)
    noise = torch.randn(len(component), d, generator=generator, dtype=torch.float64, device="cpu")
    x = coordinates[component] + noise * snr**-0.5
    targets, shares = law.law(x, component)
    n = len(component)
    if targets.shape[:1] != (n,) or shares.shape != targets.shape[:2]:
        raise ValueError(
            f"expected labels.law(x_parallel ({n}, {d}), component ({n},)) as targets ({n}, q, "
            f"...) and probabilities ({n}, q), got {tuple(targets.shape)} and "
            f"{tuple(shares.shape)}"
        )
    total = shares.sum(-1)
    if not bool((shares >= 0).all() & ((total - 1).abs() < 1e-6).all()):
        raise ValueError("expected labels with probabilities >= 0 whose sum is 1, got others")
    if not bool(targets.isfinite().all()):
        raise ValueError("expected finite labels, got NaN or infinity")
    again, few = law.law(x, component)[0], law.law(x[: n // 2], component[: n // 2])[0]
    if not torch.equal(again, targets) or not torch.equal(few, targets[: n // 2]):
        raise ValueError(
            "expected labels that are a function of each sample's own x_parallel and component, "
            "got others for the same samples in another batch: random labels need a law, an "
            "object with law(x_parallel, component) and sample(x_parallel, component, generator)"
        )
    one = law.sample(x, component, generator)
    if one.shape != (n, *targets.shape[2:]):
        raise ValueError(
            f"expected labels.sample(...) of shape {(n, *targets.shape[2:])}, one target a "
            f"sample as law(...) has them, got {tuple(one.shape)}"
        )
    return one


def loss(losses: SampleLoss, output: Tensor, target: Tensor) -> None:
    """Raise ValueError unless a loss is the mean of the losses of samples.

    Args:
        losses: of samples.
        output: ``(M, *out)``.
        target: ``(M, ...)``.
    """
    each = losses(output, target)
    value = losses.loss(output, target)
    if not isinstance(value, Tensor) or value.ndim != 0 or each.ndim != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"expected loss(output, target) as one number, the mean over the batch, got {got}"
        )
    if not bool(each.isfinite().all()):
        raise ValueError(
            f"expected a finite loss, got {each[~each.isfinite()][0].item()} for an output of "
            f"shape {tuple(output.shape[1:])} and the label {target[~each.isfinite()][0].tolist()}"
        )
    if not torch.allclose(value, each.mean(), rtol=1e-6, atol=1e-9):
        raise ValueError(
            "expected a loss that is the mean over the batch of losses of single samples, got "
            f"{float(value):.6g} for a batch whose samples have the mean {float(each.mean()):.6g} "
            f"(output {tuple(output.shape)}, target {tuple(target.shape)}): losses that couple "
            "samples, sums, and shapes that are broadcast have no limit here"
        )

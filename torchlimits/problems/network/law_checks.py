"""Checks that labels depend on their sample alone, and that losses are means over a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.labels import LabelLaw
from torchlimits.problems.network.sample_loss import SampleLoss

#: the number of samples of each component
_COUNT = 8


def labels(law: LabelLaw, coordinates: Float[Tensor, "A d"], snr: float) -> Tensor:
    """One target for each of some samples of all components, if the law is valid.

    Args:
        law: the law of the labels.
        coordinates: those of the means, ``(A, d)``.
        snr: lambda.

    Raises:
        ValueError: if targets or probabilities have wrong shapes or values, or are random.
    """
    generator = torch.Generator().manual_seed(0)
    A, d = coordinates.shape
    component = torch.arange(A, device="cpu").repeat(_COUNT)
    n = len(component)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64, device="cpu")
    x = coordinates[component] + noise * snr**-0.5
    targets = _checked_law(law, x, component)
    again, few = law.law(x, component)[0], law.law(x[: n // 2], component[: n // 2])[0]
    if not torch.equal(again, targets) or not torch.equal(few, targets[: n // 2]):
        raise ValueError(
            "expected labels that are a function of each sample's own x_parallel and component, "
            "got others for the same samples in another batch: random labels need a law, an "
            "object with law(x_parallel, component) and sample(x_parallel, component, generator)"
        )
    what = "labels.sample(x_parallel, component, generator)"
    one = called(what, law.sample, x, component, generator)
    if not isinstance(one, Tensor) or one.shape != (n, *targets.shape[2:]):
        got = tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__
        raise ValueError(
            f"expected labels.sample(...) of shape {(n, *targets.shape[2:])}, one target a "
            f"sample as law(...) has them, got {got}"
        )
    if one.is_floating_point() != targets.is_floating_point():
        raise ValueError(
            f"expected labels.sample(...) and labels.law(...) of one kind, got {one.dtype} and "
            f"{targets.dtype}: classes are integers, other labels floating-point numbers"
        )
    return one


def _checked_law(law: LabelLaw, x: Tensor, component: Tensor) -> Tensor:
    """The targets, ``(n, q, ...)``."""
    (n, d), found = x.shape, called("labels.law(x_parallel, component)", law.law, x, component)
    pair = isinstance(found, tuple) and [isinstance(t, Tensor) for t in found] == [True, True]
    targets, shares = found if pair else (x, x[0])
    if not pair or targets.shape[:1] != (n,) or shares.shape != targets.shape[:2]:
        got = [tuple(t.shape) for t in found] if pair else type(found).__name__
        raise ValueError(
            f"expected labels.law(x_parallel ({n}, {d}), component ({n},)) as targets ({n}, q, "
            f"...) and probabilities ({n}, q), got {got}"
        )
    total = shares.sum(-1)
    if not bool((shares >= 0).all() & ((total - 1).abs() < 1e-6).all()):
        raise ValueError(
            "expected labels.law(...) with probabilities >= 0 whose sum is 1, got some from "
            f"{float(shares.min()):g} with sums from {float(total.min()):g} to "
            f"{float(total.max()):g}"
        )
    if not bool(targets.isfinite().all()):
        raise ValueError("expected finite labels, got NaN or infinity")
    return targets


def called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function returns; its errors become a ValueError.

    Args:
        what: the call, for the message.
        function: the user's function.
        arguments: those of the call.
    """
    try:
        return function(*arguments)
    except Exception as error:
        if str(error).startswith("expected "):  # a sentence already
            raise
        raise ValueError(f"expected {what}, got {type(error).__name__}: {error}") from error


def is_quadratic(losses: SampleLoss, output: Tensor, target: Tensor) -> bool:
    """Whether a loss is quadratic in the label, and its slope by the output linear in it.

    Args:
        losses: of samples.
        output: ``(M, *out)``.
        target: ``(M, ...)``, real numbers.
    """
    labels = [target + step for step in (0.0, 1.0, 2.0, 3.0)]
    values = [losses(output, y) for y in labels]
    slopes = [losses.slopes(output, y) for y in labels[:3]]
    third = values[3] - 3 * values[2] + 3 * values[1] - values[0]
    second = slopes[2] - 2 * slopes[1] + slopes[0]
    sizes = (max(float(x.abs().max()) for x in xs) for xs in (values, slopes))
    return all(
        float(x.abs().max()) <= 1e-9 * size for x, size in zip((third, second), sizes, strict=True)
    )


def loss(losses: SampleLoss, output: Tensor, target: Tensor) -> None:
    """Raise ValueError unless a loss is the mean of the losses of samples.

    Args:
        losses: of samples.
        output: ``(M, *out)``.
        target: ``(M, ...)``.
    """
    shapes = f"output {tuple(output.shape)}, target {tuple(target.shape)} {target.dtype}"
    what = f"loss(output, target) for {shapes}"
    try:
        value = called(what, losses.loss, output, target)
    except ValueError as error:
        if target.is_floating_point():
            raise
        raise ValueError(
            f"{error}: labels that are whole numbers are classes; give real ones, labels=[0.0, "
            "1.0], to a loss of real numbers or of one logit"
        ) from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"expected loss(output, target) as one number, a tensor of shape (), the mean over the "
            f"batch, got {got} for {shapes}"
        )
    if not torch.equal(value.nan_to_num(), losses.loss(output, target).nan_to_num()):
        raise ValueError("expected a loss without randomness, got two values for one batch")
    each = losses(output, target)
    if each.ndim != 1:
        raise ValueError(
            f"expected the loss of one sample as one number, got shape {tuple(each.shape[1:])}"
        )
    if not bool(each.isfinite().all()):
        raise ValueError(
            f"expected a finite loss, got {each[~each.isfinite()][0].item()} for an output of "
            f"shape {tuple(output.shape[1:])} and the label {target[~each.isfinite()][0].tolist()}"
        )
    if not torch.allclose(value.to(each), each.mean(), rtol=1e-5, atol=1e-8):
        raise ValueError(
            "expected a loss that is the mean over the batch of losses of single samples, got "
            f"{float(value):.6g} for a batch whose samples have the mean {float(each.mean()):.6g} "
            f"({shapes}): losses that couple samples (class weights of torch's cross-entropy are "
            "divided by their sum over the batch), sums over the batch, and shapes that are "
            "broadcast have no limit here"
        )
    slopes = called(f"a derivative of {what}", losses.slopes, output, target)
    if not bool(slopes.isfinite().all()):
        raise ValueError(
            "expected a loss with finite derivatives by the output, got NaN or infinity for "
            f"{shapes}"
        )

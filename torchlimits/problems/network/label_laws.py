"""What users may give as labels, and the label laws made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.network.labels import (
    ComponentLabels,
    FlippedLabels,
    FunctionLabels,
    LabelLaw,
    NoisyLabels,
    WithTrailing,
    flip_matrix,
    reads_inputs,
)
from torchlimits.problems.network.law_checks import called

#: points of normal noise in integrals; 3 are exact to the fourth moment, which is all that the
#: noise of a step needs where the loss is quadratic in the label
POINTS, FEW_POINTS = 9, 3
#: the most numbers of a label that may have noise, as integrals have `POINTS` points for each
_MOST_NOISY = 3


def made(
    labels: object, *, noise: float, flips: object, coordinates: Float[Tensor, "A d"],
    output: tuple[int, ...], points: int = POINTS,
) -> LabelLaw:  # fmt: skip
    """The law of the labels.

    Args:
        labels: a tensor of one label a component, a function of (x_parallel, component), or a
            `LabelLaw`.
        noise: the standard deviation of normal noise on labels that are real numbers.
        flips: probabilities of flips of labels that are classes, see `flip_matrix`, or None.
        coordinates: those of the means along the directions.
        output: the shape of the head's output for one sample.
        points: the points of normal noise in integrals, for each number of a label.

    Raises:
        TypeError: if labels are anything else.
        ValueError: if shapes or kinds do not fit.
    """
    law = _law(labels, len(coordinates))
    target = _example(law, coordinates)
    noise = _checks.non_negative("label_noise", noise, "it is a standard deviation")
    if noise and not target.is_floating_point():
        raise ValueError(
            f"expected labels that are real numbers for label_noise, got {target.dtype}: classes "
            "are flipped, by label_flips="
        )
    if flips is not None:
        law = FlippedLabels(law, flip_matrix(flips, _classes(target, output)))
    if noise:
        if target.numel() > _MOST_NOISY:
            raise ValueError(
                f"expected label_noise on labels of at most {_MOST_NOISY} numbers, got labels of "
                f"shape {tuple(target.shape)}: integrals over more would take too long; give "
                "labels as an object with law(...) and sample(...), whose law is finite"
            )
        law = NoisyLabels(law, noise, points)
    if target.is_floating_point() and (*target.shape, 1) == output:
        law = WithTrailing(law)
    return law


def reads(labels: LabelLaw, directions: int) -> Float[Tensor, "r d"]:
    """The functionals of x_parallel that labels read: all coordinates, or none.

    Args:
        labels: their law.
        directions: d.
    """
    eye = torch.eye(directions, dtype=torch.float64, device="cpu")
    return eye if reads_inputs(labels) else eye[:0]


def _law(labels: object, components: int) -> LabelLaw:
    if isinstance(labels, LabelLaw):
        return labels
    if callable(labels) and not isinstance(labels, Tensor):
        return FunctionLabels(cast(Callable[[Tensor, Tensor], Tensor], labels))
    if isinstance(labels, (list, tuple)):
        labels = torch.as_tensor(labels)
    if not isinstance(labels, Tensor):
        raise TypeError(
            "expected labels as a tensor with one label a component, a function of (x_parallel, "
            "component), or an object with law(x_parallel, component) and sample(x_parallel, "
            f"component, generator), got {type(labels).__name__}"
        )
    if labels.shape[:1] != (components,):
        raise ValueError(
            f"expected labels of shape ({components}, ...), one a component, got shape "
            f"{tuple(labels.shape)}"
        )
    values = labels.detach().cpu()
    return ComponentLabels(values.double() if values.is_floating_point() else values)


def _example(law: LabelLaw, coordinates: Float[Tensor, "A d"]) -> Tensor:
    """A label of the first component, without noise."""
    component = torch.zeros(1, dtype=torch.long, device="cpu")
    found = called("labels.law(x_parallel, component)", law.law, coordinates[:1], component)
    targets = found[0] if isinstance(found, tuple) and found else found
    if not isinstance(targets, Tensor) or targets.ndim < 2 or targets.shape[0] != 1:
        got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            "expected labels.law(x_parallel (n, d), component (n,)) as targets (n, q, ...) and "
            f"probabilities (n, q), got targets {got} for n = 1"
        )
    return targets[0, 0]


def _classes(target: Tensor, output: tuple[int, ...]) -> int:
    """The number C of classes: two for a logit, else as many as there are outputs."""
    if target.ndim or len(output) > 1 or not bool(target == target.round()):
        raise ValueError(
            "expected labels that are classes for label_flips, one number 0, 1, ... a sample, got "
            f"labels of shape {tuple(target.shape)} such as {target.flatten()[:3].tolist()} for "
            f"outputs of shape {output}: label_noise is for labels that are real numbers"
        )
    outputs = math.prod(output)
    return 2 if outputs == 1 else outputs

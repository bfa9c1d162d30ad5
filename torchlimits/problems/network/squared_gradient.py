"""`SquaredGradient`: the mean square of a network's gradient, to order 1/N."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import Samples

#: directions in which W_perp has less than this part of its largest square are none
_CUT = 1e-10


@dataclass(frozen=True)
class Resolved:
    r"""The coordinates Y of an input that nodes resolve: x_parallel, and along the rows of W_perp.

    Args:
        form: of :math:`|Y|^2 = w^T form\, w`, w = (x_parallel, P), ``(d + K, d + K)``.
        trace: of the covariance of Y, given the component.
        whole: of the covariance of the whole input, given the component.
    """

    form: Float[Tensor, "e e"]
    trace: float | Tensor
    whole: float | Tensor


def along_weights(R: Float[Tensor, "K K"]) -> tuple[Float[Tensor, "K K"], int]:
    """The form of the squared length along the rows of W_perp, R^+, and their number.

    Args:
        R: the Gram matrix of these rows.

    Example:
        >>> import torch
        >>> along_weights(torch.diag(torch.tensor([4.0, 0.0])))
        (tensor([[0.2500, 0.0000],
                [0.0000, 0.0000]]), 1)
    """
    values, vectors = torch.linalg.eigh(R)
    kept = values > _CUT * values.abs().amax().clamp_min(1e-300)
    inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0.0)
    return (vectors * inverse) @ vectors.mT, int(kept.sum())


@dataclass(frozen=True)
class SquaredGradient:
    r"""E|grad L|^2 of one sample, and |E grad L|^2, of the parameters that are trained.

    With g = dl/dh, the gradient of W is g x^T, that of b is g. As x given its coordinates Y is
    Gaussian in all others,

    .. math:: E\|\nabla_W L\|^2 = E\big[|g|^2 (tr\,Cov\,x + |Y|^2 - tr\,Cov\,Y)\big].

    Args:
        samples: gradients that stand for all.
        input: the coordinates that they resolve.
        weight: whether W is trained.
        bias: whether there are biases that are.
        head: which entries of theta are, ``(P,)``.
    """

    samples: Samples
    input: Resolved
    weight: bool
    bias: bool
    head: Float[Tensor, " P"]

    def of_each(self) -> Float[Tensor, " M"]:
        """The mean of |grad L|^2 given what stands for each sample."""
        s = self.samples
        size = s.gradient.square().sum(-1)
        each = s.theta.square() @ self.head
        if self.bias:
            each = each + size
        if self.weight:
            form = self.input.form
            length = (s.along @ form * s.along).sum(-1) + (s.rest @ form * s.rest).sum()
            each = each + size * (self.input.whole + length - self.input.trace)
        return each

    def of_sample(self) -> Float[Tensor, ""]:
        """E|grad L|^2 of one sample."""
        return self.samples.weight @ self.of_each()

    def of_mean(self) -> Float[Tensor, ""]:
        """|E grad L|^2."""
        s = self.samples
        weighted = s.weight[:, None] * s.gradient
        total = (s.weight @ s.theta).square() @ self.head
        if self.bias:
            total = total + weighted.sum(0).square().sum()
        if self.weight:
            mean = weighted.mT @ s.along
            total = total + (mean @ self.input.form * mean).sum()
        return total


def counts(names: Collection[str] | None, name: str) -> bool:
    """Whether a parameter is among the trained ones.

    Args:
        names: the trained parameters; None stands for all.
        name: of the parameter.

    Example:
        >>> counts(None, "first.weight"), counts(["first.weight"], "first.bias")
        (True, False)
    """
    return names is None or name in names

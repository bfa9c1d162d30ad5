"""`LinearLayers`: squared gradients of samples, where all parameters are those of linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.head import Head

#: the number of samples at which products are held against gradients
_SAMPLES = 32


class LinearLayers:
    r"""The linear layers of a head, where they have all of its parameters, one call for each.

    With what comes into a layer, a, and the derivative of a sample's loss by what comes out,
    :math:`\delta`, the gradient of the sample is :math:`\delta a^T`, so that over samples

    .. math:: E[(\partial l/\partial W_{ij})^2] = E[\delta_i^2 a_j^2], \qquad
        E[(\partial l/\partial b_i)^2] = E[\delta_i^2]

    are one matrix product, without the gradient of any sample.

    Args:
        head: the head.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(10, 2), nn.Tanh(), nn.Linear(2, 3))
        >>> layers = LinearLayers(Head(network, first="0"))
        >>> layers.names, layers.complete
        (['2'], True)
    """

    def __init__(self, head: Head) -> None:
        self._head, self._own = head, head.linear
        self.names = list(self._own)
        self._sizes = [
            head.shapes[own["weight"]][0] if "weight" in own else head.shapes[own["bias"]][0]
            for own in self._own.values()
        ]

    def offsets(self, h: Float[Tensor, "S M K"]) -> list[Tensor]:
        """Zeros that are added to what each layer returns, ``(S, M, o)``, for derivatives by them.

        Args:
            h: the pre-activations.
        """
        return [h.new_zeros(1).expand(*h.shape[:2], o).requires_grad_() for o in self._sizes]

    def squares(
        self, theta: Float[Tensor, "S P"], inputs: Sequence[Float[Tensor, "S M i"]],
        seconds: Sequence[Float[Tensor, "S M o"]],
    ) -> Float[Tensor, "S P"]:  # fmt: skip
        r"""The sums over samples of squared gradients.

        Args:
            theta: the head's parameters.
            inputs: what comes into each layer, a.
            seconds: :math:`\delta^2` of each layer, times the probabilities of samples.
        """
        found: dict[str, Tensor] = {}
        for own, a, second in zip(self._own.values(), inputs, seconds, strict=True):
            if "weight" in own:
                found[own["weight"]] = (second.mT @ a.square()).flatten(1)
            if "bias" in own:
                found[own["bias"]] = second.sum(1)
        none = theta.detach()[:, :0]  # heads may have no parameters
        return torch.cat([none, *(found[name] for name in self._head.names)], dim=-1)

    @cached_property
    def complete(self) -> bool:
        """Whether the products are the gradients of samples, of every parameter.

        They are compared at random: that finds parameters that are shared, or used elsewhere, or
        not by a linear layer, or for several rows of a sample, however the head is written.
        """
        names = [name for own in self._own.values() for name in own.values()]
        if sorted(names) != sorted(self._head.names):
            return False
        if not names:
            return True
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

        start, h = self._head.start, normal(_SAMPLES, self._head.width)
        theta = start + 0.1 * normal(len(start))
        slopes = normal(_SAMPLES, *self._head.output_shape)
        try:
            ours = self._of_samples(theta, h, slopes)
        except ValueError:  # several calls, or several rows of a sample
            return False

        def pulled(t: Tensor, x: Tensor, slope: Tensor) -> Tensor:
            return (self._head(t, x[None])[0] * slope).sum()

        each = torch.func.vmap(torch.func.grad(pulled), in_dims=(None, 0, 0))
        theirs = each(theta, h, slopes).square()
        sizes = [self._head.shapes[name] for name in self._head.names]
        parts = theirs.split([int(torch.Size(size).numel()) for size in sizes], dim=1)
        if not all(bool(part.any()) for part in parts):
            return False
        return torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12 * float(theirs.max()))

    def _of_samples(self, theta: Tensor, h: Tensor, slopes: Tensor) -> Float[Tensor, "M P"]:
        """The squared gradients of samples, each on its own."""
        with torch.enable_grad():
            offsets = self.offsets(h[None])
            output, inputs = self._head.traced(theta[None], h[None], self.names, offsets)
            deltas = torch.autograd.grad((output[0] * slopes).sum(), offsets)
        rows = [x.detach()[0][:, None] for x in inputs]
        own = theta.expand(len(h), -1)
        return self.squares(own, rows, [delta[0][:, None].square() for delta in deltas])

"""Gradients of the logistic loss of a two-layer ReLU network, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.kernel import Gradients, NoKernelError
from torchlimits.problems.network.first_layer_chain import over_batch
from torchlimits.problems.two_layer import TwoLayerNetwork


def of_one_sample(
    second: Float[Tensor, "K S"], h: Float[Tensor, "B K S"], target: Float[Tensor, "B S"]
) -> tuple[Float[Tensor, "B K S"], Float[Tensor, "B K S"]]:
    r"""The gradients of each sample's loss in the second layer v and in h = W x.

    With :math:`s = \operatorname{sigmoid}(v \cdot relu(h)) - y` they are :math:`s\, relu(h)` and
    :math:`s v_i 1\{h_i > 0\}`. Source: section 4 of arXiv 2206.04030.

    Args:
        second: v of S networks.
        h: the samples' pre-activations.
        target: their labels y, 0 or 1.
    """
    active = h.relu()
    s = (second * active).sum(1).sigmoid_().sub_(target)[:, None]
    # what autograd takes for relu, in one pass: the slope at 0 is 0
    return s * active, torch.ops.aten.threshold_backward(s * second, h, 0)


def of_network(model: TwoLayerNetwork) -> Gradients:
    """Return a function (x, y) that sets ``.grad`` of both layers, as autograd would, to rounding.

    It passes over W once, and once over its gradient; autograd takes four times as long.

    Args:
        model: its activation is ReLU; parameters have one leading dimension, and stay where they
            are.

    Raises:
        NoKernelError: if parameters are frozen, or do not have one leading dimension.

    Example:
        >>> import torch
        >>> model = TwoLayerNetwork(dim=5, width=3, replicas=(2,))
        >>> of_network(model)(torch.randn(2, 7, 5), torch.ones(2, 7))
        >>> model.first.weight.grad.shape, model.second.weight.grad.shape
        (torch.Size([2, 3, 5]), torch.Size([2, 1, 3]))
    """
    first, second = model.first.weight, model.second.weight
    if first.ndim != 3 or not (first.requires_grad and second.requires_grad):
        raise NoKernelError(
            "expected parameters with one leading dimension that are all trained, got shapes "
            f"{tuple(first.shape)}, {tuple(second.shape)}"
        )
    W, v = first.detach(), second.detach()[:, 0].mT
    # kept, as fresh memory would take longer than the numbers in it
    of_first, of_second = torch.empty_like(W), torch.empty_like(second.detach())
    of_v = of_second[:, 0].mT

    def set_all(x: Float[Tensor, "S B N"], y: Float[Tensor, "S B"]) -> None:
        # replicas last, as `of_one_sample` has them
        h = torch.bmm(W, x.mT).permute(2, 1, 0)
        by_second, pull = of_one_sample(v, h, y.mT)
        of_v.copy_(over_batch(by_second))
        pull = pull.permute(2, 1, 0)
        batch = x.shape[1]
        if batch == 1:  # an outer product takes a third of a product of matrices
            torch.mul(pull, x, out=of_first)
        else:
            torch.bmm(pull.div_(batch), x, out=of_first)
        first.grad, second.grad = of_first, of_second

    return set_all

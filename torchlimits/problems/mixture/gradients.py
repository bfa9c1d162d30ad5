"""Gradients of the logistic loss of a two-layer ReLU network in closed form, and steps of SGD."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.kernel import Gradients, NoKernelError, Step
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
    W, v = _layers(model)
    first, second = model.first.weight, model.second.weight
    # kept, as fresh memory would take longer than the numbers in it
    of_first, of_second = torch.empty_like(W), torch.empty_like(second.detach())
    of_v = of_second[:, 0].mT

    def set_all(x: Float[Tensor, "S B N"], y: Float[Tensor, "S B"]) -> None:
        by_second, pull = _pulls(W, v, x, y)
        of_v.copy_(by_second)
        batch = x.shape[1]
        if batch == 1:  # an outer product takes a third of a product of matrices
            torch.mul(pull, x, out=of_first)
        else:
            torch.bmm(pull.div_(batch), x, out=of_first)
        first.grad, second.grad = of_first, of_second

    return set_all


def sgd_step(model: TwoLayerNetwork, optimizer: torch.optim.SGD) -> Step:
    r"""Return a function (x, y) that moves both layers as SGD would, to rounding.

    :math:`W \leftarrow (1 - \eta\beta) W - \eta\, g` in place, without the gradient g, which is as
    large as W: that takes two thirds of the time of gradients and ``optimizer.step()``.

    Args:
        model: as in `of_network`.
        optimizer: without momentum, whose learning rate and weight decay are read at every step.
            Its ``step`` is not called, so that its hooks are not.

    Raises:
        NoKernelError: as `of_network`, and if the optimizer does more than that.

    Example:
        >>> import torch
        >>> model = TwoLayerNetwork(dim=5, width=3, replicas=(2,))
        >>> before = model.first.weight.clone()
        >>> step = sgd_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> step(torch.randn(2, 7, 5), torch.ones(2, 7))
        >>> torch.equal(model.first.weight, before), model.first.weight.grad
        (False, None)
    """
    W, v = _layers(model)
    group = optimizer.param_groups[0]
    if group["momentum"] or group["maximize"]:
        raise NoKernelError(
            "expected torch.optim.SGD without momentum that minimises, got "
            f"momentum={group['momentum']}, maximize={group['maximize']}"
        )
    only_group(optimizer, model)

    def step(x: Float[Tensor, "S B N"], y: Float[Tensor, "S B"]) -> None:
        rate = group["lr"]
        kept = 1 - rate * group["weight_decay"]
        by_second, pull = _pulls(W, v, x, y)
        batch = x.shape[1]
        if batch == 1:  # half the time of a product of matrices
            W.mul_(kept).addcmul_(pull, x, value=-rate)
        else:
            W.baddbmm_(pull, x, beta=kept, alpha=-rate / batch)
        v.mul_(kept).sub_(by_second, alpha=rate)

    return step


def only_group(optimizer: torch.optim.SGD, model: TwoLayerNetwork) -> dict[str, Any]:
    """The one parameter group of an SGD whose step is known in closed form, or `NoKernelError`."""
    group, *others = optimizer.param_groups
    if {id(p) for p in group["params"]} != {id(p) for p in model.parameters()} or optimizer.state:
        raise NoKernelError(
            "expected an optimizer that holds both layers and has taken no step, got one with "
            f"{len(group['params'])} parameters and {len(optimizer.state)} states"
        )
    if isinstance(group["lr"], Tensor):
        raise NoKernelError("expected a learning rate that is a number, got a tensor")
    odd = [name for name in ("nesterov", "dampening", "maximize") if group[name]]
    if others or odd:
        raise NoKernelError(
            "expected one parameter group without nesterov, dampening and maximize, got "
            f"{1 + len(others)} groups with {odd}"
        )
    return group


def _layers(model: TwoLayerNetwork) -> tuple[Float[Tensor, "S K N"], Float[Tensor, "K S"]]:
    """The memory of both layers' weights, W and v, without gradients."""
    first, second = model.first.weight, model.second.weight
    if first.ndim != 3 or not (first.requires_grad and second.requires_grad):
        raise NoKernelError(
            "expected parameters with one leading dimension that are all trained, got shapes "
            f"{tuple(first.shape)}, {tuple(second.shape)}"
        )
    return first.detach(), second.detach()[:, 0].mT


def _pulls(
    W: Float[Tensor, "S K N"], v: Float[Tensor, "K S"], x: Float[Tensor, "S B N"],
    y: Float[Tensor, "S B"],
) -> tuple[Float[Tensor, "K S"], Float[Tensor, "S K B"]]:  # fmt: skip
    """The gradient in v, the mean over the batch, and each sample's in W x."""
    # replicas last, as `of_one_sample` has them
    h = torch.bmm(W, x.mT).permute(2, 1, 0)
    by_second, pull = of_one_sample(v, h, y.mT)
    return over_batch(by_second), pull.permute(2, 1, 0)

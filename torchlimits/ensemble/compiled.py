"""`compiled_gradients`: loss and gradients of a step as one compiled function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchlimits._checks import warn
from torchlimits._stateless import called, places
from torchlimits.contracts.kernel import Gradients


def compiled_gradients(
    model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], otherwise: Gradients
) -> Gradients:
    """Return a compiled function (x, y) that sets ``.grad`` to the gradients of the loss.

    A pass through autograd costs some hundred microseconds before a number is computed. Here it is
    taken once, by `torch.func.grad` while it is traced, and its operations are made one C++
    function.

    Args:
        model: a module; its parameters have to stay where they are.
        loss: a function of output and target.
        otherwise: a function that does the same and takes over, with a warning, where compilation
            fails: without a C++ compiler, or where the model or the loss cannot be traced.
    """
    # frozen parameters stay the model's own: only those with a gradient are moved
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # the same memory without gradient
    values = {name: p.detach() for name, p in parameters.items()}

    at = places(model)

    def loss_of(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(called(model, values, (x,), at=at), y)

    def gradients(values: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = torch.func.grad(loss_of)(values, x, y)
        # laid out as the parameters are, as autograd's are: fused optimizers read them so
        return {name: g.contiguous() for name, g in found.items()}

    # torch.compile keeps its results with the code, and refuses to make more than eight for one
    gradients.__code__ = gradients.__code__.replace()
    compiled = torch.compile(
        gradients,
        fullgraph=True,
        dynamic=False,
        # all in C++, which lets other threads, those that draw, run meanwhile
        options={"cpp_wrapper": True},
    )

    def set_all(x: Tensor, y: Tensor) -> None:
        for name, gradient in compiled(values, x, y).items():
            parameter = parameters[name]
            same = gradient.stride() == parameter.stride()
            parameter.grad = gradient if same else torch.empty_like(parameter).copy_(gradient)

    def first(x: Tensor, y: Tensor) -> None:
        nonlocal chosen
        chosen = set_all
        try:
            set_all(x, y)
        except Exception as error:
            chosen = otherwise
            otherwise(x, y)  # if it fails too, its error tells why
            what = str(error).strip().partition("\n")[0]
            warn(f"torch.compile failed, training goes on without: {what}")

    chosen = first
    return lambda x, y: chosen(x, y)

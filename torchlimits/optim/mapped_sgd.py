"""`MappedSGD`: SGD on a function of each gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class MappedSGD(torch.optim.SGD):
    """Take the step of `torch.optim.SGD` with a function of each parameter's gradient.

    Weight decay and momentum come after the function. ``p.grad`` is left as ``backward`` made it.

    Args:
        params: parameters, or groups of them.
        lr: delta.
        options: momentum, weight_decay ... of `torch.optim.SGD`, ``differentiable`` excepted.

    Raises:
        ValueError: as torch.optim.SGD, and if ``differentiable`` is set.
    """

    #: a GradScaler has to unscale the gradients itself, because their scale counts here
    _step_supports_amp_scaling = False
    #: whether stacked copies of a parameter are stepped as if each were alone (`torchlimits.train`)
    treats_replicas_alone = True

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any) -> None:
        super().__init__(params, lr, **options)
        # torch sets it where fused=True
        self._step_supports_amp_scaling = False
        if any(group["differentiable"] for group in self.param_groups):
            raise ValueError(
                f"expected differentiable=False in {type(self).__name__}, got True: what it does "
                "to gradients is not"
            )

    @abstractmethod
    def _image(self, gradient: Tensor) -> Tensor:
        """What the step is taken with, for one parameter."""

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None
    ) -> Any:
        """Map the gradients and take SGD's step with them.

        Args:
            closure: evaluates the loss, and its gradients, and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in held]
        try:
            for p, gradient in zip(held, gradients, strict=True):
                p.grad = self._image(gradient)
            _sgd_step()(self)
        finally:
            for p, gradient in zip(held, gradients, strict=True):
                p.grad = gradient
        return loss


def _sgd_step() -> Callable[..., Any]:
    """torch.optim.SGD.step without the hooks, which torch has put around a subclass's ``step``."""
    step = torch.optim.SGD.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]

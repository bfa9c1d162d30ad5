"""`NormalizedSGD`: SGD on gradients of a fixed length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchlimits.optim.mapped_sgd import MappedSGD


class NormalizedSGD(MappedSGD):
    r"""SGD on gradients scaled to the length :math:`\sqrt n`,

    .. math:: x \leftarrow x - \delta \frac{\sqrt n}{\|\nabla L\|} \nabla L,

    where n is the size of a parameter's last dimension. The step is adaptive: small where gradients
    are large. The critical scaling is that of SGD, lr = c_delta / n, and
    ``SpikedTensor.dynamics(optimizer)`` knows the limit, see
    `torchlimits.problems.spiked.dynamics.SpikedDynamics`.

    Source: "SGD-U" of *Momentum and adaptive step-sizes* (ICLR 2026).

    A parameter is a vector, or, where there are leading dimensions, independent replicas of one:
    every row along the last dimension is scaled by its own length. (The rows of a weight matrix
    are therefore scaled one by one.) A gradient of exactly 0 stays 0. Weight decay and momentum
    come after the scaling, as torch does them: the ridge is not scaled, and the momentum buffer
    holds scaled gradients. ``p.grad`` is left as ``backward`` made it.

    Args:
        params: parameters, or groups of them.
        lr: delta.
        options: momentum, weight_decay ... of `torch.optim.SGD`, ``differentiable`` excepted.

    Raises:
        ValueError: as torch.optim.SGD, and if ``differentiable`` is set, or a parameter is a scalar
            or has a sparse gradient.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.zeros(4))
        >>> optimizer = NormalizedSGD([x], lr=0.5)
        >>> (3 * x[0]).backward()
        >>> optimizer.step()
        >>> x.data
        tensor([-1.,  0.,  0.,  0.])
    """

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, **options: Any) -> None:
        super().__init__(params, lr, **options)
        if any(p.ndim == 0 for group in self.param_groups for p in group["params"]):
            raise ValueError(
                "expected parameters with at least one dimension, got a scalar: its gradient "
                "has no direction"
            )

    def _image(self, gradient: Tensor) -> Tensor:
        return _scaled(gradient)


def _scaled(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        raise ValueError("expected dense gradients, got sparse ones: torch has no norm of rows")
    length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    # not where(length > 0), because NaN has to stay visible
    scale = torch.where(length == 0, 0.0, gradient.shape[-1] ** 0.5 / length)
    return gradient * scale

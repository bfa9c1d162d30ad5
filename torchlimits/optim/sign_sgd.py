"""`SignSGD`: SGD on the signs of gradients."""

from __future__ import annotations

from torch import Tensor

from torchlimits.optim.mapped_sgd import MappedSGD


class SignSGD(MappedSGD):
    r"""SGD on the sign of each entry of the gradient,

    .. math:: x \leftarrow x - \delta\, sign(\nabla L).

    The critical scaling is that of SGD, lr = c_delta / N, and the dynamics of networks
    (``NetworkProblem.dynamics(optimizer)``) know the limit. It is ``p.grad.sign_()`` before the
    step of `torch.optim.SGD`: weight decay and momentum come after it, and ``p.grad`` is left as
    ``backward`` made it.

    Source: the sign descent of Bernstein et al. (arXiv 1802.04434).

    Args:
        params: parameters, or groups of them.
        lr: delta.
        options: momentum, weight_decay ... of `torch.optim.SGD`, ``differentiable`` excepted.

    Raises:
        ValueError: as torch.optim.SGD, and if ``differentiable`` is set, or a gradient is sparse.

    Example:
        >>> import torch
        >>> x = torch.nn.Parameter(torch.zeros(4))
        >>> optimizer = SignSGD([x], lr=0.5)
        >>> (3 * x[0]).backward()
        >>> optimizer.step()
        >>> x.data
        tensor([-0.5000,  0.0000,  0.0000,  0.0000])
    """

    def _image(self, gradient: Tensor) -> Tensor:
        if gradient.is_sparse:
            raise ValueError("expected dense gradients, got sparse ones: make them dense")
        return gradient.sign()

"""`SGDStep`: one step of torch.optim.SGD on a parameter, at a finite n."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.optim.sgd import SGDSettings


@dataclass(frozen=True)
class SGDStep:
    """One step of torch.optim.SGD on a parameter and its momentum buffer, in place.

    Args:
        settings: those of the parameter; plain SGD, which minimises.
        lr: delta.

    Example:
        >>> import torch
        >>> x, buffer = torch.ones(1), torch.zeros(1)
        >>> step = SGDStep(SGDSettings(step_size=1.0, momentum=0.5), lr=0.1)
        >>> for number in range(2):
        ...     step.update(x, buffer, torch.ones(1), first=number == 0)
        >>> x, buffer
        (tensor([0.7500]), tensor([1.5000]))
    """

    settings: SGDSettings
    lr: float

    @property
    def has_buffer(self) -> bool:
        """Whether there is momentum, and so a buffer."""
        return bool(self.settings.momentum != 0)

    def update(
        self, parameter: Tensor, buffer: Tensor, gradient: Tensor, *, first: bool,
        factor: float = 1.0,
    ) -> None:  # fmt: skip
        """Move a parameter.

        Args:
            parameter: what moves.
            buffer: the momentum buffer; without momentum it is not used.
            gradient: that of the loss; it is overwritten.
            first: whether this is the first step.
            factor: what a schedule makes of the learning rate at this step.
        """
        settings, lr = self.settings, self.lr * factor
        if settings.weight_decay:
            gradient = gradient.add_(parameter, alpha=float(settings.weight_decay))
        if not settings.momentum:
            parameter.sub_(gradient, alpha=lr)
            return
        if first:  # torch starts with the gradient, undamped
            buffer.copy_(gradient)
        else:
            buffer.mul_(settings.momentum).add_(gradient, alpha=1 - float(settings.dampening))
        if settings.nesterov:
            parameter.sub_(gradient, alpha=lr)
            parameter.sub_(buffer, alpha=lr * float(settings.momentum))
        else:
            parameter.sub_(buffer, alpha=lr)

    def update_rows(
        self, rows: Float[Tensor, "K columns S"], buffer: Float[Tensor, "held columns S"],
        pull: Float[Tensor, "vectors K S"], x: Float[Tensor, "vectors columns S"], *, first: bool,
        factor: float = 1.0,
    ) -> None:  # fmt: skip
        """Move rows along the sum of the outer products pull x^T, over the batch size.

        Args:
            rows: what moves.
            buffer: the momentum buffer; ``held`` is 0 without it.
            pull: dl/dh of each sample, and its counterpart for the further vectors.
            x: the samples and, if there are many of them, the further vectors.
            first, factor: as in `update`.
        """
        settings = self.settings
        if settings.momentum or settings.batch_size > 1:
            if len(x) > settings.batch_size:
                gradient = torch.einsum("bks,bcs->kcs", pull, x) / settings.batch_size
            else:
                gradient = (pull[:, :, None] * x[:, None]).mean(0)
            self.update(rows, buffer, gradient, first=first, factor=factor)
            return
        # the same without an array for the gradient
        if settings.weight_decay:
            rows.mul_(1 - self.lr * factor * settings.weight_decay)
        rows.addcmul_(pull[0][:, None], x[0], value=-self.lr * factor)

"""`NetworkDynamics`: effective dynamics of any head on a linear first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.field import NetworkField


class NetworkDynamics(EffectiveDynamics):
    """Effective dynamics of the statistics (theta, b, m, R), see `NetworkField`.

    Args:
        field: a `NetworkField`.
        optimizer: an `SGDLimit`; the rest as in `EffectiveDynamics`.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.NetworkProblem(
        ...     dim=100, width=2, head=torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(2, 2)),
        ...     loss=torch.nn.functional.cross_entropy, means=torch.eye(2, 100),
        ...     labels=torch.tensor([0, 1]), snr=4.0,
        ... )
        >>> dynamics = problem.dynamics(step_size=1.0)
        >>> u = problem.starts(1)[0]
        >>> theta, b, m, R = dynamics.split(u)
        >>> theta.shape, b.shape, m.shape, R.shape
        (torch.Size([6]), torch.Size([2]), torch.Size([2, 2]), torch.Size([2, 2]))
        >>> dynamics.risk(u).shape, 0 < dynamics.accuracy(u).item() < 1
        (torch.Size([]), True)
    """

    field: NetworkField
    limit: SGDLimit

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and u.requires_grad):
            return self.field.risk(self.checked(u))

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the class with the largest output is the label), shape ``(...)``.

        With one output, a logit, the class is its sign; a logit of 0 counts half.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u is not what the statistics' tensor is, or labels are no
                classes.
        """
        with torch.no_grad():
            return self.field.accuracy(self.checked(u))

    def split(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[
        Float[Tensor, "*batch P"], Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"],
        Float[Tensor, "*batch K K"],
    ]:  # fmt: skip
        """u as the head's parameters theta, the biases b, the overlaps m and the full R.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.field.layout.split(self.checked(u))

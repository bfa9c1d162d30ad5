"""`NetworkDynamics`: effective dynamics of any head on a linear first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.chain import NetworkChain
from torchlimits.problems.network.field import NetworkField


class NetworkDynamics(EffectiveDynamics):
    """Effective dynamics of the statistics (theta, b, m, R), see `NetworkField`.

    Args:
        field: a `NetworkField`.
        optimizer: an `SGDLimit`; other arguments are as in `EffectiveDynamics`.

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
        >>> dynamics.lengths(u).shape, dynamics.classes(u).tolist()  # no neuron has turned yet
        (torch.Size([2]), [-1, -1])
    """

    field: NetworkField
    limit: SGDLimit

    def reduced_chain(self) -> NetworkChain:
        """The exact chain of the same problem and optimizer."""
        limit = self.limit.at_finite_n()
        return NetworkChain(self.field.setting, dim=self.dim, limit=limit, schedule=self.schedule)

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        graph = u.requires_grad or _checks.requires_grad(self.field.snr)
        with torch.set_grad_enabled(torch.is_grad_enabled() and graph):
            return self.field.risk(self.checked(u))

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the class with the largest output is the label), shape ``(...)``.

        With one output, a logit, the class is its sign; a logit of 0 counts half.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics, or labels are not
                classes.
        """
        with torch.no_grad():
            return self.field.accuracy(self.checked(u))

    @property
    def width(self) -> int:
        """K, the number of neurons of the first layer."""
        return self.field.layout.width

    def lengths(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch K"]:
        r"""Lengths of the neurons, :math:`\|W_i\| = (|m_i|^2 + R_{ii})^{1/2}`, shape ``(..., K)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        _, _, m, R = self.split(u)
        square = m.square().sum(-1) + R.diagonal(dim1=-2, dim2=-1)
        return square.clamp_min(0).sqrt()

    def classes(
        self, u: Float[Tensor, "*batch k"], cosine: float = 0.5**0.5
    ) -> Int[Tensor, "*batch K"]:
        r"""The mean that each neuron has turned to, shape ``(..., K)``; -1 stands for none.

        It is the number a of the mean with :math:`m_i \cdot c_a / |c_a| > cosine\, \|W_i\|`: by
        default within 45 degrees. No neuron turns to a mean at 0.

        Args:
            u: statistics, shape ``(..., k)``.
            cosine: the cosine of the largest angle.

        Raises:
            ValueError: if all means are 0.
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        means = self.field.setting.coordinates
        if not bool(means.any()):
            raise ValueError(
                "expected means that neurons can turn to, got none that is not 0: see overlaps m "
                "with the directions by split(u)"
            )
        m = self.split(u)[2]
        units = means.to(m) / means.to(m).norm(dim=-1, keepdim=True).clamp_min(1e-30)
        overlap, nearest = (m @ units.mT).max(-1)
        return torch.where(overlap > cosine * self.lengths(u), nearest, -1)

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

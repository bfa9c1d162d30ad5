"""`NetworkDynamics`: effective dynamics of any head on a linear first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.langevin import LangevinDynamics
from torchlimits.optim.adaptive_field import AdaptiveField
from torchlimits.optim.adaptive_limit import AdaptiveLimit
from torchlimits.optim.mapped_field import MappedField
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.block_chain import chain_of
from torchlimits.problems.network.chain import NetworkChain
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.next_order import NextOrder
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory


class NetworkDynamics(EffectiveDynamics):
    """Effective dynamics of the statistics (theta, b, m, R), see `NetworkField`.

    Args:
        field: a `NetworkField`.
        optimizer: an `SGDLimit` or an `AdaptiveLimit`; other arguments are as in
            `EffectiveDynamics`.

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

    field: NetworkField | AdaptiveField | MappedField
    limit: SGDLimit | AdaptiveLimit
    #: the problem's statistics, with the optimizer's second moments where they count
    statistics: SummaryStatistics

    @classmethod
    def of(
        cls, field: NetworkField, limit: SGDLimit | AdaptiveLimit, schedule: Schedule | None,
        statistics: SummaryStatistics,
    ) -> NetworkDynamics:  # fmt: skip
        """The dynamics with what `torchlimits.track` records for them.

        Args:
            field, limit, schedule: as in the class.
            statistics: the problem's.
        """
        dynamics = cls(field, limit, schedule=schedule)
        dynamics.statistics = statistics
        if isinstance(limit, AdaptiveLimit) and isinstance(dynamics.field, AdaptiveField):
            moments = dynamics.field.moments
            if moments.names:
                dynamics.statistics = statistics | moments.statistics(limit.places)
        return dynamics

    @property
    def network(self) -> NetworkField:
        """The field of the network's own statistics."""
        field = self.field if isinstance(self.field, NetworkField) else self.field.base
        assert isinstance(field, NetworkField)
        return field

    def own(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch n"]:
        """The network's own statistics, without the state of the optimizer, ``(..., n)``.

        Args:
            u: statistics, shape ``(..., k)``, with or without that state.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        completed = self.field.completed(u) if isinstance(u, Tensor) else u
        return self.checked(completed)[..., : len(self.network.names)]

    def reduced_chain(self) -> NetworkChain:
        """The exact chain of the same problem and optimizer.

        Raises:
            NotImplementedError: if the optimizer keeps second moments, or each entry of a gradient
                is mapped by itself.
        """
        if isinstance(self.limit, AdaptiveLimit):
            raise NotImplementedError(
                "no exact chain is known for steps that do not stay in the span of weights and "
                "batch: take solve(..., band=True), or run the optimizer itself"
            )
        limit = self.limit.at_finite_n()
        return chain_of(self.network.setting, dim=self.dim, limit=limit, schedule=self.schedule)

    def next_order(self) -> NextOrder:
        """The same dynamics with the buffer of momentum at finite N.

        Raises:
            TypeError, ValueError: as `NextOrder`, which says of what it is known.
        """
        return NextOrder(self)

    def check_autonomous(self, what: str) -> None:
        """Raise ValueError if there is a schedule, or steps become smaller and smaller."""
        super().check_autonomous(what)
        if isinstance(self.limit, AdaptiveLimit) and self.limit.kind == "Adagrad":
            raise ValueError(
                f"expected second moments that settle for {what}, got Adagrad, whose sums of "
                "squares grow without end, so that parameters slow down and never rest: take Adam "
                "or RMSprop, or follow it by solve(...)"
            )

    def langevin(self) -> LangevinDynamics:
        """The same dynamics with their noise; see `EffectiveDynamics.langevin`.

        Raises:
            NotImplementedError: if the optimizer keeps second moments, or gradients are mapped.
        """
        if isinstance(self.limit, (AdaptiveLimit, MappedLimit)):
            raise NotImplementedError(
                "expected plain gradients and torch.optim.SGD for Langevin dynamics and laws, got "
                f"{self.limit.describe()}: second moments that are driven by noise may become "
                "negative, and averages over batches take too long for many paths; take "
                "solve(..., band=True)"
            )
        return super().langevin()

    def _law(self, u0: Tensor, instants: Tensor) -> Trajectory:
        if isinstance(self.limit, AdaptiveLimit):
            raise NotImplementedError(
                f"expected band=True with {self.limit.name}, got 'law': no chain of its steps is "
                "known that is cheaper than they are; run the optimizer itself for their law"
            )
        return super()._law(u0, instants)

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E[l], the population loss without the ridge, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        graph = u.requires_grad or _checks.requires_grad(self.network.snr)
        with torch.set_grad_enabled(torch.is_grad_enabled() and graph):
            return self.network.risk(self.own(u))

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
            return self.network.accuracy(self.own(u))

    def overall(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *, band: bool = False,
    ) -> Trajectory:  # fmt: skip
        """Predict the statistics over all blocks of a covariance; without blocks, as `solve`.

        They are those that the problem's ``overall`` records: the overlaps ``m[i,j]`` with the
        directions, and ``R[i,j]``, the Gram matrix of the neurons orthogonal to all of them.

        Args:
            u0, times: as in `solve`; the start has the statistics of the blocks.
            band: also predict the standard deviations.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` with the k names of ``overall``.

        Raises:
            ValueError, TypeError, RuntimeError: as `solve`.

        Example:
            >>> import torch, torchlimits as tl
            >>> student = tl.TeacherStudent(
            ...     dim=100, width=1, teacher_width=1, covariance=[(2.0, 0.2), (0.75, 0.8)]
            ... )
            >>> start = student.starts(1)[0]
            >>> student.dynamics(step_size=0.1).overall(start, [0.0, 1.0]).names
            ['head.weight[0]', 'm[0,0]', 'R[0,0]']
        """
        path = self.solve(u0, times)
        layout = self.network.layout

        def over_all(u: Tensor) -> Tensor:
            return layout.whole.join(*layout.over_all(self.own(u)))

        values, beside = over_all(path.values), {}
        if band:
            rows = path.values.reshape(-1, path.values.shape[-1])
            each = torch.func.vmap(torch.func.jacrev(over_all))(rows)
            by_u = each.reshape(*path.values.shape[:-1], *each.shape[1:])
            covariance = self.covariance(u0, times)
            spread = torch.einsum("...ij,...jl,...il->...i", by_u, covariance, by_u)
            beside = {"std": spread.clamp_min(0).sqrt()}
        names = layout.whole.names
        return Trajectory(path.times, path.steps, values, names, **beside, metadata=path.metadata)

    @property
    def width(self) -> int:
        """K, the number of neurons of the first layer."""
        return self.network.layout.width

    def lengths(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch K"]:
        r"""Lengths of the neurons, :math:`\|W_i\| = (|m_i|^2 + R_{ii})^{1/2}`, shape ``(..., K)``.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            ValueError, TypeError: if u cannot be a tensor of the statistics.
        """
        _, _, m, R = self.network.layout.over_all(self.own(u))
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
        means = self.network.setting.coordinates
        if not bool(means.any()):
            raise ValueError(
                "expected means that neurons can turn to, got none that is not 0: see overlaps m "
                "with the directions by split(u)"
            )
        m = self.network.layout.over_all(self.own(u))[2]
        units = means.to(m) / means.to(m).norm(dim=-1, keepdim=True).clamp_min(1e-30)
        overlap, nearest = (m @ units.mT).max(-1)
        return torch.where(overlap > cosine * self.lengths(u), nearest, -1)

    def split(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[
        Float[Tensor, "*batch P"], Float[Tensor, "*batch K"], Float[Tensor, "*batch K d"],
        Float[Tensor, "*batch K K"] | Float[Tensor, "*batch L K K"],
    ]:  # fmt: skip
        """u as the head's parameters theta, the biases b, the overlaps m and the full R.

        With a covariance in blocks, m are the overlaps with the parts of directions in them, and
        R is that of every block, ``(..., L, K, K)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.network.layout.split(self.own(u))

"""`OptimizerLimit`: how an optimizer moves the parameters behind the statistics, as n grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.vector_field import VectorField


class OptimizerLimit(ABC):
    """What an optimizer makes of a `VectorField`; each optimizer has a class.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=10, order=2, snr=2.0)
        >>> dynamics = problem.dynamics(step_size=1.0, momentum=0.5)
        >>> limit, u = dynamics.limit, torch.tensor([0.5, 1.0])
        >>> field = limit.prepared(dynamics.field)
        >>> limit.rates(field, u, step_size=1.0)  # of plain SGD: (1.5, -10) and (0, 10)
        (tensor([  3., -20.]), tensor([ 0., 40.]))
        >>> limit.diffusion(field, u.double(), step_size=1.0).shape, limit.speed
        (torch.Size([2, 2]), 2.0)
        >>> limit.describe()["momentum"], limit.check_at_rest("fixed points")
        (0.5, None)
        >>> limit.check_langevin() is None
        True
    """

    @property
    @abstractmethod
    def step_size(self) -> float | Tensor:
        """c_delta = lr * n, with the learning rate lr whose sum is the limit time."""

    @property
    @abstractmethod
    def speed(self) -> float:
        """How many times as fast as under plain SGD the fastest parameters move."""

    @abstractmethod
    def prepared(self, field: VectorField) -> VectorField:
        """The field as this optimizer needs it.

        Args:
            field: the vector field.

        Raises:
            ValueError: if the field does not have what the optimizer's options need.
        """

    @abstractmethod
    def rates(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """Drift and corrector of the statistics under this optimizer.

        Args:
            field: the vector field.
            u: statistics, shape ``(..., k)``.
            step_size: c_delta at that time.
        """

    @abstractmethod
    def diffusion(
        self, field: VectorField, u: Float[Tensor, "*batch k"], step_size: float | Tensor
    ) -> Float[Tensor, "*batch k k"]:
        """n times the covariance that the statistics gain per unit of limit time.

        Args:
            field: the vector field.
            u: statistics, shape ``(..., k)``, float64.
            step_size: c_delta at that time.

        Raises:
            NotImplementedError: if the field does not know its increments' covariance.
        """

    def check_at_rest(self, what: str) -> None:  # noqa: B027, most have nothing to refuse
        """Raise ValueError if parameters never rest under this optimizer; here they may.

        Args:
            what: what needs a state that stays as it is, for the message.
        """

    def check_langevin(self) -> None:  # noqa: B027, as above
        """Raise NotImplementedError if Langevin paths are not known under this optimizer."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The settings, in a form that JSON can hold."""

"""`VectorField`: population drift and corrector of some statistics, for plain SGD."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits._dir import OwnNames
from torchlimits.contracts.geometry import Geometry


def matrices_of_each(
    u: Float[Tensor, "*batch k"], matrix: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*batch k k"]:
    """A matrix for each point, computed one after the other in float64.

    Args:
        u: statistics, shape ``(..., k)``.
        matrix: ``(k,)`` -> ``(k, k)``.

    Example:
        >>> import torch
        >>> matrices_of_each(torch.ones(3, 2), torch.diag).shape
        torch.Size([3, 2, 2])
    """
    flat = u.reshape(-1, u.shape[-1]).double().detach()
    found = torch.stack([matrix(point) for point in flat])
    return found.reshape(*u.shape, u.shape[-1]).to(u.dtype)


class VectorField(OwnNames, nn.Module, ABC):
    r"""The population drift -f and the population corrector g of k statistics, for plain SGD.

    Subclasses give `terms`, and as much of the rest as they know. They never deal with the
    optimizer: its sign, momentum, batches, weight decay and schedule are applied by
    `EffectiveDynamics`, which refuses an optimizer that needs something a field does not have.

    Source: Theorem 2.2 of Ben Arous, Gheissari and Jagannath (arXiv 2206.04030).

    Args:
        names: the names of the k statistics.
        dim: the dimension n, with which a step has the size c_delta / n.

    Attributes:
        parameter_names: the name of the parameter behind each of the k statistics; None where all
            parameters have the same settings.
        quadratic_in: the name of the parameter whose step enters the statistics to second order.
        rtol, atol: the tolerances of `EffectiveDynamics.solve`, no finer than `error`.
        error: the absolute error of `terms` where u is of order 1.
        settling_time: how long `EffectiveDynamics.fixed_points` lets its starts flow. A few times
            the slowest relaxation time, in many problems 1/ridge, is enough to tell attractors from
            other zeros; it need not be exact, as points are refined afterwards.

    Example:
        >>> import torch, torchlimits as tl
        >>> class Decay(VectorField):
        ...     def terms(self, u):
        ...         return -u, torch.ones_like(u)
        ...     def increment_covariance(self, u, step_size):  # for diffusion, bands, noise
        ...         return torch.ones_like(u)[..., None]
        ...     def decay(self, u):  # for weight decay
        ...         return u
        ...     def gradient_length(self, u):  # for normalised gradients
        ...         return torch.full_like(u[..., 0], 2.0)
        >>> field, u = Decay(["r"], dim=100), torch.ones(1)
        >>> dynamics = tl.EffectiveDynamics(field, step_size=0.5)
        >>> dynamics.solve(u, [0.0, 50.0], band=True).std[-1]  # (c / 2n)^(1/2)
        tensor([0.0500], dtype=torch.float64)
        >>> field.terms(u), field.increment_covariance(u, 0.5), field.decay(u)
        ((tensor([-1.]), tensor([1.])), tensor([[1.]]), tensor([1.]))
        >>> field.gradient_length(u), field.normalized_corrector(u)
        (tensor(2.), tensor([0.2500]))
        >>> field.mean_square_gradient(u)  # known where the length is
        (tensor(4.), tensor(0.))
        >>> field.square_covariance(u, 0.5)
        (tensor([0.]), tensor(0.))

    The rest has defaults:

        >>> field.jacobian(lambda u: field.terms(u)[0], u[None])
        tensor([[[-1.]]])
        >>> field.for_band() is field.for_classes() is field.for_ascent(), field.check_start(u)
        (True, None)
        >>> field.completed(u) is field.settled(u) is u, field.start_names, field.pace(u)
        (True, ['r'], tensor(0.))
        >>> field.describe(), field.equation()
        ({}, 'du/dt = -f(u) + g(u)')
    """

    parameter_names: Sequence[str] | None = None
    quadratic_in: str | None = None
    geometry: Geometry = Geometry()
    rtol: float = 1e-6
    atol: float = 1e-8
    error: float = 1e-13
    settling_time: float = 100.0

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.names, self.dim = list(names), dim

    @abstractmethod
    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f(u) and g(u) of the loss alone, for plain SGD with batches of 1 and c_delta = 1.

        Args:
            u: statistics, shape ``(..., k)``, float32 or float64.
        """

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        r"""The limit of :math:`Cov(u(X_{l+1}) - u(X_l)) / \delta^2` of one step of plain SGD.

        Weight decay is left out; the increment's second-order part, times ``step_size``, is
        included where it is of the same order as the first.

        Args:
            u: statistics, shape ``(..., k)``, float64.
            step_size: c_delta; negative where the loss is ascended.

        Raises:
            NotImplementedError: if it is not known.
        """
        raise NotImplementedError(
            f"the diffusion matrix of {type(self).__name__} is not known to this package: define "
            "increment_covariance(u, step_size)"
        )

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """How fast the statistics change when all parameters grow at rate 1, Du(x)[x].

        That is p u for statistics that are homogeneous of degree p. Weight decay needs it.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            NotImplementedError: if it is not known.
        """
        raise NotImplementedError(
            f"how the statistics of {type(self).__name__} decay is not known: define decay(u), "
            "p u for statistics of degree p in the parameters"
        )

    def gradient_length(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        r"""The limit of :math:`\|\nabla L\| / \sqrt n` for one sample; normalised SGD needs it.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            NotImplementedError: if it is not known.
        """
        raise NotImplementedError(
            f"the length of the gradient of {type(self).__name__} is not known: define "
            "gradient_length(u)"
        )

    def normalized_corrector(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The corrector over the squared `gradient_length`.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.terms(u)[1] / self.gradient_length(u)[..., None] ** 2

    def mean_square_gradient(
        self, u: Float[Tensor, "*batch k"], trained: Collection[str] | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        r"""The mean square of a sample's gradient and the square of its mean, over n.

        AdaGrad-Norm needs :math:`E\|\nabla L\|^2 / n` for one sample and
        :math:`\|E \nabla L\|^2 / n`; a batch of B has 1/B of the first and 1 - 1/B of the second.
        The first is of order 1; what is of order 1/n, in it and all of the second, may be left
        out. By default the first is the square of `gradient_length`, the second 0.

        Args:
            u: statistics, shape ``(..., k)``.
            trained: the names of the parameters whose gradients count; None stands for all.

        Raises:
            NotImplementedError: if it is not known.
        """
        self._know_squares("mean_square_gradient(u, trained)")
        square = self.gradient_length(u) ** 2
        return square, torch.zeros_like(square)

    def square_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float,
        trained: Collection[str] | None = None,
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch"]]:  # fmt: skip
        r"""How :math:`q = \|\nabla L\|^2 / n` of a sample fluctuates, for bands with AdaGrad-Norm.

        They are the limits of :math:`Cov(u(X_{l+1}) - u(X_l), q) / \delta` of one step of plain
        SGD and of Var q; both are 0 where the gradient's length tends to a constant, as it does
        where `gradient_length` is known.

        Args:
            u: statistics, shape ``(..., k)``, float64.
            step_size: as in `increment_covariance`.
            trained: as in `mean_square_gradient`.

        Raises:
            NotImplementedError: if they are not known.
        """
        self._know_squares("square_covariance(u, step_size, trained)")
        return torch.zeros_like(u), torch.zeros_like(u[..., 0])

    def _know_squares(self, wanted: str) -> None:
        """Raise NotImplementedError unless the gradient has a length that does not fluctuate."""
        if type(self).gradient_length is VectorField.gradient_length:
            raise NotImplementedError(
                f"the squared gradients of {type(self).__name__}, which AdaGrad-Norm adds up, are "
                f"not known: define {wanted}, or gradient_length(u) where the length does not "
                "fluctuate"
            )

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives of a combination of the terms, by autograd in reverse mode.

        Args:
            velocity: the combination, ``(S, k)`` -> ``(S, k)``, row by row.
            u: S points, shape ``(S, k)``.
        """
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            # + 0 u: constant entries have derivatives too
            entries = (velocity(u) + 0 * u).unbind(-1)
        # in reverse mode: forward mode took three times as long
        rows = [
            torch.autograd.grad(
                entry, u, torch.ones_like(entry), retain_graph=True, materialize_grads=True
            )[0]
            for entry in entries
        ]
        return torch.stack(rows, dim=-2)

    def pace(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """A number that changes most along a solution where derivatives change most; here 0.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return torch.zeros_like(u[..., 0])

    def for_band(self) -> VectorField:
        """The same field, as fast as possible for derivatives that are right to 1e-3."""
        return self

    def for_classes(self) -> VectorField:
        """The same field, as fast as possible for the question where solutions go."""
        return self

    def for_ascent(self) -> VectorField:
        """The field whose terms, with the sign turned, are those of ascending the loss.

        The same one, unless it jumps: where solutions slide along a jump depends on the sign.
        """
        return self

    @property
    def start_names(self) -> list[str]:
        """The names of the statistics that a start has to have; `completed` adds the others."""
        return self.names

    def completed(self, u: Any) -> Any:
        """u with what a start may leave out: the state of a fresh optimizer. Here u itself.

        Args:
            u: statistics of a start, as they were given.
        """
        return u

    def settled(self, u: Any) -> Any:
        """u with the state that an optimizer has after many steps at one place. Here u itself.

        Args:
            u: statistics, as they were given.
        """
        return u

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError if no parameters have these statistics.

        Args:
            u0: finite statistics, shape ``(..., k)``.
        """

    def describe(self) -> dict[str, Any]:
        """The parameters of the problem that a reader of the prediction wants to see."""
        return {}

    def equation(self, corrector: bool = True) -> str:
        """The equation, in Markdown.

        Args:
            corrector: False leaves the corrector out.
        """
        return "du/dt = -f(u) + g(u)" if corrector else "du/dt = -f(u)"

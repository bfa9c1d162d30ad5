"""`Flow`: a vector field as an optimizer with its schedule moves along it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits._dir import OwnNames
from torchlimits.contracts.geometry import Geometry
from torchlimits.contracts.vector_field import VectorField
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.schedule import Schedule

#: points in one evaluation of derivatives, which holds all of an expectation's nodes
POINTS = 32


class Flow(OwnNames, nn.Module):
    """The right-hand side -f + g of the effective dynamics, with its derivatives and noise.

    Args:
        field: drift and corrector of the statistics.
        limit: what the optimizer makes of them.
        schedule: c_delta(t), in place of the limit's c_delta.

    Raises:
        ValueError: if the field does not have what the optimizer needs.
    """

    def __init__(
        self, field: VectorField, limit: OptimizerLimit, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.field, self.limit, self.schedule = limit.prepared(field), limit, schedule

    @property
    def names(self) -> list[str]:
        """The names of the k statistics."""
        return self.field.names

    @property
    def dim(self) -> int:
        """The dimension n that turns limit time into steps."""
        return self.field.dim

    @property
    def geometry(self) -> Geometry:
        """What is known about the space of the statistics."""
        return self.field.geometry

    @property
    def rtol(self) -> float:
        """The relative tolerance that `EffectiveDynamics.solve` takes."""
        return self.field.rtol

    @property
    def atol(self) -> float:
        """The absolute tolerance that `EffectiveDynamics.solve` takes."""
        return self.field.atol

    @property
    def error(self) -> float:
        """The absolute error of `forward` where u is of order 1."""
        return self.field.error

    def drift(
        self, u: Float[Tensor, "*batch k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "*batch k"]:
        """The population drift -f(u), with the optimizer's factors.

        Args:
            u: statistics, shape ``(..., k)``.
            t: limit time, at which c_delta is taken if there is a schedule; second moments change
                with the number of steps.

        Raises:
            ValueError, TypeError: as in `forward`.
        """
        return self._rates(u, self.step_size_at(t))[0]

    def corrector(
        self, u: Float[Tensor, "*batch k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "*batch k"]:
        """The population corrector g(u), with c_delta and the optimizer's factors in it.

        Args:
            u: statistics, shape ``(..., k)``.
            t: limit time, at which c_delta is taken if there is a schedule.

        Raises:
            ValueError, TypeError: as in `forward`.
        """
        return self._rates(u, self.step_size_at(t))[1]

    def forward(
        self, t: Float[Tensor, ""] | float, u: Float[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch k"]:
        """The right-hand side -f(u) + g(u), shape ``(..., k)``, on u's device and dtype.

        Args:
            t: limit time, at which c_delta is taken if there is a schedule.
            u: statistics, shape ``(..., k)``.

        Raises:
            TypeError: if u is not a float32 or float64 tensor.
            ValueError: if its last dimension is not k, or it is not finite.
        """
        drift, corrector = self._rates(u, self.step_size_at(t))
        return drift + corrector

    def diffusion(
        self, u: Float[Tensor, "*batch k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "*batch k k"]:
        r"""The diffusion matrix of the unrescaled statistics times n,

        .. math:: D(u) = \lim_n n\,\delta\, Cov((u(X_{l+1}) - u(X_l)) / \delta \mid u(X_l) = u),

        so that D/n is the covariance that u gains per unit of limit time at dimension n. It is
        n delta J V J^T of Theorem 2.2, with the increment's second-order part where that is of the
        same order (in R, for the mixtures). Shape ``(..., k, k)``.

        Args:
            u: statistics, shape ``(..., k)``.
            t: limit time, at which c_delta is taken if there is a schedule.

        Raises:
            NotImplementedError: if D is not known for this problem.
            ValueError, TypeError: as in `forward`.
        """
        exact = self.checked(u).double()
        if not exact.numel():
            return u.new_zeros(*u.shape, u.shape[-1])
        return self.limit.diffusion(self.field, exact, self.step_size_at(t)).to(u.dtype)

    def jacobian(
        self, u: Float[Tensor, "S k"], t: Float[Tensor, ""] | float = 0.0
    ) -> Float[Tensor, "S k k"]:
        """The derivatives of -f + g at each of S points.

        Args:
            u: S points, shape ``(S, k)``.
            t: limit time, at which c_delta is taken if there is a schedule.
        """
        pieces = self.checked(u).split(POINTS)
        return torch.cat([self.field.jacobian(partial(self, float(t)), piece) for piece in pieces])

    def on(self, field: VectorField) -> Flow:
        """The same optimizer and schedule along another ``field``."""
        return Flow(field, self.limit, self.schedule)

    def step_size_at(self, t: Float[Tensor, ""] | float = 0.0) -> float | Tensor:
        """c_delta at limit time t, as a tensor where it has a gradient.

        Args:
            t: limit time.

        Raises:
            ValueError: if there is a schedule that has ended by then.
        """
        return self.limit.step_size if self.schedule is None else self.schedule(float(t))

    def steps(self, instants: Float[Tensor, " T"]) -> Int[Tensor, " T"]:
        """The numbers of SGD's steps that end at limit times.

        Args:
            instants: limit times, shape ``(T,)``.

        Raises:
            ValueError: if the schedule does not get there.
        """
        if self.schedule is not None:
            return self.schedule.steps(instants, self.dim)
        # gradient flow has no steps of its own: count those of c_delta = 1
        learning_rate = (_checks.plain(self.limit.step_size) or 1.0) / self.dim
        return (instants / learning_rate).round().long()

    def checked(self, u: object) -> Tensor:
        """u itself, if it can be a tensor of the statistics.

        Args:
            u: statistics, shape ``(..., k)``.

        Raises:
            TypeError: if u is not a float32 or float64 tensor.
            ValueError: if its last dimension is not k.
        """
        if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
            what = u.dtype if isinstance(u, Tensor) else type(u).__name__
            raise TypeError(f"expected u as a float32 or float64 tensor, got {what}: convert it")
        k = len(self.names)
        if u.ndim == 0 or u.shape[-1] != k:
            raise ValueError(
                f"expected u of shape (..., {k}) for the statistics {', '.join(self.names[:3])} "
                f"... {self.names[-1]}, got shape {tuple(u.shape)}"
            )
        return u

    def check_autonomous(self, what: str) -> None:
        """Raise ValueError if there is a schedule; ``what`` needs a constant step size."""
        if self.schedule is not None:
            raise ValueError(
                f"expected a constant step size for {what}, got the schedule "
                f"{self.schedule.describe()}: the dynamics change in time; make dynamics with the "
                "step size of one moment"
            )

    def describe(self) -> dict[str, Any]:
        """The parameters that a reader of the prediction wants to see, in a form JSON can hold."""
        schedule = {} if self.schedule is None else {"schedule": self.schedule.describe()}
        return {**self.field.describe(), "dim": self.dim, **self.limit.describe(), **schedule}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown.

        Args:
            corrector: False leaves the corrector out.
        """
        return self.field.equation(corrector)

    def _rates(self, u: object, step_size: float | Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self.limit.rates(self.field, self.checked(u), step_size)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            # decompositions are the first to notice
            raise ValueError("expected a finite u, got NaN or infinity in it") from error

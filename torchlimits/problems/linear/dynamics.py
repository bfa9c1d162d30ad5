"""`LeastSquaresDynamics`: effective dynamics of one-pass least squares, solved exactly."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics, covariance_at_start
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.linear.chain import LeastSquaresChain
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.linear_flow import LinearFlow
from torchlimits.problems.linear.stability import check_steps, limit_of


class LeastSquaresDynamics(EffectiveDynamics):
    r"""Effective dynamics of the errors D_l, see `LeastSquaresField`.

    With a constant step size they are linear with constant coefficients, and the matrix is
    symmetric up to a scaling by :math:`\sqrt{f_l}`: solutions and bands are exact at any times, by
    its eigenvectors, stiff or not, up to a thousand levels and more. With a schedule, or where a
    gradient is asked for, they are integrated as any others.

    Args:
        field: the errors' field.
        settings: what SGD does.
        schedule: c_delta(t).
    """

    field: LeastSquaresField
    limit: SGDLimit

    def __init__(
        self, field: LeastSquaresField, settings: SGDSettings, schedule: Schedule | None = None
    ) -> None:
        super().__init__(field, SGDLimit.of(settings), schedule=schedule)
        plain = settings.plain()
        if schedule is None and not plain.maximize:
            c, limit = float(plain.step_size), limit_of(field, plain)
            check_steps(field, c, plain)
            if c > limit * (1 + 1e-9):
                _checks.warn_user(
                    f"the risk diverges: c_delta={c:.4g} is above the stability limit {limit:.4g}, "
                    "2 B (1 - momentum) N / tr Lambda for Gaussian inputs; take a smaller learning "
                    "rate or larger batches"
                )

    @property
    def settings(self) -> SGDSettings:
        """What the optimizer does, in numbers."""
        return self.limit.settings.plain()

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The risk, as `torchlimits.LinearModel.risk`."""
        return self.field.risk(u)

    def reduced_chain(self) -> LeastSquaresChain:
        """The exact chain of the same problem and optimizer.

        Raises:
            NotImplementedError: if fourth moments were measured.
            ValueError: if the steps are not those of plain SGD.
        """
        return LeastSquaresChain(self.field, self.limit.at_finite_n(), self.schedule)

    # --- exact solutions --------------------------------------------------------------------------

    @cached_property
    def _whole(self) -> LinearFlow:
        return self._linear(self)

    def _linear(self, velocity: Any) -> LinearFlow:
        zero = torch.zeros(1, len(self.names), dtype=torch.float64, device="cpu")
        A = self.field.jacobian(partial(velocity, 0.0), zero)[0]
        b = velocity(0.0, zero)[0].detach()
        return LinearFlow.of(A.detach(), b, self.field.levels.fractions.sqrt())

    def _solution(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, method: str, *,
        corrector: bool = True, graph: bool = False,
    ) -> Tensor:  # fmt: skip
        if self.schedule is not None:
            rates = [float(_checks.plain(self.step_size_at(t))) for t in instants.tolist()]
            check_steps(self.field, max(rates), self.settings)
        if graph or self.schedule is not None or method != "auto":
            return super()._solution(
                u0, instants, rtol, atol, method, corrector=corrector, graph=graph
            )
        flow = self._whole if corrector else self._linear(lambda t, u: self.drift(u, t))
        start = u0.detach().double()
        values = flow.near(start).values(start, instants.to(start.device))
        if not bool(values.isfinite().all()):
            raise RuntimeError(
                f"the errors grow beyond all bounds before t = {float(instants[-1]):g}: ask for "
                "earlier times, or take a smaller step size"
            )
        return values

    def _covariances(self, u0: Tensor, instants: Tensor, initial: Tensor | None) -> Any:
        """The covariances at all instants, an iterator for each start."""
        k = len(self.names)
        given = covariance_at_start(initial, k).to(u0.device)
        starts = u0.detach().double().reshape(-1, k)
        before = given.expand(*u0.shape[:-1], k, k).reshape(-1, k, k)
        flow, times = self._whole.near(u0), instants.to(u0.device)
        for start, P in zip(starts, before, strict=True):
            yield flow.covariances(lambda u: self.diffusion(u) / self.dim, start, times, P)

    def _band(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, initial: Tensor | None,
        method: str,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if self.schedule is not None or not u0.numel():
            return super()._band(u0, instants, rtol, atol, initial, method)
        values = self._solution(u0, instants, rtol, atol, method)
        std = [
            torch.stack([P.std() for P in one]) for one in self._covariances(u0, instants, initial)
        ]
        return values, torch.stack(std).reshape(values.shape)

    def _fluctuating(
        self, u0: Tensor, instants: Tensor, rtol: float, atol: float, initial: Tensor | None,
        method: str = "auto",
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if self.schedule is not None or not u0.numel():
            return super()._fluctuating(u0, instants, rtol, atol, initial, method)
        values = self._solution(u0, instants, rtol, atol, method)
        P = [
            torch.stack([P.matrix() for P in one])
            for one in self._covariances(u0, instants, initial)
        ]
        return values, torch.stack(P).reshape(*values.shape, values.shape[-1])

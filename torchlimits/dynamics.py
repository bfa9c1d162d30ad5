"""`EffectiveDynamics`: what high-dimensional theory predicts for the summary statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import checks
from torchlimits.settings import SGDSettings
from torchlimits.trajectory import Trajectory


class EffectiveDynamics(nn.Module, ABC):
    r"""The ballistic limit of SGD's summary statistics, an autonomous ODE

    .. math:: \dot u = -f(u) + g(u)

    with the population drift -f and the population corrector g, for steps of size
    :math:`\delta = c_\delta / n`; t = (number of steps) * delta.

    Source: Theorem 2.2 of Ben Arous, Gheissari and Jagannath (arXiv 2206.04030).

    Subclasses give ``_terms(u)``: -f and g at plain SGD with c_delta = 1 and batch size 1; the
    optimizer's factors (`SGDSettings`) come on top here.

    Args:
        names: of the k statistics.
        dim: the dimension n that turns limit time into steps.
        settings: what the optimizer does.
    """

    #: what `solve` asks of torchdiffeq unless told otherwise: no finer than the error of `forward`
    rtol: float = 1e-6
    atol: float = 1e-8

    def __init__(self, names: Sequence[str], dim: int, settings: SGDSettings) -> None:
        super().__init__()
        self.names = list(names)
        self.dim = dim
        self.settings = settings

    @abstractmethod
    def _terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f(u) and g(u) for plain SGD, batch size 1, c_delta = 1."""

    def drift(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The population drift -f(u), with the optimizer's factor; errors as in `forward`."""
        return self.settings.drift_factor * self._evaluated(u)[0]

    def corrector(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The population corrector g(u), with c_delta and the optimizer's factors in."""
        return self.settings.corrector_factor * self._evaluated(u)[1]

    def forward(
        self, t: Float[Tensor, ""] | float, u: Float[Tensor, "*batch k"]
    ) -> Float[Tensor, "*batch k"]:
        """The right-hand side -f(u) + g(u) at u, shape ``(..., k)``, on u's device and dtype.

        Raises:
            TypeError: if u is no float32 or float64 tensor.
            ValueError: if its last dimension is not k, or it is not finite.
        """
        drift, corrector = self._evaluated(u)
        return self.settings.drift_factor * drift + self.settings.corrector_factor * corrector

    def solve(
        self,
        u0: Float[Tensor, "*batch k"],
        times: Float[Tensor, " T"] | Sequence[float],
        *,
        rtol: float | None = None,
        atol: float | None = None,
        corrector: bool = True,
    ) -> Trajectory:
        """Integrate from u0 at ``times[0]`` with torchdiffeq's dopri5.

        Args:
            u0: start, shape ``(..., k)``; every leading index is a solution of its own, and each
                obeys the tolerance by itself.
            times: limit times, shape ``(T,)``, increasing.
            rtol, atol: the solver's tolerances; the defaults fit the error of the right-hand side.
            corrector: False leaves the corrector out: gradient flow on the population loss.

        Returns:
            The predicted `Trajectory`, values ``(..., T, k)`` in float64.

        Raises:
            ValueError: if times do not increase or u0 is not ``(..., k)`` and finite.
            TypeError: if u0 is no float32 or float64 tensor.
            RuntimeError: if the solver cannot reach the tolerance.
        """
        instants = checks.increasing_times(times)
        u0 = self._checked(u0)
        if not bool(u0.isfinite().all()):
            raise ValueError("expected a finite start u0, got NaN or infinity in it")
        self._check_start(u0)
        rtol = self.rtol if rtol is None else checks.positive("rtol", rtol)
        atol = self.atol if atol is None else checks.positive("atol", atol)
        if len(instants) == 1:
            values = u0[..., None, :]
        else:
            right_hand_side = self if corrector else _GradientFlow(self)
            values = _integrate(right_hand_side, u0, instants, rtol, atol)
        learning_rate = self.settings.step_size / self.dim
        steps = (instants / learning_rate).round().long()
        return Trajectory(instants, steps, values, self.names, metadata=self._metadata(corrector))

    def _evaluated(self, u: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self._terms(self._checked(u))
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            # decompositions are the first to notice
            raise ValueError("expected a finite u, got NaN or infinity in it") from error

    def _check_start(self, u0: Tensor) -> None:
        """ValueError if no parameters have these statistics; subclasses know which."""

    def _checked(self, u: Tensor) -> Tensor:
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

    def describe(self) -> dict[str, Any]:
        """Parameters that a reader of the prediction wants to see, JSON-able."""
        return {"dim": self.dim, **self.settings.describe()}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        return "du/dt = -f(u) + g(u)" if corrector else "du/dt = -f(u)"

    def _metadata(self, corrector: bool) -> dict[str, Any]:
        return {
            "equation": self.equation(corrector),
            "parameters": {**self.describe(), "corrector": corrector},
        }


class _GradientFlow(nn.Module):
    """du/dt = -f(u): an EffectiveDynamics without its corrector."""

    def __init__(self, dynamics: EffectiveDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        return self.dynamics.drift(u)


def _integrate(
    right_hand_side: nn.Module, u0: Tensor, times: Tensor, rtol: float, atol: float
) -> Tensor:
    """Values (..., T, k). The state is float64: in float32 the step control stalls near 4e-7."""
    state = u0.to(torch.float64)
    try:
        with torch.no_grad():
            solution = torchdiffeq.odeint(
                right_hand_side,
                state,
                times.to(state.device),
                rtol=rtol,
                atol=atol,
                method="dopri5",
                options={"norm": _largest_row_rms},
            )
    except (AssertionError, ValueError) as error:
        # torchdiffeq asserts that its step does not vanish; ValueError: u is no longer finite
        raise RuntimeError(
            f"the solver could not hold rtol={rtol:g}, atol={atol:g} between t={times[0]:g} and "
            f"t={times[-1]:g} ({error}): the solution blows up, or the tolerance is finer than the "
            "right-hand side's own error; try a larger rtol or a shorter time"
        ) from error
    return torch.as_tensor(solution).movedim(0, -2)


def _largest_row_rms(error: Tensor) -> Tensor:
    """torchdiffeq's default is the RMS over the batch, which dilutes one member's error."""
    return error.square().mean(dim=-1).sqrt().max()

"""`ClosedField`: drift and corrector of a student of a two-layer teacher, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import Averages, Squares
from torchlimits.contracts.vector_field import VectorField
from torchlimits.problems.network.closed import TwoLayerAverages, generalization_error
from torchlimits.problems.network.closed_form import ClosedForm
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting

#: roughly the most numbers in one tensor of the closed forms
_PIECE = 2**21


@dataclass(frozen=True)
class ClosedTeacher:
    """What the averages of a student depend on besides its statistics.

    Args:
        form: the closed form of the activation.
        rows: the teacher's rows in units of the inputs' standard deviation, ``(M, d)``: its
            pre-activations are t = rows z, z standard normal.
        second: the teacher's second layer w, ``(M,)``.
        student: the student's second layer v, ``(K,)``; None where it is trained.
        noise: the standard deviation of the noise in the teacher's output.
    """

    form: ClosedForm
    rows: Float[Tensor, "M d"]
    second: Float[Tensor, " M"]
    student: Float[Tensor, " K"] | None
    noise: float


class ClosedField(NetworkField):
    """A `NetworkField` with averages in closed form; nodes remain for the noise of one step.

    Args:
        setting, dim, rule, kinks: as in `NetworkField`.
        teacher: what else the averages depend on.
    """

    def __init__(
        self, setting: Setting, *, dim: int, rule: Rule, kinks: Kinks, teacher: ClosedTeacher
    ) -> None:
        super().__init__(setting, dim=dim, rule=rule, kinks=kinks)
        self.teacher = teacher

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of the closed forms where u is of order 1."""
        return self.teacher.form.error

    @property
    def rtol(self) -> float:  # type: ignore[override]
        """Finer than with nodes, as errors fall by many powers of ten if the student succeeds."""
        return max(1e-7, self.error)

    @property
    def atol(self) -> float:  # type: ignore[override]
        """A hundredth of `rtol`."""
        return self.rtol / 100

    @property
    def _at_once(self) -> int:
        fields = self.layout.width + len(self.teacher.second)
        return max(1, _PIECE // (self.layout.width * fields) ** 2)

    def _averages(self, u: Float[Tensor, "S k"]) -> Averages:
        _, _, m, R = self.layout.split(u)
        snr, K = self.setting.snr, self.layout.width
        covariance, v = self._fields(u)
        w, rows = self.teacher.second.to(u), self.teacher.rows.to(u)
        found = TwoLayerAverages.of(self.teacher.form, covariance, v, w, self.teacher.noise)
        student, teacher = found.response.split([K, len(w)], dim=-1)
        signal = student @ m / snr + teacher @ rows / snr**0.5
        theta = found.head if self.teacher.student is None else found.head[..., :0]
        bias = found.head.new_zeros(found.head.shape)
        return Averages(theta, bias, signal, student @ R / snr, found.gram)

    def gradients(
        self, u: Float[Tensor, "*batch k"], axes: Float[Tensor, "d J"]
    ) -> tuple[Averages, Squares]:
        """Averages in closed form, squares at nodes; see `GradientField.gradients`."""
        return self.averages(u), self.squares(u, axes)

    def _fields(self, u: Float[Tensor, "S k"]) -> tuple[Tensor, Tensor]:
        """The covariance of (h, t), ``(S, K + M, K + M)``, and v."""
        theta, _, m, R = self.layout.split(u)
        rows, snr = self.teacher.rows.to(u), self.setting.snr
        overlaps = m @ rows.mT / snr**0.5
        own = (R + m @ m.mT) / snr
        teacher = (rows @ rows.mT).expand(*own.shape[:-2], -1, -1)
        upper = torch.cat([own, overlaps], dim=-1)
        covariance = torch.cat([upper, torch.cat([overlaps.mT, teacher], dim=-1)], dim=-2)
        fixed = self.teacher.student
        return covariance, theta if fixed is None else fixed.to(u).expand(len(u), -1)

    def generalization_error(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """Half the mean square of student minus teacher, without noise, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        covariance, v = self._fields(u.reshape(-1, u.shape[-1]).double())
        w = self.teacher.second.to(covariance)
        error = generalization_error(self.teacher.form, covariance, v, w)
        return error.reshape(u.shape[:-1]).to(u.dtype)

    def risk(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """The generalisation error and the noise's share, half its variance, shape ``(...)``.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        return self.generalization_error(u) + self.teacher.noise**2 / 2

    def jacobian(self, velocity: Any, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k k"]:
        """Derivatives of the terms, which closed forms have; see `VectorField.jacobian`."""
        return VectorField.jacobian(self, velocity, u)

    def for_band(self) -> NetworkField:
        """The same field with a quarter of the nodes for the noise, accurate to 1e-3."""
        if self.rule.hermite:
            return self
        return self.with_rule(self.rule.of_count(max(256, self.rule.most // 4)))

    def with_rule(self, rule: Rule) -> NetworkField:
        """The same field on other nodes.

        Args:
            rule: the rule of the nodes.
        """
        return ClosedField(
            self.setting, dim=self.dim, rule=rule, kinks=self.kinks, teacher=self.teacher
        )

    def describe(self) -> dict[str, Any]:
        """The problem's constants, and how averages are computed."""
        rule = self.rule
        kind = "Gauss-Hermite" if rule.hermite else "Sobol"
        return {
            "width": self.layout.width, "snr": self.setting.snr,
            "averages": f"closed form, {type(self.teacher.form).__name__}",
            "nodes of the noise": f"{len(rule.nodes.weights)} ({kind})",
        }  # fmt: skip

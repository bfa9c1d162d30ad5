"""`MappedField`: drift and corrector of gradients that are mapped before the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks, _linalg
from torchlimits._once import without_derivatives
from torchlimits.contracts.gradient_field import Batches, GradientField
from torchlimits.contracts.vector_field import VectorField, matrices_of_each
from torchlimits.optim.differences import central_differences
from torchlimits.optim.gradient_map import BatchGradient, GradientMap, MappedGradient

#: steps of central differences: maps jump at nodes, which smaller steps would see one by one
_STEP = 2e-2
#: the error of averages over batches of nodes
_ERROR = 1e-3


class Mapped(NamedTuple):
    """Averages of the mapped gradients of batches.

    Attributes:
        theta, bias: their means, ``(P,)``, ``(K,)``.
        signal: the mean of W's along the directions, ``(K, d)``.
        across: that of W's along W's own rows, ``(K, K)``.
        pair: E[C], the covariance of W's entries over coordinates, ``(K, K)``.
    """

    theta: Tensor
    bias: Tensor
    signal: Tensor
    across: Tensor
    pair: Tensor


class MappedField(VectorField):
    r"""The statistics (theta, b, m, R) of a network whose gradients are mapped by f.

    Over batches of B samples, with a_k and C_kl of each batch (`MappedGradient`),

    .. math::
        \dot\theta &= -E f(\tfrac1B \textstyle\sum_b \partial_\theta l_b), \qquad
            \dot m = -E[a_k \tfrac1B \textstyle\sum_b g_{bk} x_{\parallel,b}^T] \\
        \dot R &= -E[a_k \tfrac1B \textstyle\sum_b g_{bk} P_b^T] - h.c. + c_\delta E[C].

    At coordinates of x that are axes, m moves by E f of that entry. Terms are for given batches
    and in units in which the corrector of plain SGD has a factor 1/B.

    Source: the increment of one step in the scaling of Theorem 2.2 of arXiv 2206.04030, with
    Stein's lemma over coordinates.

    Args:
        base: the field of plain gradients.
        map: f.
        batch_size: B.
        axes: the coordinates of x that are axes, in the basis of the directions, ``(d, J)``.
    """

    def __init__(
        self, base: GradientField, map: GradientMap, *, batch_size: int,
        axes: Float[Tensor, "d J"],
    ) -> None:  # fmt: skip
        super().__init__(base.names, base.dim)
        self.base, self.map, self.batch_size, self.axes = base, map, batch_size, axes
        self.parameter_names, self.quadratic_in = base.parameter_names, base.quadratic_in
        self.rtol, self.atol = max(base.rtol, _ERROR), max(base.atol, _ERROR / 10)
        self.settling_time = base.settling_time
        self.geometry = base.geometry

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and B g of batches of B; see `VectorField.terms`."""
        u = without_derivatives(u, f"the dynamics of mapped gradients ({type(self.map).__name__})")
        flat = u.reshape(-1, u.shape[-1]).double()
        each = [self.averages(point) for point in flat]
        found = Mapped(*(torch.stack(x) for x in zip(*each, strict=True))) if each else None
        if found is None:
            return torch.zeros_like(u), torch.zeros_like(u)
        drift = self.base.of_parts(
            -found.theta, -found.bias, -found.signal, -found.across - found.across.mT
        )
        still = [torch.zeros_like(x) for x in found[:3]]
        kick = self.base.of_parts(still[0], still[1], still[2], self.batch_size * found.pair)
        return drift.reshape(u.shape).to(u.dtype), kick.reshape(u.shape).to(u.dtype)

    def averages(self, u: Float[Tensor, " k"]) -> Mapped:
        """The averages over batches.

        Args:
            u: statistics, shape ``(k,)``, float64.
        """
        batches = self.base.batches(u, self.batch_size)
        image, axes, w = self.mapped(u, batches), self.axes.to(u), batches.weight
        d = len(axes)
        moved = torch.einsum("t,tk,tkw->kw", w, image.slope, batches.along)
        signal = moved[:, :d]
        if axes.shape[1]:
            own = torch.einsum("t,tkj->kj", w, image.axes)
            signal = signal + (own - signal @ axes) @ axes.mT
        pair = torch.einsum("t,tkl->kl", w, image.pair)
        return Mapped(w @ image.theta, w @ image.bias, signal, moved[:, d:], pair)

    def mapped(self, u: Float[Tensor, " k"], batches: Batches) -> MappedGradient:
        """The map of the gradients of batches.

        Args:
            u: statistics, shape ``(k,)``.
            batches: gradients there.
        """
        d, axes = len(self.axes), self.axes.to(u)
        S = batches.gram / _checks.plain(self.base.snr)
        square = self._square(u, batches, S)
        at_axes = batches.along[..., :d] @ axes
        return self.map(BatchGradient(batches.theta, batches.bias, at_axes, S, square))

    def _square(self, u: Tensor, batches: Batches, S: Tensor) -> Float[Tensor, " T"]:
        """|G|^2 / N at finite N: N - K - d coordinates are normal, the others are known."""
        d, K, N = len(self.axes), self.base.width, self.dim
        trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)
        R = self.base.parts(u)[3]
        whiten = torch.block_diag(
            torch.eye(d, dtype=u.dtype, device=u.device),
            _linalg.pinv(_linalg.psd_sqrt(R), rtol=1e-7, hermitian=True),
        )
        known = (batches.along @ whiten).square().sum((-2, -1))
        unknown = (batches.rest @ whiten).square().sum() * batches.gram.diagonal(
            dim1=-2, dim2=-1
        ).sum(-1)
        others = batches.theta.square().sum(-1)
        if self.base.bias is not None:
            others = others + batches.bias.square().sum(-1)
        return trace * (N - K - d) / N + (known + unknown + others) / N

    # --- noise ------------------------------------------------------------------------------------

    def increment_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float
    ) -> Float[Tensor, "*batch k k"]:
        """B times the covariance of a step; see `VectorField.increment_covariance`."""
        with torch.no_grad():
            return matrices_of_each(u, lambda point: self._increments(point, step_size))

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        B, axes, d = self.batch_size, self.axes.to(u), len(self.axes)
        batches = self.base.batches(u, B)
        image, weight = self.mapped(u, batches), batches.weight
        moved = image.slope[..., None] * batches.along
        signal = moved[..., :d]
        if axes.shape[1]:
            signal = signal + (image.axes - signal @ axes) @ axes.mT
        half = -moved[..., d:]
        # c C with c = step_size B: the limit counts c/B
        moves = self.base.of_parts(
            -image.theta, -image.bias, -signal, half + half.mT + step_size * B * image.pair
        )
        centred = moves - weight @ moves
        covariance = centred.mT @ (weight[:, None] * centred)
        # what is independent of pre-activations: of w itself, and f(G) - a G
        scaled = image.slope[..., :, None] * batches.gram * image.slope[..., None, :]
        GG = torch.einsum("t,tkl->kl", weight, scaled)
        variance = 1 / _checks.plain(self.base.snr)
        Xi = torch.einsum("t,tkl->kl", weight, image.pair - variance * scaled)
        spread = torch.eye(d, dtype=u.dtype, device=u.device) - axes @ axes.mT
        root = torch.block_diag(spread, _linalg.psd_sqrt(self.base.parts(u)[3]))
        return B * (covariance + self._linear(batches.rest, GG) + self._linear(root, Xi))

    def _linear(self, rows: Float[Tensor, "e w"], gram: Float[Tensor, "K K"]) -> Tensor:
        """The covariance of moves along independent rows, with gradients of a covariance."""
        K, d, e = self.base.width, len(self.axes), len(rows)
        each = torch.eye(K, dtype=gram.dtype, device=gram.device).expand(e, K, K)
        along = each[..., :, None] * rows[:, None, None, :]  # (e, i, K, w)
        if self.axes.shape[1]:
            signal = along[..., :d]
            along = torch.cat(
                [signal - signal @ self.axes.to(gram) @ self.axes.to(gram).mT, along[..., d:]], -1
            )
        still = gram.new_zeros(e, K, len(self.base.head))
        half = along[..., d:]
        moves = self.base.of_parts(still, torch.zeros_like(each), along[..., :d], half + half.mT)
        return torch.einsum("eik,ij,ejl->kl", moves, gram, moves)

    # --- the rest of the contract -----------------------------------------------------------------

    def jacobian(
        self, velocity: Callable[[Tensor], Tensor], u: Float[Tensor, "S k"]
    ) -> Float[Tensor, "S k k"]:
        """Derivatives by central differences over 0.02, as maps jump at nodes."""
        u = u.detach().double()
        return central_differences(velocity, u, torch.full_like(u, _STEP))

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """How the statistics of the base decay."""
        return self.base.decay(u)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError as the base does."""
        self.base.check_start(u0)

    def for_band(self) -> MappedField:
        """The same field on what the base takes for bands."""
        base = self.base.for_band()
        assert isinstance(base, GradientField)
        return MappedField(base, self.map, batch_size=self.batch_size, axes=self.axes)

    @property
    def error(self) -> float:  # type: ignore[override]
        """The error of averages over batches, which do not converge faster than their number."""
        return max(self.base.error, _ERROR)

    def describe(self) -> dict[str, Any]:
        """What the base describes, and the map."""
        return {**self.base.describe(), **self.map.describe()}

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        kick = " + c E[C_ij]" if corrector else ""
        return "\n".join(
            [
                "Effective dynamics of h = W x + b, output = head(h) with gradients mapped by f, "
                f"{', '.join(f'{k}={v}' for k, v in self.map.describe().items())}; g = dl/dh, "
                "P = W_perp x, a = E f'(s Z), C = E f f of a batch's gradient:",
                "",
                "    dtheta/dt = - E f(dl/dtheta) - alpha theta",
                "    db_i/dt   = - E f(g_i) - alpha b_i",
                "    dm_ij/dt  = - E[a_i g_i x_j] - alpha m_ij",
                f"    dR_ij/dt  = - E[a_i g_i P_j] - E[a_j g_j P_i] - 2 alpha R_ij{kick}",
            ]
        )

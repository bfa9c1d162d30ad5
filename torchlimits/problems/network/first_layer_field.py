"""`FirstLayerField`: drift and corrector of networks with a linear first layer, from averages."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import GradientField, Parts, Samples
from torchlimits.problems.network.geometry import check_gram
from torchlimits.problems.network.layout import Layout
from torchlimits.problems.network.squared_gradient import (
    Resolved,
    SquaredGradient,
    along_weights,
    counts,
)


class FirstLayerField(GradientField):
    """The statistics (theta, b, m, R) of a network with a linear first layer, for any averages.

    Subclasses define `averages`: by sums over nodes, closed forms or rules of their own.

    Args:
        layout: the layout of the statistics.
        snr: lambda.
        dim: N.
    """

    def __init__(self, layout: Layout, *, snr: float | Tensor, dim: int) -> None:
        super().__init__(layout.names, dim)
        self.layout, self.snr = layout, snr
        self.parameter_names, self.quadratic_in = layout.parameter_names, layout.weight
        self.weight, self.bias, self.scale = layout.weight, layout.bias, layout.scale
        self.head = layout.parameter_names[: layout.size]
        self.head_shapes, self.width = layout.head, layout.width

    def parts(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """The statistics as theta, b, m and R; see `Layout.split`."""
        return self.layout.split(u)

    def of_parts(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Float[Tensor, "*batch k"]:
        """The inverse of `parts`."""
        return self.layout.join(theta, b, m, R)

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g; see `VectorField.terms`."""
        theta, bias, signal, across, gram = self.averages(u)
        drift = self.layout.join(-theta, -bias, -signal, -across - across.mT)
        still = [torch.zeros_like(x) for x in (theta, bias, signal)]
        kick = self.layout.join(still[0], still[1], still[2], gram / self.snr)
        return drift, kick

    def moves(
        self, theta: Tensor, gradient: Tensor, w: Tensor, kick: Tensor | None, *, bias: bool = True
    ) -> Float[Tensor, "*batch k"]:
        """The change of u for given gradients by theta and h, along w = (x_parallel, P)."""
        d = self.layout.directions
        dm = gradient[..., :, None] * w[..., None, :d]
        dR = gradient[..., :, None] * w[..., None, d:]
        dR = dR + dR.mT
        db = gradient if bias else torch.zeros_like(gradient)
        return self.layout.join(theta, db, dm, dR if kick is None else dR + kick)

    def increments(self, samples: Samples, step_size: float) -> Float[Tensor, "M k"]:
        """The change of u by a step with each sample, per unit of its length.

        Args:
            samples: gradients that stand for all.
            step_size: c_delta, in the second order.
        """
        g = samples.gradient
        kick = step_size / self.snr * g[:, :, None] * g[:, None, :]
        return self.moves(-samples.theta, -g, samples.along, kick)

    # --- squares of gradients ---------------------------------------------------------------------

    @property
    def input_trace(self) -> float | Tensor:
        """The trace of an input's covariance, given its component."""
        return self.dim / self.snr

    def resolved(self, u: Float[Tensor, " k"]) -> Resolved:
        """The coordinates of inputs that `samples` resolve.

        Args:
            u: statistics, shape ``(k,)``.
        """
        form, rank = along_weights(self.layout.split(u)[3])
        d, noise = self.layout.directions, 1 / _checks.plain(self.snr)
        whole = torch.block_diag(torch.eye(d, dtype=u.dtype, device=u.device), form)
        return Resolved(whole, (d + rank) * noise, _checks.plain(self.input_trace))

    def mean_square_gradient(
        self, u: Float[Tensor, "*batch k"], trained: Collection[str] | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The mean squares to order 1/N, whose derivatives are those of the leading order.

        See `VectorField.mean_square_gradient`.
        """
        with torch.no_grad():
            points = u.detach().reshape(-1, u.shape[-1]).double()
            pairs = [torch.stack(self._squares_at(point, trained)) for point in points]
            found = torch.stack(pairs) if pairs else points.new_zeros(0, 2)
        one, common = found.reshape(*u.shape[:-1], 2).to(u).unbind(-1)
        graph = torch.is_grad_enabled() and (u.requires_grad or _checks.requires_grad(self.snr))
        if graph and counts(trained, self.weight):
            leading = self.leading_square(u)
            one = one + leading - leading.detach()
        return one, common

    def leading_square(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E|dl/dW|^2 / N of a sample to order 1, with derivatives.

        Args:
            u: statistics, shape ``(..., k)``.
        """
        size = self.averages(u).gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        return size * (self.input_trace / self.dim)

    def _squares_at(
        self, u: Float[Tensor, " k"], trained: Collection[str] | None
    ) -> tuple[Tensor, Tensor]:
        squares = self._squared_gradient(u, trained)
        return squares.of_sample() / self.dim, squares.of_mean() / self.dim

    def _squared_gradient(
        self, u: Float[Tensor, " k"], trained: Collection[str] | None
    ) -> SquaredGradient:
        head = u.new_tensor([counts(trained, name) for name in self.head])
        biased = self.bias is not None and counts(trained, self.bias)
        return SquaredGradient(
            self.samples(u), self.resolved(u), counts(trained, self.weight), biased, head
        )

    def square_covariance(
        self, u: Float[Tensor, "*batch k"], step_size: float,
        trained: Collection[str] | None = None,
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch"]]:  # fmt: skip
        """What pre-activations and labels make of it; see `VectorField.square_covariance`.

        The rest of a squared length fluctuates by N^(-1/2) only.
        """
        points = u.reshape(-1, u.shape[-1]).double()
        pairs = [self._square_covariance(point, step_size, trained) for point in points]
        cross, square = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return cross.reshape(u.shape).to(u), square.reshape(u.shape[:-1]).to(u)

    def _square_covariance(
        self, u: Float[Tensor, " k"], step_size: float, trained: Collection[str] | None
    ) -> tuple[Tensor, Tensor]:
        squares = self._squared_gradient(u, trained)
        samples, size = squares.samples, squares.of_each() / self.dim
        off = samples.weight * (size - samples.weight @ size)
        return off @ self.increments(samples, step_size), off @ size

    def decay(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """theta, b, m and 2 R."""
        theta, b, m, R = self.layout.split(u)
        return self.layout.join(theta, b, m, 2 * R)

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless R is positive semidefinite."""
        check_gram(self.layout.split(u0)[3])

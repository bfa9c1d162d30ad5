"""The exact reduced chain of one-pass least squares."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._normals import Normals
from torchlimits.dynamics.reduced_chain import ReducedChain
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.gains import Gains


class LeastSquaresChain(ReducedChain):
    r"""The errors D_l of SGD on Gaussian inputs at dimension n, exact in law.

    Inputs are isotropic within a level. So what matters of a batch there are its samples'
    components along the error :math:`\Pi_l (w - w^*)`, which give
    :math:`g_b = \langle w - w^*, x_b \rangle - s \xi_b`, and the length of
    :math:`\sum_b g_b \Pi_l x_b` across it, which given the g_b is
    :math:`(\lambda_l \sum_b g_b^2)^{1/2}` times a chi variable of N_l - 1 degrees of freedom. With
    momentum the buffer is a second vector in each level, and two components matter.

    Args:
        field: the errors' field, of Gaussian inputs.
        limit: what the optimizer does.
        schedule: c_delta(t).

    Raises:
        NotImplementedError: if the field has measured fourth moments.
    """

    def __init__(
        self, field: LeastSquaresField, limit: SGDLimit, schedule: Schedule | None = None
    ) -> None:
        gaussian = Gains.gaussian(field.levels, field.noise)
        if not torch.allclose(field.gains.matrix, gaussian.matrix, rtol=1e-9, atol=0.0):
            raise NotImplementedError(
                "expected Gaussian inputs for the reduced chain, got measured fourth moments, "
                "which do not say what the law of one step is: train on the data themselves"
            )
        super().__init__(field.names, field.dim, limit, schedule)
        self.field = field
        self.counts = field.levels.counts_at(field.dim)

    def _walk(
        self, starts: Float[Tensor, "S k"], at: list[int], generator: torch.Generator | None
    ) -> list[Float[Tensor, "S k"]]:
        self.field.check_start(starts)
        step = self.limit.step(self.dim)
        assert step is not None
        error = starts.clamp_min(0).sqrt()[None]
        buffer = torch.zeros_like(error)
        if step.has_buffer:  # a second coordinate in each level, across the error
            error, buffer = (torch.cat([x, torch.zeros_like(x)]) for x in (error, buffer))
        recorded, normals = [starts], Normals(generator, starts.device)
        for number, factor in enumerate(self._factors(at[-1])):
            gradient = self._gradient(error, normals)
            # a new coordinate, along the gradient's part across all others
            error, buffer = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (error, buffer))
            step.update(error, buffer, gradient, first=number == 0, factor=factor)
            if step.has_buffer:
                error, buffer = _turned(error, buffer)
            else:
                error = _length(error)
                buffer = error
            if number + 1 == at[len(recorded)]:
                recorded.append(error[0].square())
        return recorded

    def _gradient(
        self, error: Float[Tensor, "columns S k"], normals: Normals
    ) -> Float[Tensor, "more S k"]:
        """The mean gradient of a batch, in the columns and one more."""
        field, B = self.field, self.limit.settings.batch_size
        columns, S, L = error.shape
        roots = field.levels.eigenvalues.to(error).sqrt()
        counts = self.counts.to(error.device)
        z, xi = normals.draw((B, columns, S, L)), normals.draw((B, S))
        there = torch.arange(columns, device=error.device)[:, None] < counts
        x = roots * z * there[:, None]
        g = (error * x).sum((1, 3)) - field.noise * xi
        inside = (g[:, None, :, None] * x).mean(0)
        freedom = (counts - columns).clamp_min(0).to(error)
        chi = normals.lengths(freedom.clamp_min(1), (S, L)) * (freedom > 0)
        outside = roots * g.square().sum(0).sqrt()[:, None] / B * chi
        return torch.cat([inside, outside[None]])


def _length(vectors: Float[Tensor, "columns S k"]) -> Float[Tensor, "1 S k"]:
    return vectors.square().sum(0, keepdim=True).sqrt()


def _turned(
    error: Float[Tensor, "3 S k"], buffer: Float[Tensor, "3 S k"]
) -> tuple[Float[Tensor, "2 S k"], Float[Tensor, "2 S k"]]:
    """The same two vectors in coordinates along the error and across it."""
    length = _length(error)
    unit = error / length.where(length > 0, 1.0)
    along = (unit * buffer).sum(0, keepdim=True)
    across = _length(buffer - along * unit)
    return torch.cat([length, torch.zeros_like(length)]), torch.cat([along, across])

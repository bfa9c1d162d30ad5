"""The exact reduced chain of a two-layer network on a Gaussian mixture."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits._threads import ahead
from torchlimits.dynamics.reduced_chain import Frame, ReducedChain
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.network.components import cumulative, drawn_components


class MixtureChain(ReducedChain):
    r"""SGD's statistics (v, m, R) on a Gaussian mixture at dimension N, exact in law.

    One step needs of a sample X only its component a, its d coordinates along the means, those of
    P = W_perp X, and \|X_perp\|^2; with s = sigmoid(v . relu(h)) - y, h = m X_par + P and
    c_i = -delta s v_i 1{h_i >= 0},

    .. math::
        v \leftarrow v - \delta (s\, relu(h) + \alpha v), \quad
        W \leftarrow (1 - \delta\alpha) W + c X^T,

    of which m and R are overlaps and Gram matrix. With momentum the buffer's rows are carried
    beside those of W, and batches by the Gram matrix of their samples (Bartlett).

    Args:
        field: of the same problem; gives the mixture's constants.
        limit: what the optimizer does.
    """

    def __init__(self, field: MixtureField, limit: SGDLimit) -> None:
        super().__init__(field.names, field.dim, limit)
        self.field = field

    def _walk(
        self, starts: Float[Tensor, "S k"], at: list[int], generator: torch.Generator | None
    ) -> list[Float[Tensor, "S k"]]:
        self.field.check_start(starts)
        K, settings = self.field.width, self.limit.settings
        v, m, R = self.field.split(starts)
        # the chains are in the last dimension, the fastest
        v, signal = v.mT.contiguous(), m.permute(1, 2, 0)
        across = _linalg.psd_sqrt(R).permute(1, 2, 0)
        if settings.momentum:  # rows of the buffer below those of W
            signal, across = (torch.cat([x, torch.zeros_like(x)]) for x in (signal, across))
        frame = Frame(self.dim, signal, across, samples=settings.batch_size)
        blocks = ahead(self._samples(frame, generator), starts.device)
        samples = (sample for block in blocks for sample in block)
        buffer, recorded = torch.zeros_like(v), [starts]
        for step in range(at[-1]):
            x, y = next(samples)
            rows = frame.take_up(x)
            W, velocity = rows[:K], rows[K:]
            h = (W * x[:, None]).sum(2)  # (B, K, S)
            active = h.relu()
            s = (torch.sigmoid((v * active).sum(1)) - y)[:, None]
            pull = torch.where(h > 0, s * v, 0.0)  # as torch: no slope at 0
            first = step == 0
            self.limit.update(v, buffer, (s * active).mean(0), lr=self.lr, first=first)
            self.limit.update_rows(W, velocity, pull, x, lr=self.lr, first=first)
            if step + 1 == at[len(recorded)]:
                recorded.append(self._statistics(v, W))
        return recorded

    def _samples(
        self, frame: Frame, generator: torch.Generator | None
    ) -> Iterator[list[tuple[Float[Tensor, "B columns S"], Float[Tensor, "B S"]]]]:
        """Fresh batches (x, y), x in the coordinates of the frame, until it is full."""
        c, labels = (t.to(frame.rows) for t in (self.field.coordinates, self.field.labels))
        shares = cumulative(self.field.weights, c.device)
        shape = (self.limit.settings.batch_size, frame.rows.shape[2])
        for vectors in frame.vectors(generator):
            size = (len(vectors), *shape)
            component = drawn_components(len(c), shares, size, generator=generator, device=c.device)
            means, targets = c[component].movedim(-1, 2), labels[component]
            for x, mean in zip(vectors, means, strict=True):
                x.mul_(self.field.snr**-0.5)[:, : frame.d].add_(mean)
            yield list(zip(vectors, targets, strict=True))

    def _statistics(
        self, v: Float[Tensor, "K S"], W: Float[Tensor, "K columns S"]
    ) -> Float[Tensor, "S k"]:
        d = self.field.coordinates.shape[1]
        across = W[:, d:].movedim(-1, 0)
        return self.field.join(v.mT, W[:, :d].movedim(-1, 0), across @ across.mT)

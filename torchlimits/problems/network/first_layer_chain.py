"""`FirstLayerChain`: the exact chain of a network whose first layer is linear, whatever follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _linalg
from torchlimits._threads import ahead
from torchlimits.dynamics.reduced_chain import Frame, ReducedChain
from torchlimits.optim.gradient_map import ClipNorm
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.sgd_step import SGDStep
from torchlimits.problems.network.components import cumulative, drawn_components
from torchlimits.problems.network.geometry import check_gram
from torchlimits.problems.network.layout import Layout

#: a batch's vectors (B or more, columns, S) in the coordinates of each frame
Vectors = Sequence[Tensor]
#: a batch, and the samples' labels
Batch = tuple[Vectors, Tensor]


class FirstLayerChain(ReducedChain):
    r"""SGD's statistics (theta, b, m, R) at dimension N, exact in law.

    The loss depends on a sample x through h = W x + b and the label y alone, and y on x through
    its component and its coordinates along d directions. So one step of SGD,

    .. math::
        W \leftarrow (1 - \delta\alpha) W - \frac\delta B \sum_b g_b x_b^T, \qquad
        g_b = \partial_h l(h_b, y_b),

    needs only the coordinates of W's rows in a frame that they and the batch span
    (`torchlimits.dynamics.reduced_chain.Frame`); m and R are their overlaps and Gram matrix;
    theta and b are carried as they are. A gradient that is clipped by its norm has one factor, and
    the norm is known from the same coordinates. Every parameter has its own options of SGD, and
    with momentum the buffer's rows are carried beside those of W.

    Chains are in the last, fastest dimension of every tensor.

    Args:
        layout: the layout of the statistics.
        coordinates: the means in the directions, ``(A, d)``.
        weights: the probabilities of the components, ``(A,)``; None if all are the same.
        snr: lambda.
        dim: N.
        limit: what the optimizer does.
        schedule: c_delta(t).
    """

    def __init__(
        self, layout: Layout, *, coordinates: Float[Tensor, "A d"],
        weights: Float[Tensor, " A"] | None, snr: float, dim: int, limit: SGDLimit,
        schedule: Schedule | None,
    ) -> None:  # fmt: skip
        super().__init__(layout.names, dim, limit, schedule)
        self.layout, self.coordinates, self.weights = layout, coordinates, weights
        self.snr, self.batch_size = snr, limit.settings.batch_size
        #: shortens gradients before the steps
        self.clip: ClipNorm | None = None
        if isinstance(limit, MappedLimit):
            limit.check_scale(layout.scale)
            assert isinstance(limit.map, ClipNorm)
            self.clip = limit.map
        self._check_room()

    def _check_room(self) -> None:
        d, K = self.layout.directions, self.layout.width
        if self.dim < d + K:
            raise ValueError(
                f"expected dim >= directions + width = {d} + {K} = {d + K} for the reduced chain, "
                f"got {self.dim}: the rows of W have no room"
            )

    @abstractmethod
    def _gradients(
        self, theta: Float[Tensor, "P S"], h: Float[Tensor, "B K S"], target: Tensor
    ) -> tuple[Float[Tensor, "P S"], Float[Tensor, "B K S"]]:
        """dl/dtheta, the mean over the batch, and dl/dh of each sample."""

    @abstractmethod
    def _labels(
        self, x_parallel: Float[Tensor, "steps B d S"], component: Int[Tensor, "steps B S"],
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        """Labels of the samples of some steps; their first dimension is that of the steps."""

    def _walk(
        self, starts: Float[Tensor, "S k"], at: list[int], generator: torch.Generator | None
    ) -> list[Float[Tensor, "S k"]]:
        theta, b, m, R = self.layout.split(starts)
        check_gram(R)
        # a copy even of a single start, whose transpose is already contiguous
        theta, b = (x.mT.clone(memory_format=torch.contiguous_format) for x in (theta, b))
        K = self.layout.width
        of_head, of_bias, of_rows = self._steps()
        buffer = of_rows is not None and of_rows.has_buffer
        frames = self._frames(m, R, buffer=buffer)
        stretches = ahead(self._samples(frames, generator), starts.device)
        samples = (sample for stretch in stretches for sample in stretch)
        head_buffer, bias_buffer = torch.zeros_like(theta), torch.zeros_like(b)
        recorded = [starts]
        for number, factor in enumerate(self._factors(at[-1])):
            vectors, target = next(samples)
            rows = [frame.take_up(x) for frame, x in zip(frames, vectors, strict=True)]
            now: dict[str, Any] = {"first": number == 0, "factor": factor}
            h = frames[0].products(rows[0][:K], vectors[0])  # (B, K, S)
            for frame, own, x in zip(frames[1:], rows[1:], vectors[1:], strict=True):
                h += frame.products(own[:K], x)
            if self.layout.bias:
                h += b
            by_theta, pull = self._gradients(theta, h, target)
            along = frames[0].outside(pull)  # in all frames alike
            if self.clip is not None:
                shorter = self._shorter(by_theta, pull, along, vectors)
                by_theta, pull, along = (shorter * part for part in (by_theta, pull, along))
            # rows first: the others overwrite their gradients, and one sample's is the batch's
            if of_rows is not None:
                for own, x in zip(rows, vectors, strict=True):
                    of_rows.update_rows(own[:K], own[K:], along, x, **now)
            if of_bias is not None:
                of_bias.update(b, bias_buffer, over_batch(pull), **now)
            for part, step in of_head:
                step.update(theta[part], head_buffer[part], by_theta[part], **now)
            if number + 1 == at[len(recorded)]:
                recorded.append(self._statistics(theta, b, [own[:K] for own in rows]))
        return recorded

    def _shorter(
        self, by_theta: Float[Tensor, "P S"], pull: Float[Tensor, "B K S"],
        along: Float[Tensor, "vectors K S"], vectors: Vectors,
    ) -> Float[Tensor, " S"]:  # fmt: skip
        """The factor of a batch's gradient, by the norm of all of it.

        W's has its part outside the frame along the new directions, so its norm is that of its
        coordinates.
        """
        clip, layout = self.clip, self.layout
        assert clip is not None
        counted = [clip.counts(name) for name in layout.parameter_names[: len(by_theta)]]
        square = by_theta[torch.tensor(counted, dtype=torch.bool)].square().sum(0)
        if clip.counts(layout.weight):
            for x in vectors:
                of_rows = torch.einsum("bks,bcs->kcs", along, x) / self.batch_size
                square = square + of_rows.square().sum((0, 1))
        if clip.counts(layout.bias or None):
            square = square + over_batch(pull).square().sum(0)
        return clip.factor(square.sqrt())

    def _parameters(self) -> dict[str, Any]:
        return {**super()._parameters(), **(self.clip.describe() if self.clip else {})}

    def _steps(self) -> tuple[list[tuple[slice, SGDStep]], SGDStep | None, SGDStep | None]:
        """The steps of the parts of theta that move, of the bias, and of the rows of W."""
        layout = self.layout
        steps = [
            step
            for name, shape in layout.head.items()
            for step in [self.limit.step(self.dim, name)] * prod(shape)
        ]
        parts: list[tuple[slice, SGDStep]] = []
        begin = 0
        for step, same in groupby(steps):
            end = begin + len(list(same))
            if step is not None:
                parts.append((slice(begin, end), step))
            begin = end
        bias = self.limit.step(self.dim, layout.bias) if layout.bias else None
        return parts, bias, self.limit.step(self.dim, layout.weight)

    def _frames(
        self, m: Float[Tensor, "S K d"], R: Float[Tensor, "S *L K K"], *, buffer: bool
    ) -> list[Frame]:
        """Frames of the rows of W, and of a buffer below them: one for each block."""
        return [self._frame(self.dim, m, _linalg.symmetric_root(R), buffer=buffer)]

    def _frame(
        self, dim: int, m: Float[Tensor, "S K d"], root: Float[Tensor, "S K c"], *, buffer: bool
    ) -> Frame:
        signal, across = (x.permute(1, 2, 0) for x in (m, root))
        if buffer:
            signal, across = (torch.cat([x, torch.zeros_like(x)]) for x in (signal, across))
        return Frame(dim, signal, across, samples=self.batch_size, moved=self.layout.width)

    def _samples(
        self, frames: Sequence[Frame], generator: torch.Generator | None
    ) -> Iterator[list[Batch]]:
        """Fresh batches (x, y), with x in the frames' coordinates, until frames are full."""
        c = self.coordinates.to(frames[0].rows)
        shares = cumulative(self.weights, c.device)
        shape = (self.batch_size, frames[0].rows.shape[2])
        sources = [frame.vectors(generator) for frame in frames]
        left: list[list[Tensor]] = [[] for _ in frames]
        while True:
            # frames are full at different times
            for source, waiting in zip(sources, left, strict=True):
                if not waiting:
                    waiting.extend(next(source))
            steps = min(map(len, left))
            size = (steps, *shape)
            component = drawn_components(len(c), shares, size, generator=generator, device=c.device)
            means = c[component].movedim(-1, 2)
            drawn = [waiting[:steps] for waiting in left]
            for waiting in left:
                del waiting[:steps]
            self._place(frames, drawn, means, component)
            labels = self._labels(self._parallel(drawn), component, generator)
            yield list(zip(zip(*drawn, strict=True), labels, strict=True))

    def _place(
        self, frames: Sequence[Frame], drawn: Sequence[list[Tensor]],
        means: Float[Tensor, "steps B d S"], component: Int[Tensor, "steps B S"],
    ) -> None:  # fmt: skip
        """Give standard normal vectors the data's noise and means, in place."""
        (frame,), (vectors,) = frames, drawn
        for x, mean in zip(vectors, means, strict=True):
            x.mul_(self.snr**-0.5)[: self.batch_size, : frame.d].add_(mean)

    def _parallel(self, drawn: Sequence[list[Tensor]]) -> Float[Tensor, "steps B d S"]:
        """x_parallel of all batches."""
        d, (vectors,) = self.layout.directions, drawn
        return torch.stack([x[: self.batch_size, :d] for x in vectors])

    def _statistics(
        self, theta: Float[Tensor, "P S"], b: Float[Tensor, "K S"],
        rows: Sequence[Float[Tensor, "K columns S"]],
    ) -> Float[Tensor, "S k"]:  # fmt: skip
        d, (W,) = self.layout.directions, rows
        across = W[:, d:].movedim(-1, 0)
        return self.layout.join(theta.mT, b.mT, W[:, :d].movedim(-1, 0), across @ across.mT)


def over_batch(x: Float[Tensor, "B *shape"]) -> Float[Tensor, "*shape"]:
    """The mean over a batch; of one sample as it is, without a pass over the numbers."""
    return x[0] if len(x) == 1 else x.mean(0)

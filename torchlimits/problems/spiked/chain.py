"""The exact reduced chain of spiked matrix and tensor PCA."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits._threads import ahead
from torchlimits.dynamics.reduced_chain import Frame, ReducedChain
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.spiked.field import NAMES


class SpikedChain(ReducedChain):
    r"""SGD's statistics (m, r2) in spiked matrix and tensor PCA at dimension n, exact in law.

    The stochastic gradient at x is Gaussian: with R = \|x\|, z standard normal in n dimensions,

    .. math::
        \nabla L = 2 k R^{2k-2} x - 2 k \lambda m^{k-1} v
            + \frac{2 \sqrt k R^{k-1}}{\sqrt B} \big(z + (\sqrt k - 1)
            \langle z, \hat x \rangle \hat x\big),

    where two coordinates of z matter, along v and x, and the length of the rest. With momentum
    the buffer is a second row, and three coordinates matter.

    Args:
        order, snr: k, lambda.
        dim: n.
        limit: what the optimizer does.
        schedule: c_delta(t).
    """

    def __init__(
        self, *, order: int, snr: float, dim: int, limit: SGDLimit,
        schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        if dim < 2:
            raise ValueError(f"expected dim >= 2, got {dim}: r2 needs a direction besides v")
        super().__init__(NAMES, dim, limit, schedule)
        self.order, self.snr = order, snr

    def _walk(
        self, starts: Float[Tensor, "S 2"], at: list[int], generator: torch.Generator | None
    ) -> list[Float[Tensor, "S 2"]]:
        m, r2 = starts.unbind(-1)
        if float(r2.min()) < 0:
            raise ValueError(f"expected r2 >= 0 (it is a squared length), got {float(r2.min()):g}")
        signal, across = m[None, None], r2.sqrt()[None, None]
        if self.limit.settings.momentum:
            signal, across = (torch.cat([x, torch.zeros_like(x)]) for x in (signal, across))
        step = self.limit.step(self.dim)
        assert step is not None
        frame = Frame(self.dim, signal.clone(), across.clone(), samples=1)
        blocks = ahead(frame.vectors(generator), starts.device)
        vectors = (z for block in blocks for z in block)
        recorded = [starts]
        for number, factor in enumerate(self._factors(at[-1])):
            z = next(vectors)
            rows = frame.take_up(z)
            x, velocity = rows[:1], rows[1:]
            gradient = self._gradient(x, z)
            step.update(x, velocity, gradient, first=number == 0, factor=factor)
            if number + 1 == at[len(recorded)]:
                recorded.append(torch.stack([x[0, 0], x[0, 1:].square().sum(0)], dim=-1))
        return recorded

    def _gradient(
        self, x: Float[Tensor, "1 columns S"], z: Float[Tensor, "1 columns S"]
    ) -> Float[Tensor, "1 columns S"]:
        k = self.order
        square = x.square().sum(1, keepdim=True)
        # <z, x> x / R^2: at x = 0 the gradient is 0 whatever the direction
        along = (z * x).sum(1, keepdim=True) / square.where(square > 0, 1.0) * x
        noise = 2 * (k / self.limit.settings.batch_size) ** 0.5 * square ** ((k - 1) / 2)
        gradient = 2 * k * square ** (k - 1) * x + noise * (z + (k**0.5 - 1) * along)
        gradient[:, 0] -= 2 * k * self.snr * x[:, 0] ** (k - 1)
        return gradient

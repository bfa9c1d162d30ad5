"""`BlockChain`: the exact chain of a network whose inputs have a covariance in blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks, _linalg
from torchlimits.dynamics.reduced_chain import Frame
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.block_layout import BlockLayout
from torchlimits.problems.network.chain import NetworkChain
from torchlimits.problems.network.setting import Setting

#: what a thin block's Gram matrix may have beyond the rank of its dimensions, relative to its size
_RANK = 1e-5


class BlockChain(NetworkChain):
    """SGD's statistics (theta, b, m, R_l) at dimension N, exact in law; see `NetworkChain`.

    Every block of N_l dimensions has a frame of its own, as its part of a sample is isotropic;
    pre-activations are the sums over the blocks. Blocks with little room beside their directions
    are carried whole, coordinate by coordinate.

    Args:
        setting: the network, its data and its loss; its layout is a `BlockLayout`.
        dim: N, that of the covariance.
        limit: what the optimizer does.
        schedule: c_delta(t).

    Raises:
        ValueError: if eigenvalues are grouped, or N is not that of the covariance.
    """

    layout: BlockLayout

    def __init__(
        self, setting: Setting, *, dim: int, limit: SGDLimit, schedule: Schedule | None = None
    ) -> None:
        assert isinstance(setting.layout, BlockLayout)
        self.blocks = blocks = setting.layout.blocks
        if blocks.grouped:
            raise ValueError(
                f"expected blocks of equal eigenvalues for the exact chain, got {len(blocks)} that "
                "group more: give the problem blocks='all' for few, or run SGD itself (tl.train)"
            )
        if dim != blocks.covariance.dim:
            raise ValueError(
                f"expected dim={blocks.covariance.dim}, that of the covariance, for the exact "
                f"chain, got {dim}: make a problem of that dim"
            )
        super().__init__(setting, dim=dim, limit=limit, schedule=schedule)
        #: the numbers of the unit vectors in each block
        self.own = [(blocks.block == n).nonzero()[:, 0] for n in range(len(blocks))]

    def _check_room(self) -> None:
        """Any block has room: thin ones are carried whole."""

    def _frames(
        self, m: Float[Tensor, "S K d"], R: Float[Tensor, "S L K K"], *, buffer: bool
    ) -> list[Frame]:
        return [
            self._block_frame(size, m[..., own], gram, buffer=buffer)
            for size, own, gram in zip(self.blocks.sizes, self.own, R.unbind(1), strict=True)
        ]

    def _block_frame(self, size: int, m: Tensor, R: Tensor, *, buffer: bool) -> Frame:
        d, K = m.shape[-1], self.layout.width
        if size >= d + (1 + buffer) * K + self.batch_size:
            return self._frame(size, m, _linalg.symmetric_root(R), buffer=buffer)
        # columns beyond the block's dimensions have to be 0
        values, vectors = _linalg.eigh(R)
        room = min(size - d, K)
        beyond = float(values[..., : K - room].clamp_min(0).max()) if room < K else 0.0
        if beyond > _RANK * max(1.0, float(R.abs().max())):
            raise ValueError(
                f"expected Gram matrices R of rank {room} in a block of {size} dimensions with "
                f"{d} directions, got an eigenvalue {beyond:.3g} beyond it: start from measured "
                "statistics"
            )
        root = vectors[..., K - room :] * values[..., None, K - room :].clamp_min(0).sqrt()
        whole = torch.cat([m, root, root.new_zeros(len(m), K, size - d - room)], dim=-1)
        return self._frame(size, whole, root[..., :0], buffer=buffer)

    def _place(
        self, frames: Sequence[Frame], drawn: Sequence[list[Tensor]],
        means: Float[Tensor, "steps B d S"], component: Int[Tensor, "steps B S"],
    ) -> None:  # fmt: skip
        sizes = (self.blocks.eigenvalues / _checks.plain(self.snr)).sqrt().to(means)
        means = torch.einsum("tbds,de->tbes", means, self.blocks.turn.to(means))
        for vectors, own, size in zip(drawn, self.own, sizes.mT, strict=True):
            shared, along = len(size) == 1, means[:, :, own]
            for x, mean, a in zip(vectors, along, component, strict=True):
                # vectors beyond the batch's are outside all frames, of the samples together
                x.mul_(size[0] if shared else self._spread(size[a], len(x)))
                x[: self.batch_size, : len(own)] += mean

    def _spread(self, own: Float[Tensor, "B S"], vectors: int) -> Float[Tensor, "B 1 S"]:
        if vectors > len(own):
            raise NotImplementedError(
                "expected a smaller batch_size for the exact chain of components with covariances "
                f"of their own, got {len(own)}: run SGD itself (tl.train)"
            )
        return own[:, None]

    def _parallel(self, drawn: Sequence[list[Tensor]]) -> Float[Tensor, "steps B d S"]:
        order = torch.cat(self.own).argsort()
        known = [
            torch.stack([x[: self.batch_size, : len(own)] for x in vectors])
            for vectors, own in zip(drawn, self.own, strict=True)
        ]
        x = torch.cat(known, 2)[:, :, order]
        return torch.einsum("tbes,de->tbds", x, self.blocks.turn.to(x))

    def _statistics(
        self, theta: Float[Tensor, "P S"], b: Float[Tensor, "K S"],
        rows: Sequence[Float[Tensor, "K columns S"]],
    ) -> Float[Tensor, "S k"]:  # fmt: skip
        m = theta.new_zeros(theta.shape[-1], self.layout.width, self.layout.directions)
        grams: list[Tensor] = []
        for W, own in zip(rows, self.own, strict=True):
            m[..., own] = W[:, : len(own)].movedim(-1, 0)
            across = W[:, len(own) :].movedim(-1, 0)
            grams.append(across @ across.mT)
        return self.layout.join(theta.mT, b.mT, m, torch.stack(grams, 1))


def chain_of(
    setting: Setting, *, dim: int, limit: SGDLimit, schedule: Schedule | None = None
) -> NetworkChain:
    """The exact chain of a network, with a covariance in blocks or without.

    Args:
        setting, dim, limit, schedule: as in `NetworkChain`.
    """
    kind = BlockChain if isinstance(setting.layout, BlockLayout) else NetworkChain
    return kind(setting, dim=dim, limit=limit, schedule=schedule)

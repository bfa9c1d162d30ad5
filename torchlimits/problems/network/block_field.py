"""`BlockField`: drift and corrector of any head on a linear first layer, for any covariance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import Samples
from torchlimits.problems.network.block_layout import BlockLayout
from torchlimits.problems.network.block_piece import BlockPiece
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting
from torchlimits.problems.network.squared_gradient import Resolved, along_weights

#: the number of statistics that tolerances are made for
_USUAL = 20
#: statistics whose increments' covariance is computed, at most
_MOST = 1500


class BlockField(NetworkField):
    r"""ODE of (theta, b, m, R_l) for inputs with the covariance :math:`\sigma^2 \Lambda`.

    With :math:`\Lambda = \sum_l \lambda_l \Pi_l`, f_l the share of block l in the N dimensions,
    P_l what block l adds to the pre-activations, orthogonal to the directions in it, and g = dl/dh,

    .. math::
        \dot\theta &= -E[\partial_\theta l], \qquad \dot b = -E[g], \qquad
            \dot m = -E[g\, x_\parallel^T] \\
        \dot R_l &= -E[g P_l^T] - E[P_l g^T] + c_\delta \sigma^2 f_l E[\lambda_l g g^T],

    where by Stein's lemma :math:`E[g P_l^T] = \sigma^2 \lambda_l H R_l` with one H = E dg/dh for
    all blocks. Averages are over as many dimensions as without blocks. Where components a have
    eigenvalues :math:`\lambda_{a,l}` of their own, H and E[g g^T] are those of each component.

    Source: Theorem 2.2 of arXiv 2206.04030 with the noise of each block by itself; E. Collins-
    Woodfin, C. Paquette, E. Paquette and I. Seroussi, Hitting the High-Dimensional Notes (2023),
    for one-layer models.

    Args:
        setting: the network, its data and its loss, in coordinates along the directions; its layout
            is a `BlockLayout`.
        dim: N.
        rule: the nodes.
        kinks: tells where gradients jump.
    """

    isotropic = False
    layout: BlockLayout

    def __init__(self, setting: Setting, *, dim: int, rule: Rule, kinks: Kinks) -> None:
        assert isinstance(setting.layout, BlockLayout)
        super().__init__(setting, dim=dim, rule=rule, kinks=kinks)
        self.blocks = setting.layout.blocks
        self.pieces = BlockPiece.all_of(setting, self.blocks, rule, kinks)

    # --- drift and corrector ----------------------------------------------------------------------

    def averages(self, u: Float[Tensor, "*batch k"]) -> NoReturn:
        """Refuse: gradients have no single E[g P^T] here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "expected terms(u) of a field with covariance blocks, whose gradients have averages in "
            "each of them, got a call of averages(u)"
        )

    def terms(
        self, u: Float[Tensor, "*batch k"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """-f and g; see `VectorField.terms`."""
        drift, kick = self._in_pieces(u, self._terms)
        return drift, kick

    def _terms(self, u: Float[Tensor, "S k"]) -> tuple[Tensor, Tensor]:
        parts = self.layout.split(u)
        kick = torch.zeros_like(parts[3])
        totals: list[Tensor] = []
        for piece in self.pieces:
            *found, gram = piece.averages(*parts)
            totals = [a + b for a, b in zip(totals, found, strict=True)] if totals else found
            kick = kick + self._weights(piece, kick) * gram[:, None]
        theta, bias, signal, across = totals
        drift = self.layout.join(-theta, -bias, -signal, -across - across.mT)
        still = [torch.zeros_like(x) for x in (theta, bias, signal)]
        return drift, self.layout.join(still[0], still[1], still[2], kick / self.snr)

    def _weights(self, piece: BlockPiece, like: Tensor) -> Float[Tensor, "L 1 1"]:
        """lambda_l f_l."""
        return (piece.eigenvalues * self.blocks.fractions).to(like)[:, None, None]

    @property
    def _at_once(self) -> int:
        return max(1, super()._at_once // max(1, len(self.blocks) // 64))

    # --- noise ------------------------------------------------------------------------------------

    def _increments(self, u: Float[Tensor, " k"], step_size: float) -> Float[Tensor, "k k"]:
        self._check_count()
        parts = self.layout.split(u)
        mean, squares = torch.zeros_like(u), u.new_zeros(len(u), len(u))
        for piece in self.pieces:
            samples = piece.samples(*parts)
            first, second = self._step_moments(samples, self._moved(piece, samples, step_size))
            mean, squares = mean + first, squares + second
        return squares - torch.outer(mean, mean)

    # --- squares of gradients ---------------------------------------------------------------------

    def samples(self, u: Float[Tensor, " k"]) -> Samples:
        """Gradients at the nodes and w = (x_parallel, P_1 ... P_L); see `GradientField.samples`.

        Raises:
            NotImplementedError: if components have eigenvalues of their own.
        """
        if len(self.pieces) > 1:
            raise NotImplementedError(
                "expected one covariance for all components with tl.AdaGradNorm, got one for each: "
                "the squares of gradients are not known for them; take torch.optim.SGD"
            )
        return self.pieces[0].samples(*self.layout.split(u))

    @property
    def input_trace(self) -> float | Tensor:
        """The trace of an input's covariance, given its component."""
        return self.dim * self._trace / self.snr

    def leading_square(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """E|dl/dW|^2 / N of a sample to order 1; see `FirstLayerField.leading_square`."""
        kick = self.terms(u)[1]
        return self.layout.split(kick)[3].diagonal(dim1=-2, dim2=-1).sum((-1, -2))

    def resolved(self, u: Float[Tensor, " k"]) -> Resolved:
        """The coordinates of inputs that `samples` resolve, in blocks that have room for W.

        Args:
            u: statistics, shape ``(k,)``.
        """
        blocks, K, R = self.blocks, self.layout.width, self.layout.split(u)[3]
        total = float(blocks.along[0].sum())
        forms = [torch.eye(self.layout.directions, dtype=u.dtype, device=u.device)]
        own = blocks.block.bincount(minlength=len(blocks)).tolist()
        for number, gram in enumerate(R):
            form, rank = torch.zeros_like(gram), 0
            if not blocks.grouped and blocks.sizes[number] >= own[number] + K:
                form, rank = along_weights(gram)
            forms.append(form)
            total += rank * float(blocks.eigenvalues[0, number])
        noise = 1 / _checks.plain(self.snr)
        return Resolved(torch.block_diag(*forms), total * noise, _checks.plain(self.input_trace))

    def increments(self, samples: Samples, step_size: float) -> Float[Tensor, "M k"]:
        """The change of u by a step with each sample; see `FirstLayerField.increments`."""
        return self._moved(self.pieces[0], samples, step_size)

    def _moved(self, piece: BlockPiece, samples: Samples, step_size: float) -> Float[Tensor, "M k"]:
        g = samples.gradient
        pair = step_size / _checks.plain(self.snr) * g[:, :, None] * g[:, None, :]
        kick = self._weights(piece, pair) * pair[:, None]
        return self.moves(-samples.theta, -g, samples.along, kick)

    def moves(
        self, theta: Tensor, gradient: Tensor, w: Tensor, kick: Tensor | None, *, bias: bool = True
    ) -> Float[Tensor, "*batch k"]:
        """The change of u for given gradients by theta and h, along w = (x_parallel, P_l)."""
        d, K = self.layout.directions, self.layout.width
        dm = gradient[..., :, None] * w[..., None, :d]
        P = w[..., d:].unflatten(-1, (len(self.blocks), K))
        dR = gradient[..., None, :, None] * P[..., :, None, :]
        dR = dR + dR.mT
        db = gradient if bias else torch.zeros_like(gradient)
        return self.layout.join(theta, db, dm, dR if kick is None else dR + kick)

    def _check_count(self) -> None:
        if len(self.names) > _MOST:
            raise ValueError(
                f"expected at most {_MOST} statistics for diffusion matrices and bands, got "
                f"{len(self.names)} of {len(self.blocks)} blocks: give the problem fewer, "
                "blocks=16, which group eigenvalues"
            )

    def jacobian(self, velocity: Any, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k k"]:
        """Derivatives of the terms; see `NetworkField.jacobian`."""
        self._check_count()
        return super().jacobian(velocity, u)

    # --- quality ----------------------------------------------------------------------------------

    def _average_of(self, u: Float[Tensor, "S k"], value: Callable[..., Tensor]) -> Tensor:
        theta, b, m, R = self.layout.split(u)
        found = [
            piece.integrals.average(theta, piece.law(b, m, R).loadings, value)
            for piece in self.pieces
        ]
        return torch.stack(found).sum(0)

    # --- the rest of the contract -----------------------------------------------------------------

    def check_start(self, u0: Float[Tensor, "*batch k"]) -> None:
        """Raise ValueError unless every R_l is positive semidefinite, as far as it has to be.

        Groups of eigenvalues have weights of either sign in theirs.
        """
        if not self.blocks.grouped:
            super().check_start(u0)

    def with_rule(self, rule: Rule) -> BlockField:
        """The same field on other nodes; see `NetworkField.with_rule`."""
        return BlockField(self.setting, dim=self.dim, rule=rule, kinks=self.kinks)

    @cached_property
    def rates(self) -> Float[Tensor, " k"]:  # type: ignore[override]
        """Eigenvalues beside their mean, where they are larger; 1 for the head and the biases."""
        layout, blocks = self.layout, self.blocks
        K, mean = layout.width, blocks.covariance.eigenvalues.mean()
        along, within = (
            (x.amax(0) / mean).clamp_min(1.0) for x in (blocks.along, blocks.eigenvalues)
        )
        return layout.join(
            along.new_ones(layout.size), along.new_ones(K), along.expand(K, -1) * layout.scale,
            within[:, None, None].expand(-1, K, K) * layout.scale**2,
        )  # fmt: skip

    @property
    def _resolution(self) -> float:
        """How much finer a few fast statistics have to be than the mean over all."""
        return max(1.0, (len(self.names) / _USUAL) ** 0.5)

    @property
    def rtol(self) -> float:  # type: ignore[override]
        """Finer than without blocks, as the norm of errors is a mean over all of them."""
        return max(1e-9, super().rtol / self._resolution)

    @property
    def atol(self) -> float:  # type: ignore[override]
        """Finer by the largest eigenvalue, with which small statistics add to pre-activations."""
        return super().atol / float(self.rates.max())

    def describe(self) -> dict[str, Any]:
        """The problem's constants, the nodes and their error, and the blocks."""
        blocks = {"blocks": len(self.blocks), "trace": float(f"{self._trace:.6g}")}
        if self.blocks.grouped:
            blocks["error of the blocks"] = float(f"{self.blocks.error:.1g}")
        return {**super().describe(), **blocks}

    @property
    def _trace(self) -> float:
        """tr Lambda / N."""
        return self.blocks.covariance.trace / self.blocks.covariance.dim

    def equation(self, corrector: bool = True) -> str:
        """The equation solved, in markdown."""
        term = " + (c f_l/snr) E[lambda_l g_i g_j]" if corrector else ""
        return "\n".join(
            [
                "Effective dynamics of h = W x + b, output = head(h), for inputs with the "
                "covariance Lambda/snr in blocks l, with g = dl/dh of one sample and P_l = W_l x:",
                "",
                "    dtheta/dt  = - E[dl/dtheta] - alpha theta",
                "    db_i/dt    = - E[g_i] - alpha b_i",
                "    dm_lij/dt  = - E[g_i x_lj] - alpha m_lij",
                "    dR_lij/dt  = - E[g_i P_lj] - E[g_j P_li] - 2 alpha R_lij" + term,
            ]
        )

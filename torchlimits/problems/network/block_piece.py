"""`BlockPiece`: components of a mixture that have one covariance, in units of their noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import Samples
from torchlimits.problems.data.blocks import Blocks
from torchlimits.problems.network.block_labels import BlockLabels
from torchlimits.problems.network.gaussian import PreActivations
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.moments import SAMPLES, Integrals
from torchlimits.problems.network.nodes import Rule
from torchlimits.problems.network.setting import Setting


@dataclass(frozen=True, eq=False)
class BlockPiece:
    r"""Components that share the eigenvalues of a covariance, and integrals over them.

    Along the blocks' vectors, coordinates are divided by the standard deviations of the noise,
    :math:`\sqrt{\lambda_j}`: so pre-activations, labels and nodes are those of isotropic noise,
    with :math:`m_{ij} \sqrt{\lambda_j}` for m and :math:`\sum_l \lambda_l R_l` for R.

    Args:
        setting: the network, its data and its loss, in these coordinates.
        root: the :math:`\sqrt{\lambda_j}` of the blocks' vectors, ``(d,)``.
        eigenvalues: the lambda_l, ``(L,)``.
        integrals: over the nodes of the setting.
    """

    setting: Setting
    root: Float[Tensor, " d"]
    eigenvalues: Float[Tensor, " L"]
    integrals: Integrals

    @classmethod
    def all_of(cls, setting: Setting, blocks: Blocks, rule: Rule, kinks: Kinks) -> list[BlockPiece]:
        """One piece if all components share the covariance, else one for each of them.

        Args:
            setting: the setting in coordinates along the problem's directions.
            blocks: the covariance, with the parts of these directions.
            rule: the nodes of each piece.
            kinks: tells where gradients jump.
        """
        turn = blocks.turn
        pieces: list[BlockPiece] = []
        shared = blocks.covariance.components == 1
        for a, (values, along) in enumerate(zip(blocks.eigenvalues, blocks.along, strict=True)):
            root = along.sqrt()
            own = slice(None) if shared else slice(a, a + 1)
            coordinates = setting.coordinates[own] @ turn / root
            reads, map = setting.reads @ turn * root, turn * root
            of_piece = replace(
                setting, coordinates=coordinates, shares=setting.shares[own], reads=reads,
                labels=BlockLabels(setting.labels, map, None if shared else a),
            )  # fmt: skip
            integrals = Integrals(of_piece, rule, kinks)
            pieces.append(cls(of_piece, root, values, integrals))
        return pieces

    def law(self, b: Tensor, m: Tensor, R: Tensor, *, fixed: bool = False) -> PreActivations:
        """The law of the pre-activations at given statistics.

        Args:
            b, m, R: those of S starts, ``(S, K)``, ``(S, K, d)``, ``(S, L, K, K)``.
            fixed: whether nothing is differentiated by them.
        """
        setting, scaled = self.setting, self.eigenvalues.to(R)[:, None, None] * R
        return PreActivations(
            b, m * self.root.to(m), scaled, setting.coordinates, setting.basis, 1 / setting.snr,
            fixed=fixed,
        )  # fmt: skip

    def averages(
        self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """E of dl/dtheta, g, g x_parallel^T, g P_l^T and g g^T, times the piece's probability.

        Args:
            theta, b, m, R: parts of the statistics of S starts.
        """
        law = self.law(b, m, R, fixed=not R.requires_grad)  # by autograd, if at all
        moments = self.integrals(theta, law.loadings)
        bias, signal, across = law.averages(moments.gradient)
        return moments.theta, bias, signal * self.root.to(m), across, moments.gram

    def samples(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Samples:
        """Gradients at the nodes and w = (x_parallel, P_1 ... P_L); see `GradientField.samples`.

        Args:
            theta, b, m, R: parts of the statistics at one u.
        """
        psi, weight, targets = self.integrals.every_target(m)
        law = self.law(b[None], m[None], R[None])
        by_theta, g = self.setting.sample_gradients(
            theta, psi @ law.loadings[0].mT, targets, SAMPLES
        )
        along, rest = law.given_nodes(psi)
        products = along.shape[1] - len(self.root)
        scale = torch.cat([self.root, self.root.new_ones(products)]).to(m)
        return Samples(weight, by_theta, g, along * scale, rest * scale)

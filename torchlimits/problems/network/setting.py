"""`Setting`: a network, its data and its loss, as effective dynamics and chains need them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.network.head import Head
from torchlimits.problems.network.labels import LabelLaw
from torchlimits.problems.network.layout import Layout
from torchlimits.problems.network.sample_loss import SampleLoss


@dataclass(frozen=True, eq=False)
class Setting:
    """A network h = W x + b, output = head(h), its Gaussian mixture, labels and loss.

    Args:
        layout: the layout of the statistics.
        head: the network behind its first layer.
        losses: the loss of each sample.
        labels: their law.
        coordinates: those of the means along the directions, ``(A, d)``.
        shares: the probabilities of the components, ``(A,)``.
        reads: the functionals of x_parallel that labels read, ``(r, d)``.
        snr: lambda; a tensor if it requires a gradient, which then goes through h and not through
            labels.
    """

    layout: Layout
    head: Head
    losses: SampleLoss
    labels: LabelLaw
    coordinates: Float[Tensor, "A d"]
    shares: Float[Tensor, " A"]
    reads: Float[Tensor, "r d"]
    snr: float | Tensor

    @cached_property
    def basis(self) -> Float[Tensor, "d r"]:
        """B: orthonormal columns that span the rows of T, T^T (T T^T)^(-1/2) by Cholesky."""
        T = self.reads
        if len(T) == 0:
            return T.new_zeros(T.shape[1], 0)
        root = torch.linalg.cholesky(T @ T.mT)
        return torch.linalg.solve_triangular(root, T, upper=False).mT

    def x_parallel(self, zeta: Float[Tensor, "n r"]) -> Float[Tensor, "A n d"]:
        """What labels read of the coordinates of every component, mu_a + sigma B zeta_s.

        Args:
            zeta: zeta_s.
        """
        noise = _checks.plain(self.snr) ** -0.5 * zeta @ self.basis.to(zeta).mT
        return self.coordinates.to(zeta)[:, None] + noise

    def sample_gradients(
        self, theta: Float[Tensor, "*M P"], h: Float[Tensor, "M K"], target: Tensor,
        at_once: int | None = None,
    ) -> tuple[Float[Tensor, "M P"], Float[Tensor, "M K"]]:  # fmt: skip
        """dl/dtheta and g = dl/dh of M samples, each on its own.

        Args:
            theta: the head's parameters, ``(P,)`` or one row a sample.
            h: the pre-activations.
            target: labels, ``(M, ...)``.
            at_once: the number of samples that are computed together.
        """

        own = 0 if theta.ndim == 2 else None
        with torch.no_grad():
            outputs = self.head(theta, h) if own is None else self.head(theta, h[:, None])[:, 0]
        # the loss in one piece, as torch.func.vmap takes some losses sample by sample
        slopes = self.losses.slopes(outputs, target)

        def pulled(t: Tensor, x: Tensor, slope: Tensor) -> Tensor:
            return (self.head(t, x[None])[0] * slope).sum()

        gradients = torch.func.grad(pulled, argnums=(0, 1))
        each = torch.func.vmap(gradients, in_dims=(own, 0, 0), chunk_size=at_once)
        return each(theta, h, slopes)

    def gradients_of_each(
        self, theta: Float[Tensor, "S P"], h: Float[Tensor, "S M K"], target: Tensor
    ) -> tuple[Float[Tensor, "S M P"], Float[Tensor, "S M K"]]:
        """`sample_gradients` for S heads, with M samples of the same labels for each.

        Args:
            theta: the parameters of each head.
            h: the pre-activations.
            target: labels, ``(M, ...)``.
        """
        S, M = h.shape[:2]
        with torch.no_grad():
            outputs = self.head(theta, h)
        labels = target.expand(S, *target.shape).flatten(0, 1)
        slopes = self.losses.slopes(outputs.flatten(0, 1), labels).unflatten(0, (S, M))

        def pulled(t: Tensor, x: Tensor, slope: Tensor) -> Tensor:
            return (self.head(t, x[None])[0] * slope).sum()

        gradients = torch.func.grad(pulled, argnums=(0, 1))
        of_one_head = torch.func.vmap(gradients, in_dims=(None, 0, 0))
        return torch.func.vmap(of_one_head)(theta, h, slopes)

    def right(self, output: Tensor, target: Tensor) -> Float[Tensor, " M"]:
        """1 where the largest output is that of the label's class, 0 where it is not.

        Args:
            output: ``(M, *out)``.
            target: ``(M, ...)``.

        Raises:
            ValueError: if the labels are not classes.
        """
        flat = output.reshape(len(output), -1)
        if flat.shape[1] == 1:
            y = target.reshape(len(target), -1).to(flat)
            if y.shape[1] == 1 and bool(((y == 0) | (y == 1)).all()):
                return ((1 + flat.sign() * (2 * y - 1)) / 2)[:, 0]
        elif not target.is_floating_point() and target.ndim == 1:
            return (flat.argmax(-1) == target).to(flat)
        raise ValueError(
            "expected labels that are classes for an accuracy (0 or 1 for one logit, numbers from "
            f"0 for {flat.shape[1]} outputs), got labels of shape {tuple(target.shape[1:])} and "
            f"dtype {target.dtype}: risk(u) is the loss of any labels"
        )

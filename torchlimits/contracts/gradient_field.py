"""`GradientField`: a vector field that tells what an optimizer needs to scale gradients itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.vector_field import VectorField

#: the parts of u: theta, b, m and R
Parts = tuple[Tensor, Tensor, Tensor, Tensor]


class Averages(NamedTuple):
    """Averages of one sample's gradient, with g = dl/dh and the mixture's probabilities.

    Attributes:
        theta: E[dl/dtheta], ``(..., P)``.
        bias: E[g], ``(..., K)``.
        signal: E[g x_parallel^T], ``(..., K, d)``.
        across: E[g P^T], P = W_perp x, ``(..., K, K)``.
        gram: E[g g^T], ``(..., K, K)``.
    """

    theta: Float[Tensor, "*batch P"]
    bias: Float[Tensor, "*batch K"]
    signal: Float[Tensor, "*batch K d"]
    across: Float[Tensor, "*batch K K"]
    gram: Float[Tensor, "*batch K K"]


class Squares(NamedTuple):
    """Averages of the squares of one sample's gradient.

    Attributes:
        theta: E[(dl/dtheta_i)^2], ``(..., P)``.
        axes: E[(g_k x_j)^2] at the coordinates j of x that are directions, ``(..., K, J)``.
    """

    theta: Float[Tensor, "*batch P"]
    axes: Float[Tensor, "*batch K J"]


class Samples(NamedTuple):
    """Gradients of M samples that stand for all, at one u.

    w = (x_parallel, P) of a sample is ``along`` plus, for every entry of ``rest``, an independent
    standard normal times that row.

    Attributes:
        weight: their probabilities, ``(M,)``.
        theta: dl/dtheta, ``(M, P)``.
        gradient: g = dl/dh, ``(M, K)``.
        along: the mean of w given the sample's pre-activations and label, ``(M, d + K)``.
        rest: ``(e, d + K)``.
    """

    weight: Float[Tensor, " M"]
    theta: Float[Tensor, "M P"]
    gradient: Float[Tensor, "M K"]
    along: Float[Tensor, "M d+K"]
    rest: Float[Tensor, "e d+K"]


class Batches(NamedTuple):
    """Mean gradients of T batches that stand for all, at one u.

    Attributes:
        weight: their probabilities, ``(T,)``.
        theta: (1/B) sum_b dl/dtheta, ``(T, P)``.
        bias: (1/B) sum_b g_b, ``(T, K)``.
        along: (1/B) sum_b g_b w_b^T, with the mean of w = (x_parallel, P) given the samples'
            pre-activations and labels, ``(T, K, d + K)``.
        gram: (1/B^2) sum_b g_b g_b^T, ``(T, K, K)``.
        rest: as in `Samples`.
    """

    weight: Float[Tensor, " T"]
    theta: Float[Tensor, "T P"]
    bias: Float[Tensor, "T K"]
    along: Float[Tensor, "T K d+K"]
    gram: Float[Tensor, "T K K"]
    rest: Float[Tensor, "e d+K"]


class GradientField(VectorField):
    """A field of the statistics (theta, b, m, R) of h = W x + b, output = head_theta(h).

    Optimizers that scale a gradient's entries one by one need more than drift and corrector: the
    averages that these consist of, and those of squares.

    Attributes:
        weight, bias: the names of W and b; bias is None if there is none.
        width: K.
        head: the name of the parameter behind each entry of theta.
        head_shapes: ``{name: shape}`` of these parameters.
        snr: lambda; x = c_a + lambda^(-1/2) z.
        smooth: whether terms are smooth in u; where they are not, differences must be larger.
        scale: what m and R are those of W / scale of.
        isotropic: whether the noise of x is; if not, R has several blocks, and there are no
            `averages`.
    """

    weight: str
    bias: str | None
    width: int
    head: list[str]
    head_shapes: Mapping[str, tuple[int, ...]]
    snr: float | Tensor
    smooth: bool = True
    scale: float = 1.0
    isotropic: bool = True

    def check_isotropic(self, what: str) -> None:
        """Raise ValueError if the noise of x is not isotropic.

        Args:
            what: names what needs that.

        Raises:
            ValueError: if it is not.
        """
        if not self.isotropic:
            raise ValueError(
                f"expected inputs with isotropic noise for {what}, got a covariance in blocks, for "
                "which the limits of torch.optim.SGD and tl.AdaGradNorm are known: take one of "
                "them, or leave covariance= out (recording works for all: tl.track)"
            )

    @abstractmethod
    def averages(self, u: Float[Tensor, "*batch k"]) -> Averages:
        """The averages of gradients that drift and corrector consist of.

        Args:
            u: statistics, shape ``(..., k)``.
        """

    def squares(self, u: Float[Tensor, "*batch k"], axes: Float[Tensor, "d J"]) -> Squares:
        """The averages of squared gradients.

        Args:
            u: statistics, shape ``(..., k)``.
            axes: coordinates of x that lie in the span of the directions, by their coordinates.

        Raises:
            NotImplementedError: if they are not known.
        """
        raise NotImplementedError(
            f"squares of the gradients of {type(self).__name__} are not known, which optimizers "
            "that keep second moments need: define squares(u, axes)"
        )

    def gradients(
        self, u: Float[Tensor, "*batch k"], axes: Float[Tensor, "d J"]
    ) -> tuple[Averages, Squares]:
        """`averages` and `squares`, which may have passes through the network in common.

        Args:
            u, axes: as in `squares`.
        """
        return self.averages(u), self.squares(u, axes)

    def samples(self, u: Float[Tensor, " k"]) -> Samples:
        """Gradients of samples that stand for all, for the noise of one step.

        Args:
            u: statistics, shape ``(k,)``, float64.

        Raises:
            NotImplementedError: if they are not known.
        """
        raise NotImplementedError(
            f"samples of the gradients of {type(self).__name__} are not known, which the noise of "
            "optimizers with second moments needs: define samples(u)"
        )

    def batches(self, u: Float[Tensor, " k"], batch_size: int, *, equal: bool = False) -> Batches:
        """Mean gradients of batches that stand for all.

        Args:
            u: statistics, shape ``(k,)``, float64.
            batch_size: B.
            equal: whether all have one probability and come in a random order, as the batches of
                a run do.

        Raises:
            NotImplementedError: if they are not known.
        """
        raise NotImplementedError(
            f"batches of gradients of {type(self).__name__} are not known, which maps of whole "
            "gradients (sign, clipping) need: define batches(u, batch_size)"
        )

    @abstractmethod
    def parts(self, u: Float[Tensor, "*batch k"]) -> Parts:
        """The statistics as theta ``(..., P)``, b ``(..., K)``, m ``(..., K, d)`` and R."""

    @abstractmethod
    def of_parts(self, theta: Tensor, b: Tensor, m: Tensor, R: Tensor) -> Float[Tensor, "*batch k"]:
        """The inverse of `parts`."""

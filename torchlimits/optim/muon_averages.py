"""`MuonAverages`: averages of the gradient of a batch, with W's as Muon orthogonalises it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.gradient_field import GradientField
from torchlimits.optim.batch_averages import BatchAverages, BatchMeans, BatchVariances, Draws
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.whitening import whitening

#: with fewer samples in the buffer, its covariance is that of these and not the mean
LONG_WINDOW = 2000
#: the error of averages over windows of batches
_ERROR = 5e-4
#: the step of differences by the covariance of gradients, relative to it
_STEP = 1e-4


class _Moved(NamedTuple):
    """What W is moved by, and the covariance of these moves over coordinates."""

    along: Tensor
    pair: Tensor


@dataclass(frozen=True, eq=False)
class MuonAverages(BatchAverages):
    r"""The gradient of W multiplied by A from the left, all others as they are.

    A step of Muon takes the buffer :math:`\sum_l w_l G_{s-l}`, :math:`\sum_l w_l = 1`, divides it
    by its norm and maps it by :math:`f` from the left (`NewtonSchulz`). Its rows have the
    covariance over coordinates

    .. math::
        \hat\Gamma = \kappa_w S + \frac1N (M_1 M_1^T + A_1 R^{-1} A_1^T), \qquad
        \kappa_w = \textstyle\sum_l w_l^2,

    S that of a batch's gradient, :math:`M_1` and :math:`A_1` the means along directions and rows.
    So W moves by a gradient multiplied by
    :math:`A = f(\hat\Gamma / tr\,\hat\Gamma) / \sqrt{N\, tr\,\hat\Gamma}`, and its squares by
    :math:`A S A`.

    Where the buffer has few samples, :math:`\hat\Gamma` is random and goes with the gradients it
    consists of. Then frozen nodes are taken for the batches of one step after the other, and
    :math:`\hat\Gamma_s` is that of the window's :math:`\sum_l w_l^2 S_{s-l}`; a batch is multiplied
    by :math:`\sum_l w_l A_{j+l}` in all.

    Noise is that of A's argument, too, to first order in its deviation.

    Source: the increments of `torch.optim.Muon` in the scaling of Theorem 2.2 of
    arXiv 2206.04030.

    Args:
        gradients: the averages of the gradients that Muon gets.
        settings: those of W.
    """

    gradients: BatchAverages
    settings: MuonSettings

    @property
    def base(self) -> GradientField:  # type: ignore[override]
        """The field of plain gradients."""
        return self.gradients.base

    @property
    def axes(self) -> Float[Tensor, "d J"]:  # type: ignore[override]
        """The axes of the gradients."""
        return self.gradients.axes

    @property
    def error(self) -> float:
        """The error of the gradients' averages, or of windows of batches."""
        return self.gradients.error if self._long else max(self.gradients.error, _ERROR)

    @property
    def tolerances(self) -> tuple[float, float]:
        """The tolerances of the gradients' averages, or of windows of batches."""
        rtol, atol = self.gradients.tolerances
        return (rtol, atol) if self._long else (max(rtol, _ERROR), max(atol, _ERROR / 10))

    @property
    def difference(self) -> float:
        """The step that is right for the gradients' averages."""
        return self.gradients.difference

    @property
    def _long(self) -> bool:
        return self.settings.window >= LONG_WINDOW

    def at_points(self, points: Float[Tensor, "S k"]) -> tuple[BatchMeans, BatchVariances]:
        """The averages at points that differ; see `BatchAverages.at_points`."""
        means, variances = self.gradients.at_points(points)
        R, d = self.base.parts(points)[3], means.signal.shape[-1]
        if self._long:
            moved = self._in_the_mean(means, R)
        else:
            each = [self._of_windows(point) for point in points]
            moved = _Moved(*map(torch.stack, zip(*each, strict=True))) if each else None
            if moved is None:
                return means, variances
        signal, across = moved.along[..., :d], moved.along[..., d:]
        return means._replace(signal=signal, across=across, pair=moved.pair), variances

    def _in_the_mean(self, means: BatchMeans, R: Float[Tensor, "*batch K K"]) -> _Moved:
        along = torch.cat([means.signal, means.across], dim=-1)
        A = self._scale(self._buffer(means.pair, along, R))
        return _Moved(A @ along, A @ means.pair @ A)

    def _buffer(
        self, pair: Float[Tensor, "*batch K K"], along: Float[Tensor, "*batch K w"],
        R: Float[Tensor, "*batch K K"],
    ) -> Float[Tensor, "*batch K K"]:  # fmt: skip
        """The covariance of the buffer's rows over coordinates, where it has many samples."""
        seen = along @ whitening(R, along.shape[-1] - self.base.width)
        return self.settings.energy * pair + seen @ seen.mT / self.base.dim

    def _scale(self, buffer: Float[Tensor, "*batch K K"]) -> Float[Tensor, "*batch K K"]:
        """A."""
        trace = buffer.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(1e-300)
        N, K = self.base.dim, self.base.width
        adjusted = self.settings.adjusted(K, N)
        return adjusted * self.settings.iteration(buffer / trace) / (N * trace).sqrt()

    # --- buffers with few samples -----------------------------------------------------------------

    def _of_windows(self, u: Float[Tensor, " k"]) -> _Moved:
        N, R = self.base.dim, self.base.parts(u)[3]
        draws, weights = self.gradients.sequence(u), self.settings.weights()
        whiten = whitening(R, draws.along.shape[-1] - self.base.width)
        buffer = _averaged(draws.along, weights)
        seen = buffer @ whiten
        pair = _averaged(draws.pair, weights**2)
        # what is along directions and rows of W, and has no part in pre-activations, is as the rest
        own = _checks.plain(self.base.snr) * (draws.others[0][0] @ whiten).square().sum()
        unseen = (N - whiten.shape[-1] + own) / N
        covariance = unseen * pair + seen @ seen.mT / N
        A = self._scale(covariance)
        each = _averaged(A.flip(0), weights).flip(0)
        return _Moved((A @ buffer).mean(0), (each @ draws.pair @ each).mean(0))

    def sequence(self, u: Float[Tensor, " k"]) -> Draws:
        """The same as `draws`: a step orthogonalises a mean of gradients, and no single one."""
        return self.draws(u)

    # --- noise ------------------------------------------------------------------------------------

    def draws(self, u: Float[Tensor, " k"]) -> Draws:
        """Gradients that stand for all, multiplied by A; see `BatchAverages.draws`."""
        draws, R = self.gradients.draws(u), self.base.parts(u)[3]
        means = self.gradients(u)[0]
        along = torch.cat([means.signal, means.across], dim=-1)
        buffer = self._buffer(means.pair, along, R)
        A = self._scale(buffer)
        # the change of A with S is linear in what a draw adds to S
        rise = torch.einsum("ijkl,tkl->tij", self._slopes(buffer), draws.pair - means.pair)
        crossed = rise @ means.pair @ A
        return draws._replace(
            along=A @ draws.along + rise @ along,
            pair=A @ draws.pair @ A + crossed + crossed.mT,
            others=[(rows, A @ gram @ A) for rows, gram in draws.others],
        )

    def _slopes(self, buffer: Float[Tensor, "K K"]) -> Float[Tensor, "K K K K"]:
        """The derivatives of A by the entries of S."""
        K = len(buffer)
        step = _STEP * float(buffer.diagonal().sum())
        each = torch.eye(K * K, dtype=buffer.dtype, device=buffer.device).reshape(-1, K, K)
        each = (each + each.mT) / 2
        rise = self._scale(buffer + step * each) - self._scale(buffer - step * each)
        by_buffer = rise.reshape(K, K, K, K).permute(2, 3, 0, 1) / (2 * step)
        return self.settings.energy * by_buffer


def _averaged(x: Float[Tensor, "T *shape"], weights: Tensor) -> Float[Tensor, "T *shape"]:
    """sum_l w_l x_{s - l}, of nodes that come round again."""
    T = len(x)
    folded = weights.new_zeros(-(-len(weights) // T) * T)
    folded[: len(weights)] = weights
    kernel = torch.fft.rfft(folded.reshape(-1, T).sum(0).to(x))
    kernel = kernel.reshape(-1, *[1] * (x.ndim - 1))
    return torch.fft.irfft(kernel * torch.fft.rfft(x, dim=0), n=T, dim=0)

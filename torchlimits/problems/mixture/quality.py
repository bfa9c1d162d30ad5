"""The quality of a classifier: which means, and how much of the data, it labels correctly."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits import _linalg
from torchlimits.problems.mixture.layout import mixture_layout


def labels_all_means(
    u: Float[Tensor, "*batch k"],
    coordinates: Float[Tensor, "A d"],
    labels: Float[Tensor, " A"],
    width: int,
) -> Bool[Tensor, "*batch"]:
    """Whether the logit at every mean has the sign of its label; a logit of 0 is wrong.

    Args:
        u: the statistics (v, m, R), shape ``(..., k)``.
        coordinates: the means, shape ``(A, d)``.
        labels: 0 or 1, shape ``(A,)``.
        width: K.
    """
    v, m, _ = _parts(u, width, coordinates.shape[1])
    h = m @ coordinates.to(u).mT
    logits = (v[..., :, None] * h.relu()).sum(-2)
    return (logits * (2 * labels.to(u) - 1) > 0).all(-1)


def accuracy(
    u: Float[Tensor, "*batch k"], coordinates: Float[Tensor, "A d"], labels: Float[Tensor, " A"],
    width: int, *, snr: float, weights: Float[Tensor, " A"] | None,
) -> Float[Tensor, "*batch"]:  # fmt: skip
    """The probability of the right label for fresh data, from scrambled Sobol points.

    Args:
        u, coordinates, labels, width: as in `labels_all_means`.
        snr: lambda.
        weights: the probabilities of the components; None: all the same.
    """
    K, d = width, coordinates.shape[1]
    v, m, R = _parts(u.double().cpu(), K, d)
    engine = torch.quasirandom.SobolEngine(d + K, scramble=True, seed=0)
    uniform = engine.draw(1 if snr == math.inf else 2**14, dtype=torch.float64)
    normal = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)) * snr**-0.5
    x = coordinates[:, None] + normal[:, :d]  # (A, points, d)
    across = normal[:, d:] @ _linalg.psd_sqrt(R)  # (..., points, K)
    h = torch.einsum("...kd,apd->...apk", m, x) + across[..., None, :, :]
    logits = torch.einsum("...k,...apk->...ap", v, h.relu())
    right = (1 + logits.sign() * (2 * labels[:, None] - 1)) / 2
    if weights is None:
        return right.mean((-2, -1))
    return right.mean(-1) @ weights


def _parts(u: Tensor, K: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return v, m and R of the statistics, or raise ValueError."""
    layout = mixture_layout(K, d)
    k = len(layout.names)
    if u.shape[-1:] != (k,):
        raise ValueError(f"expected u of shape (..., {k}), got {tuple(u.shape)}")
    v, _, m, R = layout.split(u)
    return v, m, R

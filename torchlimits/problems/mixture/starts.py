"""The law of a mixture's statistics at the random start of its networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.statistics.summary import SummaryStatistics

#: models drawn together
_AT_ONCE = 256


def drawn(
    count: int, model: Callable[[tuple[int, ...]], nn.Module], statistics: SummaryStatistics
) -> Float[Tensor, "S k"]:
    """Statistics of so many models, float64.

    Args:
        count: S.
        model: of so many replicas; it is called again and again.
        statistics: of its parameters.
    """
    _checks.positive_int("count", count)
    found: list[Tensor] = []
    # a model's weights are N/K times as many numbers: not all models at once
    for done in range(0, count, _AT_ONCE):
        some = model((min(_AT_ONCE, count - done),))
        with torch.no_grad():
            found.append(statistics(dict(some.named_parameters())).double())
    return torch.cat(found)


def moments(
    v: Float[Tensor, " K"], dim: int, directions: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    """Mean and covariance of u where W ~ N(0, I/N), for a given v.

    m ~ N(0, 1/N), and R is Wishart with mean (N - d)/N.

    Args:
        v: the second layer, shape ``(K,)``.
        dim: N.
        directions: d.
    """
    K = len(v)
    share = (dim - directions) / dim
    eye = torch.eye(K, dtype=torch.float64, device="cpu")
    i, j = torch.triu_indices(K, K, device="cpu")
    zero = v.new_zeros(K * directions)
    variances = [0 * v, zero + 1 / dim, share / dim * (1 + eye[i, j])]
    mean = torch.cat([v, zero, share * eye[i, j]])
    return mean, torch.diag(torch.cat(variances))

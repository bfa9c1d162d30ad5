"""`LawDistance`: how far measured runs are from the law that is predicted for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.trajectory import spread_rows

#: with fewer runs a distance between laws says nothing
LEAST_RUNS = 5
#: distances are found at so many times at most
_ROWS = 200
#: so many groups of a law's paths tell which distance is usual
_GROUPS = 200
#: a law narrower than this has no shape that recorded numbers could tell
_NARROW = 1e-6


@dataclass(frozen=True, eq=False)
class LawDistance:
    """How far measured runs are from the law that is predicted for them; made by `law_distance`.

    Attributes:
        largest: the largest Kolmogorov-Smirnov distance at any time, ``(k,)``; NaN where the law is
            narrower than rounding.
        usual: what so many runs of the law itself stay below in 95 % of cases, ``(k,)``.
    """

    largest: Float[Tensor, " k"]
    usual: Float[Tensor, " k"]


def law_distance(
    measured: Float[Tensor, "runs T k"], samples: Float[Tensor, "M any T k"]
) -> LawDistance:
    """Kolmogorov-Smirnov distances between measured runs and their laws, at 200 times at most.

    The probability-integral transform takes each value to the share of its law below it; were the
    law right, these shares would be uniform, and it is their distance from that, over the runs. For
    comparison, groups of the law's own paths are taken for runs.

    Args:
        measured: the runs' values.
        samples: paths from the law, one law for all runs or one for each.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> paths = torch.randn(1000, 1, 1, 1, generator=seed)
        >>> runs = torch.randn(50, 1, 1, generator=seed)
        >>> right, wrong = law_distance(runs, paths), law_distance(runs + 1, paths)
        >>> bool(right.largest < right.usual), bool(wrong.largest < wrong.usual)
        (True, False)
    """
    rows = spread_rows(measured.shape[1], _ROWS)
    measured, samples = measured[:, rows], samples[:, :, rows]
    found = [_of_one(measured[..., j], samples[..., j]) for j in range(samples.shape[-1])]
    largest, usual = (torch.stack(numbers) for numbers in zip(*found, strict=True))
    return LawDistance(largest, usual)


def _of_one(
    measured: Float[Tensor, "runs T"], samples: Float[Tensor, "M any T"]
) -> tuple[Tensor, Tensor]:
    """The largest distance of one statistic at any time, and the usual one."""
    paths, runs = len(samples), len(measured)
    narrow = (samples.std(0) <= _NARROW * (1 + samples.mean(0).abs())).any(0)
    if bool(narrow.all()):
        return measured.new_full((), torch.nan), measured.new_full((), torch.nan)
    measured, samples = measured[:, ~narrow], samples[..., ~narrow]
    ordered = samples.movedim(0, -1).contiguous().sort(dim=-1).values
    largest = _distance(_shares(measured, ordered)).amax()
    # as many paths of the law itself; each law gives all runs, or its own one
    own = (samples.argsort(dim=0).argsort(dim=0).to(samples.dtype) + 0.5) / paths
    seed = torch.Generator().manual_seed(0)
    if len(ordered) == 1:
        groups = [own[torch.randperm(paths, generator=seed)[:runs], 0] for _ in range(_GROUPS)]
        # paths are nearer to the law that they are a part of
        excess = ((1 / runs + 1 / paths) / max(1 / runs - 1 / paths, 0.1 / runs)) ** 0.5
    else:
        picks = torch.randint(paths, (_GROUPS, runs), generator=seed)
        groups, excess = [own[pick, torch.arange(runs)] for pick in picks], 1.0
    usual = torch.stack([_distance(group).amax() for group in groups])
    return largest, excess * usual.quantile(0.95)


def _distance(shares: Float[Tensor, "runs T"]) -> Float[Tensor, " T"]:
    """The distance of numbers from the uniform law, at each time."""
    ordered, runs = shares.sort(dim=0).values, len(shares)
    steps = torch.arange(runs + 1, dtype=shares.dtype)[:, None] / runs
    return torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).amax(0)


def _shares(
    values: Float[Tensor, "runs T"], ordered: Float[Tensor, "any T M"]
) -> Float[Tensor, "runs T"]:
    """The share of the law below each value; of numbers that are equal, half counts as below."""
    if len(ordered) == 1:
        law, sought = ordered[0], values.mT.contiguous()
    else:
        law, sought = ordered, values[..., None].contiguous()
    ends = [torch.searchsorted(law, sought, right=right) for right in (False, True)]
    shares = (ends[0] + ends[1]) / (2.0 * ordered.shape[-1])
    return (shares.mT if len(ordered) == 1 else shares[..., 0]).to(values.dtype)

"""Measured runs against the law that is predicted for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _humps
from torchlimits.trajectory import Trajectory, spread_rows

#: with fewer runs a distance between laws says nothing
LEAST_RUNS = 5
#: distances are found at so many times at most
_ROWS = 200
#: the law is searched for humps at so many times, and of so many starts
_TIMES, _STARTS = 16, 4
#: so many groups of a law's paths tell which distance is usual
_GROUPS = 200
#: a law narrower than this has no shape that recorded numbers could tell
_NARROW = 1e-6


@dataclass(frozen=True)
class TwoHumps:
    """A statistic whose law has more than one hump.

    Attributes:
        name: of the statistic.
        run: which start, counted from 0.
        first, last: the limit times between which it has been found so.
        time: when it is clearest.
        humps: where they are at that time.
    """

    name: str
    run: int
    first: float
    last: float
    time: float
    humps: _humps.Humps

    def __str__(self) -> str:
        """Tell it in words."""
        parts = zip(self.humps.shares, self.humps.places, strict=True)
        told = ", ".join(f"{100 * share:.0f} % near {place:.3g}" for share, place in parts)
        return f"{self.name} at t = {self.time:.3g}: {told}"


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


def several_humps(law: Trajectory) -> list[TwoHumps]:
    """The statistics whose law has more than one hump, by Hartigan's dip, at 16 times.

    Args:
        law: a prediction with ``samples``.

    Example:
        >>> normal = torch.randn(500, generator=torch.Generator().manual_seed(0))
        >>> paths = torch.stack([normal, normal + 6 * (normal > 0)], dim=-1)[:, None]
        >>> times, steps = torch.tensor([2.0]), torch.tensor([20])
        >>> law = Trajectory(times, steps, paths.mean(0), ["a", "b"], samples=paths)
        >>> [str(one) for one in several_humps(law)]
        ['b at t = 2: 50 % near -0.577, 50 % near 6.71']
    """
    assert law.samples is not None
    rows = spread_rows(len(law), _TIMES)
    samples = law.samples.reshape(len(law.samples), -1, *law.values.shape[-2:])
    found: list[TwoHumps] = []
    for run in range(min(law.runs, _STARTS)):
        part = samples[:, run, rows].numpy()
        found += _of_run(run, part, law, law.times[rows].tolist())
    return found


def _of_run(
    run: int, samples: Float[np.ndarray, "M R k"], law: Trajectory, times: list[float]
) -> Iterator[TwoHumps]:
    for j, name in enumerate(law.names):
        clear = [_humps.clearness(samples[:, r, j]) for r in range(len(times))]
        rows = [r for r, value in enumerate(clear) if value > _humps.CRITICAL]
        if not rows:
            continue
        clearest = max(rows, key=clear.__getitem__)
        humps = _humps.humps(samples[:, clearest, j])
        if len(humps.places) > 1:
            yield TwoHumps(name, run, times[rows[0]], times[rows[-1]], times[clearest], humps)

"""`several_humps`: the statistics whose predicted law has more than one hump."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Float
from torch import Tensor

from torchlimits import _humps
from torchlimits.trajectory import Trajectory, spread_rows

#: the law is searched for humps at so many times, and of so many starts
_TIMES, _STARTS = 16, 4
#: what was found of each law, with the version of its samples; no tensor is held
_FOUND: WeakKeyDictionary[Trajectory, tuple[int, tuple[TwoHumps, ...]]] = WeakKeyDictionary()


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


def several_humps(law: Trajectory | None) -> tuple[TwoHumps, ...]:
    """The statistics whose law has more than one hump, by Hartigan's dip, at 16 times.

    They are looked for once in each trajectory, and again only if its samples were changed.

    Args:
        law: a prediction; without ``samples``, as without a prediction, nothing is found.

    Example:
        >>> import torch
        >>> normal = torch.randn(500, generator=torch.Generator().manual_seed(0))
        >>> paths = torch.stack([normal, normal + 6 * (normal > 0)], dim=-1)[:, None]
        >>> times, steps = torch.tensor([2.0]), torch.tensor([20])
        >>> law = Trajectory(times, steps, paths.mean(0), ["a", "b"], samples=paths)
        >>> [str(one) for one in several_humps(law)]
        ['b at t = 2: 50 % near -0.577, 50 % near 6.71']
    """
    if law is None or law.samples is None:
        return ()
    # a tensor of torch.inference_mode counts no changes
    version = -1 if law.samples.is_inference() else law.samples._version  # pyright: ignore[reportPrivateUsage]
    known = _FOUND.get(law)
    if known is None or known[0] != version:
        known = _FOUND[law] = version, tuple(_of_all(law, law.samples))
    return known[1]


def _of_all(law: Trajectory, samples: Tensor) -> Iterator[TwoHumps]:
    rows = spread_rows(len(law), _TIMES)
    paths = samples.reshape(len(samples), -1, *law.values.shape[-2:])
    for run in range(min(law.runs, _STARTS)):
        yield from _of_run(run, paths[:, run, rows].numpy(), law, law.times[rows].tolist())


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

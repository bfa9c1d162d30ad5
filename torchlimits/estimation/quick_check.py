"""Do statistics close at a point? A quick look at one dimension, beside `closability`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: relative differences below this count as none, as in `closability`
TOLERANCE = 0.1
#: the chance that noise alone is taken for a difference, of all statistics together
_LEVEL = 1e-3
#: velocities smaller than this, relative to the largest, are measured on its scale
_FLOOR = 0.1


@dataclass(frozen=True)
class Closing:
    """How much du/dt differs between parameters that have the same statistics.

    Attributes:
        name: the statistic for which it differs most.
        size: the standard deviation over the parameters: relative to du/dt and less what noise
            alone would do, where it is significant; relative to the fastest statistic's du/dt and
            with the noise otherwise.
        fails: whether it differs significantly, by more than a tenth.

    Example:
        >>> noise = 0.01 * torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
        >>> alike = torch.ones(4, 5, 2) + noise  # 4 blocks of samples, 5 places, 2 statistics
        >>> str(Closing.of(alike, ["m", "R"]))
        'by at most 0.62 %'
        >>> apart = alike + torch.linspace(0, 1, 5)[:, None] * torch.tensor([0.0, 1.0])
        >>> found = Closing.of(apart, ["m", "R"])
        >>> found.fails, str(found)
        (True, 'by 26 % in R')
    """

    name: str
    size: float
    fails: bool

    @classmethod
    def of(cls, velocities: Float[Tensor, "B R k"], names: Sequence[str]) -> Closing:
        """Compare du/dt at R places, each from the same B blocks of samples.

        All places have the same samples, whose noise they share: the noise of differences is what
        the blocks say it is.
        """
        from scipy.stats import f

        B, R, k = velocities.shape
        deviations = velocities - velocities.mean(1, keepdim=True)
        whole = deviations.mean(0)
        speed = velocities.mean((0, 1)).abs()
        scale = speed.clamp_min(_FLOOR * float(speed.max()) or 1.0)
        spread = whole.square().sum(0) / (R - 1)
        noise = (deviations - whole).square().sum((0, 1)) / ((B - 1) * (R - 1) * B)
        # what moves the same way for any data has no noise, and no spread but that of rounding
        noise = noise + (1e-6 * scale) ** 2
        chance = torch.from_numpy(f.sf((spread / noise).numpy(), R - 1, (B - 1) * (R - 1)))
        told = (spread - noise).clamp_min(0).sqrt() / scale
        apart = (chance * k < _LEVEL) & (told > TOLERANCE)
        if bool(apart.any()):
            worst = int(told.where(apart, 0.0).argmax())
            return cls(names[worst], float(told[worst]), True)
        worst = int(spread.argmax())
        return cls(names[worst], float(spread[worst].sqrt() / (speed.max() or 1.0)), False)

    def __str__(self) -> str:
        percent = f"{100 * self.size:.2g} %"
        return f"by {percent} in {self.name}" if self.fails else f"by at most {percent}"

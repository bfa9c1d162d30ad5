"""How often random starts end at an optimal classifier: in theory, by the ODE, by SGD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from torchlimits.ensemble.train import train
from torchlimits.experiments.basins import basins
from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.mixture.success import exact

__all__ = ["Proportion", "by_dynamics", "by_sgd", "exact"]


@dataclass(frozen=True)
class Proportion:
    """A number of successes in a number of independent trials.

    Args:
        successes: the number of trials that ended well.
        trials: the number of all trials.

    Example:
        >>> print(Proportion(18, 200))
        0.0900 (18 of 200; 95 % interval 0.0577 to 0.1378)
        >>> low, high = Proportion(0, 200).interval()
        >>> low, round(high, 4)
        (0.0, 0.0188)
    """

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share of successes."""
        return self.successes / self.trials

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return Wilson's score interval for the probability of success.

        Args:
            level: the probability that such an interval covers the true one.

        Raises:
            ValueError: if level is not in (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"expected level in (0, 1), got {level}")
        z, n = NormalDist().inv_cdf((1 + level) / 2), self.trials
        centre = (self.value + z**2 / (2 * n)) / (1 + z**2 / n)
        spread = self.value * (1 - self.value) / n + z**2 / (4 * n**2)
        half = z * math.sqrt(spread) / (1 + z**2 / n)
        # at no (all) successes the lower (upper) end is 0 (1), up to rounding
        low = 0.0 if self.successes == 0 else max(0.0, centre - half)
        high = 1.0 if self.successes == n else min(1.0, centre + half)
        return low, high

    def __str__(self) -> str:
        low, high = self.interval()
        counts = f"{self.successes} of {self.trials}"
        return f"{self.value:.4f} ({counts}; 95 % interval {low:.4f} to {high:.4f})"


def _check(problem: object) -> None:
    if not isinstance(problem, GaussianMixture):
        raise TypeError(
            f"expected a tl.GaussianMixture, got {type(problem).__name__}: its theory says which "
            "classifiers are optimal"
        )


def by_dynamics(
    problem: GaussianMixture, *, step_size: float, starts: int = 200, time: float = 100.0,
    level: int = -3, seed: int = 0,
) -> Proportion:  # fmt: skip
    """Count the random starts that the effective dynamics take to an optimal classifier.

    Args:
        problem: a `GaussianMixture`; starts have the law of its ``model()``, at its dim.
        step_size: c_delta.
        starts: the number of starts.
        time: the limit time to follow them for; leaving the saddle at the start takes O(log N).
        level: accuracy of the Gaussian expectations; see `torchlimits.basins`.
        seed: the seed of the starts.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if ``problem`` is not a `GaussianMixture`.

    Example:
        >>> import torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=250, snr=100.0, ridge=0.1)
        >>> by_dynamics(problem, step_size=1.0, starts=20, time=60.0).trials
        20
    """
    _check(problem)
    u0 = problem.starts(starts, generator=torch.Generator().manual_seed(seed))
    dynamics = problem.dynamics(step_size=step_size, level=level)
    optimal = problem.is_optimal(basins(dynamics, u0, time=time).final)
    return Proportion(int(optimal.sum()), starts)


def by_sgd(
    problem: GaussianMixture, *, step_size: float, time: float, runs: int = 200, seed: int = 0,
    progress: bool = False,
) -> Proportion:  # fmt: skip
    """Count the runs of SGD from random starts that end at an optimal classifier.

    Args:
        problem: a `GaussianMixture`.
        step_size: c_delta.
        time: the limit time to train for.
        runs, seed, progress: as in `torchlimits.train`.

    Raises:
        TypeError: if ``problem`` is not a `GaussianMixture`.

    Example:
        >>> import torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=50, snr=100.0, ridge=0.1)
        >>> by_sgd(problem, step_size=1.0, time=2.0, runs=10).trials
        10
    """
    _check(problem)
    measured = train(
        problem, step_size=step_size, time=time, runs=runs, seed=seed, progress=progress
    )
    return Proportion(int(problem.is_optimal(measured.final).sum()), runs)

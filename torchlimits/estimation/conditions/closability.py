"""`closability`: do f, g and Sigma depend on the statistics alone, as the limit theorem needs?"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.estimation.conditions.power_law import ConditionReport, Squares, vanishes
from torchlimits.estimation.conditions.sized_problem import (
    LiftFunction,
    SizedProblem,
    sized_problems,
)
from torchlimits.estimation.estimate import Estimate, Estimator

_TITLE = "closability: relative differences between parameters with the same statistics"
_QUANTITIES = ("drift", "corrector", "diffusion")
#: entries smaller than this, relative to the largest, are measured on its scale
_FLOOR = 0.1


def closability(
    problem_at: Callable[[int], SizedProblem], dims: Sequence[int], *, time: float = 1.0,
    points: int = 3, remainders: int = 8, samples: int = 4096, tolerance: float = 0.1,
    seed: int = 0,
) -> ConditionReport:  # fmt: skip
    r"""Whether drift, corrector and diffusion matrix are functions of u, as n grows.

    Theorem 2.2 of arXiv 2206.04030 needs that f, g and Sigma are, in the limit, the same at all
    parameters with the same statistics u. For each n a real run of SGD gives parameters X. The
    three are estimated there and at other parameters with the same statistics:

    * *random*: lifted with random remainders (how much they differ among themselves);
    * *aligned*: lifted with remainders on coordinate axes (how far they are from the random ones);
    * *run*: X itself (how far it is from random ones with the statistics of X).

    With a ``lift`` of your own there is *lifted* in place of *random* and *aligned*. Lifts that are
    compared among themselves have, at every n, the statistics of the run at the largest n.
    Differences, root mean squares over the entries relative to these, have to vanish as n grows.
    Their squares are products of estimates from separate samples, so that sampling noise does not
    add to them. Whether there is a difference at all is told by what this noise alone would do; how
    it changes with n, by the same remainders at every n.

    Args:
        problem_at: a function n -> `SizedProblem`.
        dims: increasing n; a factor 8 between first and last makes sharp exponents. One n alone
            (real data) shows the differences, not whether they vanish.
        time: the limit time of the run.
        points: how many parameters are taken from it, evenly over time, the start included.
        remainders: how many lifts of each kind are made at each point, at least 3.
        samples: how many samples one estimate takes.
        tolerance: the relative size that counts as 0 if no difference is significant.
        seed: the seed of everything random.

    Returns:
        A table and a verdict for each condition. "holds" is evidence, not a proof.

    Raises:
        ValueError: if a number is out of its range, or the statistics need a lift of your own.
        TypeError: if ``problem_at`` does not return a `SizedProblem`.

    Example:
        >>> import torchlimits as tl
        >>> def problem_at(n):
        ...     problem = tl.GaussianMixture.binary(dim=n, snr=2.0)
        ...     return tl.SizedProblem.of(problem, step_size=1.0)
        >>> report = tl.closability(problem_at, [20, 40], samples=256, remainders=4, points=1)
        >>> [c.name for c in report.conditions][:3]
        ['drift, random', 'drift, aligned', 'drift, run']
    """
    settings = _Settings(remainders, samples, tolerance, seed)
    at_n = sized_problems(problem_at, dims, least=1)
    found = _differences(at_n, [sized.run(time, points, seed) for sized in at_n], settings)
    conditions = [
        vanishes(name, dims, found[name], tolerance)
        for name in sorted(found, key=lambda name: _QUANTITIES.index(name.split(",")[0]))
    ]
    return ConditionReport(_TITLE, tuple(conditions))


@dataclass(frozen=True)
class _Settings:
    """How many lifts and samples an estimate takes, what counts as 0, and the seed."""

    remainders: int
    samples: int
    tolerance: float
    seed: int

    def __post_init__(self) -> None:
        _checks.positive_int("remainders", self.remainders)
        _checks.positive_int("samples", self.samples)
        if self.remainders < 3:
            raise ValueError(
                f"expected at least 3 remainders to see how they differ, got {self.remainders}"
            )
        _checks.positive("tolerance", self.tolerance)

    def lifted(self, lift: LiftFunction, u: Tensor) -> list[Mapping[str, Tensor]]:
        """Parameters with statistics u; the r-th remainder has a seed of its own at every n."""
        if "generator" not in inspect.signature(lift).parameters:
            raise ValueError(
                "expected a lift(u, generator=None) whose remainder is drawn from the generator, "
                "got one without: closability compares parameters with the same statistics"
            )
        seeds = range(self.seed, self.seed + self.remainders)
        return [lift(u, generator=torch.Generator().manual_seed(s)) for s in seeds]


def _differences(
    at_n: Sequence[SizedProblem], runs: Sequence[Sequence[dict[str, Tensor]]], settings: _Settings
) -> dict[str, list[Squares]]:
    """Squared relative differences, by condition, for each n."""
    # the same u at every n, so that what is compared differs in n alone: those of the largest
    common = [at_n[-1].u(x) for x in runs[-1]]
    found: dict[str, list[Squares]] = defaultdict(list)
    for sized, run in zip(at_n, runs, strict=True):
        for name, value in _at_dimension(sized, run, common, settings).items():
            found[name].append(value)
    return found


def _at_dimension(
    sized: SizedProblem,
    run: Sequence[dict[str, Tensor]],
    common: Sequence[Tensor],
    settings: _Settings,
) -> dict[str, Squares]:
    """Squared relative differences at one n, by condition."""
    data = torch.Generator(device=sized.device).manual_seed(settings.seed + 1)
    estimator, lifts = sized.estimator(), sized.lifts()
    reference = next(iter(lifts))
    differences = _Differences(reference, settings.remainders)

    def pairs(places: Sequence[Mapping[str, Tensor]]) -> list[tuple[Estimate, Estimate]]:
        return [_pair(sized, estimator, {**run[0], **x}, settings.samples, data) for x in places]

    for u in common:
        differences.add({k: pairs(settings.lifted(lift, u)) for k, lift in lifts.items()})
    for x in run:
        around = pairs(settings.lifted(lifts[reference], sized.u(x)))
        # as often as the lifts, each time from other samples, for the error bar
        here = pairs([x] * settings.remainders)
        differences.add({reference: around, "run": here}, only="run")
    return differences.relative()


class _Differences:
    """Products of the two halves' deviations from the mean over the reference lifts."""

    def __init__(self, reference: str, remainders: int) -> None:
        self.reference, self.unbiased = reference, remainders / (remainders - 1)
        self.products: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.sizes: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        # the standard deviations that the products have where nothing differs
        self.noises: dict[tuple[str, str], list[Tensor]] = defaultdict(list)

    def add(
        self, pairs: Mapping[str, list[tuple[Estimate, Estimate]]], only: str | None = None
    ) -> None:
        """Add the estimates at one value of the statistics, by how the parameters were made."""
        for quantity in _QUANTITIES:
            values = {kind: _values(quantity, pair) for kind, pair in pairs.items()}
            centre = values[self.reference].mean(1, keepdim=True)
            for kind, v in values.items():
                if only in (None, kind):
                    factor = self.unbiased if kind == self.reference else 1.0
                    self.products[quantity, kind].append(factor * (v - centre).prod(0))
                    self.sizes[quantity, kind].append(centre.prod(0)[0])
                    self.noises[quantity, kind].append(_errors(quantity, pairs[kind]).prod(0))

    def relative(self) -> dict[str, Squares]:
        """Mean squares over the entries, relative to their sizes."""
        result = {}
        for (quantity, kind), parts in self.products.items():
            scale = _scale(torch.stack(self.sizes[quantity, kind]).mean(0))
            rows = (torch.cat(parts) / scale).mean(-1)
            # as if all entries erred together, which they do at most
            noise = (torch.cat(self.noises[quantity, kind]) / scale).mean(-1)
            result[f"{quantity}, {kind}"] = Squares(rows.tolist(), float(noise.norm()) / len(noise))
        return result


def _pair(
    sized: SizedProblem, estimator: Estimator, parameters: Mapping[str, Tensor], samples: int,
    generator: torch.Generator,
) -> tuple[Estimate, Estimate]:  # fmt: skip
    """Two estimates from separate samples, between which noise has no covariance."""
    first, second = (
        estimator(parameters, sized.step_size, max(2, samples // 2), sized.weight_decay, generator)
        for _ in range(2)
    )
    return first, second


def _values(
    quantity: str, pairs: Sequence[tuple[Estimate, Estimate]]
) -> Float[Tensor, "2 lifts entries"]:
    rows = [[getattr(e, quantity).value.flatten().cpu() for e in pair] for pair in pairs]
    return torch.stack([torch.stack(row) for row in rows], dim=1)


def _errors(
    quantity: str, pairs: Sequence[tuple[Estimate, Estimate]]
) -> Float[Tensor, "2 lifts entries"]:
    rows = [[getattr(e, quantity).standard_error.flatten().cpu() for e in pair] for pair in pairs]
    return torch.stack([torch.stack(row) for row in rows], dim=1)


def _scale(square: Float[Tensor, " entries"]) -> Tensor:
    """The squared size that each entry is relative to: a share of the largest at least, never 0."""
    square = square.clamp_min(0)
    return square.clamp_min(_FLOOR**2 * float(square.max()) or 1.0)

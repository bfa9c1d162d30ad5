"""Step sizes: which regime of the theory a step size is in, and which step size is critical."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchlimits import _checks
from torchlimits.estimation.conditions.power_law import PowerLaw, fit
from torchlimits.estimation.conditions.sized_problem import SizedProblem, places, sized_problems

#: c_delta within these is taken as critical where only one dimension is known
CRITICAL = (0.05, 20.0)
#: an exponent this close to 1 counts as 1
_EXPONENT = 0.05

#: what each regime means for a training
MEANING = {
    "subcritical": "the statistics follow gradient flow: no corrector, no noise "
    "(dynamics(step_size=0))",
    "critical": "gradient flow plus the population corrector, proportional to c_delta",
    "supercritical": "steps above critical, where there is no limit theorem: the noise of "
    "the gradients outgrows the drift",
}

#: a value, its standard error, and the statistic that it belongs to
_Term = tuple[float, float, str]


@dataclass(frozen=True)
class Regime:
    """What `regime` found.

    Attributes:
        kind: the regime.
        step_size: c_delta = lr * dim, at the largest dim.
        exponent: a in lr ~ dim^(-a), fitted where there are several dimensions, else None.

    Example:
        >>> found = regime(1000, 0.00001)
        >>> found.kind, found.step_size, found.exponent
        ('subcritical', 0.01, None)
    """

    kind: Literal["subcritical", "critical", "supercritical"]
    step_size: float
    exponent: float | None

    def __str__(self) -> str:
        found = f"c_delta = lr * dim = {self.step_size:.4g}"
        if self.exponent is not None:
            found += f", lr ~ dim^-{self.exponent:.3g}"
        return f"{self.kind}: {found}: {MEANING[self.kind]}"


def regime(dim: int | Sequence[int], lr: float | Sequence[float]) -> Regime:
    r"""Say in which regime SGD is, with learning rate lr and n entries of order 1 in each datum.

    In the limit :math:`\delta = c\, n^{-a}` is subcritical for a > 1 (gradient flow), critical for
    a = 1 and without a limit theorem for a < 1. Given several dimensions and their learning rates
    the exponent is fitted; from one pair it cannot be known, and c_delta = lr * n decides: below
    0.05 the corrector is less than a twentieth of its size at c_delta = 1, above 20 it is more than
    twenty times that.

    Source: section 2 of arXiv 2206.04030.

    Args:
        dim: the dimension n, or several dimensions.
        lr: the learning rate delta, one for each dimension.

    Raises:
        TypeError: if a dimension is not an int, or a learning rate is not a number.
        ValueError: if they are not positive, if there are more of one than of the other, or if all
            of several dimensions are the same.

    Warns:
        UserWarning: if the step size is above critical.

    Example:
        >>> print(regime(1000, 0.001))  # doctest: +ELLIPSIS
        critical: c_delta = lr * dim = 1: gradient flow plus the population corrector, ...
        >>> regime([100, 1000, 10000], [1e-3, 3.2e-5, 1e-6]).kind
        'subcritical'
    """
    dims, rates = _pairs(dim, lr)
    largest = max(range(len(dims)), key=dims.__getitem__)
    constant = rates[largest] * dims[largest]
    exponent = None
    if len(dims) > 1:
        exponent = step_exponent(dims, rates)
        deviation = exponent - 1
        above, below = deviation < -_EXPONENT, deviation > _EXPONENT
    else:
        above, below = constant > CRITICAL[1], constant < CRITICAL[0]
    kind = "supercritical" if above else "subcritical" if below else "critical"
    found = Regime(kind, constant, exponent)
    if above:
        advice = f"lower lr to about 1/dim = {1 / dims[largest]:.3g}"
        _checks.warn_user(f"{found}; {advice}")
    return found


def _pairs(dim: int | Sequence[int], lr: float | Sequence[float]) -> tuple[list[int], list[float]]:
    dims = list(dim) if isinstance(dim, Iterable) else [dim]
    rates: list[float] = list(lr) if isinstance(lr, Sequence) else [lr]
    for n in dims:
        if not isinstance(n, int):
            raise TypeError(
                f"expected dim as an int or several ints, got {n!r}: the dimension comes first, "
                "then the learning rate, regime(dim, lr)"
            )
    if len(dims) != len(rates) or not dims:
        raise ValueError(f"expected one lr a dim, got {len(dims)} dims and {len(rates)} lrs")
    for n, rate in zip(dims, rates, strict=True):
        _checks.positive_int("dim", n)
        _checks.positive("lr", rate)
    return dims, rates


def step_exponent(dims: Sequence[int], rates: Sequence[float]) -> float:
    """Return the exponent a of learning rates c * n^(-a), by least squares.

    Raises:
        ValueError: if all dimensions are the same.

    Example:
        >>> step_exponent([10, 100], [0.5, 0.005])
        2.0
    """
    if len(set(dims)) < 2:
        raise ValueError(f"expected different dims to fit an exponent, got {list(dims)}")
    return -fit(dims, rates, [0.0] * len(dims)).exponent


@dataclass(frozen=True)
class CriticalStepSize:
    r"""What `critical_step_size` found: :math:`\delta_n = constant \cdot n^{-exponent}`.

    Attributes:
        exponent: a; 1 for the problems of the paper.
        standard_error: the standard error of the exponent.
        constant: c at which the driving term is 1.
        driver: ``"corrector of ..."`` or ``"diffusion of ..."``, the term that becomes order 1
            first, at the largest n.
        corrector, diffusion: the power laws of the largest entry of Lgen u and of J V J^T, which
            are the two terms at delta = 1; None where they do not differ significantly from 0.

    Example:
        >>> print(CriticalStepSize(1.0, 0.02, 0.25, "corrector of r2", None, None))
        delta_n = 0.25 n^-(1.00 ± 0.02): the corrector of r2 is then of order 1
    """

    exponent: float
    standard_error: float
    constant: float
    driver: str
    corrector: PowerLaw | None
    diffusion: PowerLaw | None

    def __str__(self) -> str:
        return (
            f"delta_n = {self.constant:.3g} n^-({self.exponent:.2f} ± {self.standard_error:.2f}): "
            f"the {self.driver} is then of order 1"
        )


def critical_step_size(
    problem_at: Callable[[int], SizedProblem], dims: Sequence[int], *, time: float = 1.0,
    points: int = 2, samples: int = 2048, seed: int = 0,
) -> CriticalStepSize:  # fmt: skip
    r"""Find the step size at which the corrector g or the diffusion matrix Sigma becomes order 1.

    At delta = 1 they are Lgen u and J V J^T. Their largest entries, over parameters as in
    `localizability`, are fitted by :math:`C n^a`; of the two the one that is larger at the largest
    n gives the critical step size: :math:`\delta_n = n^{-a} / C` makes that term 1. Below it SGD
    follows gradient flow; above it there is no limit.

    Source: section 2 of arXiv 2206.04030.

    Args:
        problem_at, dims, time, points, samples, seed: as in `localizability`.

    Raises:
        ValueError, TypeError: as `localizability`; ValueError also if neither term is seen at
            every n.

    Example:
        >>> import torchlimits as tl
        >>> def problem_at(n):
        ...     return tl.SizedProblem.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=1.0)
        >>> found = tl.critical_step_size(problem_at, [50, 100, 200], samples=256)
        >>> round(found.exponent, 1), found.driver
        (1.0, 'corrector of r2')
    """
    at_n = sized_problems(problem_at, dims)
    terms = [
        _largest_terms(problem, xs, samples, seed)
        for problem, xs in zip(at_n, places(at_n, time, points, seed), strict=True)
    ]
    laws = {kind: _law(dims, [found[kind] for found in terms]) for kind in terms[0]}
    known = {kind: law for kind, law in laws.items() if law is not None}
    if not known:
        raise ValueError(
            "expected a corrector or a diffusion that differs significantly from 0 at every n, got "
            "none: take more samples, or statistics that the noise of the gradients moves"
        )
    # where exponents are the same within their errors, the larger term
    driver = max(known, key=lambda kind: known[kind].constant * dims[-1] ** known[kind].exponent)
    law = known[driver]
    return CriticalStepSize(
        exponent=law.exponent,
        standard_error=law.standard_error,
        constant=1 / law.constant,
        driver=f"{driver} of {terms[-1][driver][2]}",
        corrector=laws["corrector"],
        diffusion=laws["diffusion"],
    )


def _largest_terms(
    problem: SizedProblem, at: Sequence[Mapping[str, Tensor]], samples: int, seed: int
) -> dict[str, _Term]:
    """Corrector and diffusion at delta = 1: the largest entry of each over all parameters."""
    estimator = problem.estimator()
    generator = torch.Generator(device=problem.device).manual_seed(seed)
    rows: dict[str, list[_Term]] = {"corrector": [], "diffusion": []}
    for parameters in at:
        e = estimator(parameters, 1.0, samples, generator=generator)
        for kind, value, error in (
            ("corrector", e.corrector.value.abs(), e.corrector.standard_error),
            ("diffusion", e.diffusion.value.diagonal(), e.diffusion.standard_error.diagonal()),
        ):
            i = int(value.argmax())
            rows[kind].append((float(value[i]), float(error[i]), e.names[i]))
    return {kind: max(candidates) for kind, candidates in rows.items()}


def _law(dims: Sequence[int], terms: Sequence[_Term]) -> PowerLaw | None:
    """The power law of a term, or None unless it differs significantly from 0 at every n."""
    values, errors, _ = zip(*terms, strict=True)
    told = all(y > 3 * e and y > 0 for y, e in zip(values, errors, strict=True))
    return fit(dims, values, errors) if told else None

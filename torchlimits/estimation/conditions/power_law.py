"""Power laws in the dimension, and what they say about a condition: holds, fails, undecided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchlimits._text import Table, Tabular

#: exponents closer than this are not distinguished, as finite dimensions are not the limit
RESOLUTION = 0.1
#: half widths of intervals, in standard errors
_SIGMAS = 2.0


@dataclass(frozen=True)
class PowerLaw:
    """y = constant * n^exponent, and the exponent's standard error."""

    exponent: float
    standard_error: float
    constant: float

    @property
    def half_width(self) -> float:
        """Two standard errors of the exponent, but not less than `RESOLUTION`."""
        return max(_SIGMAS * self.standard_error, RESOLUTION)

    def __str__(self) -> str:
        return f"n^({self.exponent:.2f} ± {self.standard_error:.2f})"


def fit(dims: Sequence[int], values: Sequence[float], errors: Sequence[float]) -> PowerLaw:
    """Weighted least squares of log y on log n; y > 0.

    The error is that due to ``errors`` or, if larger, that shown by the scatter about the line.

    Example:
        >>> fit([10, 100, 1000], [2.0, 20.0, 200.0], [0.0, 0.0, 0.0])
        PowerLaw(exponent=1.0, standard_error=0.0, constant=0.2)
    """
    # exact values count as exact to one part in a million, so that none has all the weight
    relative = [max(e / y, 1e-6) for y, e in zip(values, errors, strict=True)]
    x, z = [math.log(n) for n in dims], [math.log(y) for y in values]
    w = [1 / r**2 for r in relative]
    total = math.fsum(w)
    mean_x = math.fsum(a * b for a, b in zip(w, x, strict=True)) / total
    mean_z = math.fsum(a * b for a, b in zip(w, z, strict=True)) / total
    spread = math.fsum(a * (b - mean_x) ** 2 for a, b in zip(w, x, strict=True))
    slope = math.fsum(a * (b - mean_x) * c for a, b, c in zip(w, x, z, strict=True)) / spread
    rest = [c - mean_z - slope * (b - mean_x) for b, c in zip(x, z, strict=True)]
    chi2 = math.fsum(a * r**2 for a, r in zip(w, rest, strict=True))
    scatter = max(1.0, chi2 / (len(x) - 2)) if len(x) > 2 else 1.0
    error = 0.0 if max(map(abs, rest)) < 1e-9 and max(errors) == 0 else (scatter / spread) ** 0.5
    return PowerLaw(round(slope, 12), error, round(math.exp(mean_z - slope * mean_x), 12))


@dataclass(frozen=True)
class Condition:
    """One condition: numbers at every dimension, and what they say.

    Attributes:
        name: what is examined.
        dims, values, errors: its size and standard error at each n.
        law: the power law fitted, or None where the values do not differ significantly from 0.
        verdict: words that begin with "holds", "fails" or "undecided".
    """

    name: str
    dims: tuple[int, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    law: PowerLaw | None
    verdict: str

    @property
    def holds(self) -> bool:
        """Whether the verdict is that it holds."""
        return self.verdict.startswith("holds")

    @property
    def fails(self) -> bool:
        """Whether the verdict is that it fails."""
        return self.verdict.startswith("fails")

    def __str__(self) -> str:
        return f"{self.name}: {self.verdict}"


def at_most(
    name: str, dims: Sequence[int], values: Sequence[float], errors: Sequence[float], needed: float,
    *, strict: bool = False,
) -> Condition:  # fmt: skip
    """The condition that y grows no faster than n^needed (``strict``: slower)."""
    place = (tuple(dims), tuple(values), tuple(errors))
    sign = "<" if strict else "<="
    if not any(values) and not any(errors):
        return Condition(name, *place, None, "holds: 0 at all n")
    told = [i for i, (y, e) in enumerate(zip(values, errors, strict=True)) if y > 3 * e]
    if len(told) < 2:
        most = max(y + 2 * e for y, e in zip(values, errors, strict=True))
        found = f"significantly above 0 at {len(told)} of {len(dims)} n, at most {most:.2g}"
        return Condition(name, *place, None, f"undecided at these n: {found}")
    law = _fit_told(told, *place)
    excess = law.exponent - needed
    found = f"exponent {law.exponent:.2f} ± {law.standard_error:.2f}, needed {sign} {needed:.3g}"
    seen = law.standard_error <= 2 * RESOLUTION
    holds = excess < -law.half_width or (not strict and abs(excess) <= law.half_width)
    word = _word(holds=seen and holds, fails=seen and excess > law.half_width)
    return Condition(name, *place, law, f"{word}: {found}")


@dataclass(frozen=True)
class Squares:
    """Unbiased estimates of a squared size at one n, and what noise alone makes of their mean.

    Args:
        rows: the estimates, in the same order at every n: the i-th are of the same kind.
        noise: the standard error of their mean where the size is 0.

    Example:
        >>> Squares([1.0, 3.0], noise=0.1).mean, Squares([1.0, 3.0], noise=0.1).error
        (2.0, 1.0)
    """

    rows: Sequence[float]
    noise: float

    @property
    def mean(self) -> float:
        """The squared size."""
        return math.fsum(self.rows) / len(self.rows)

    @property
    def error(self) -> float:
        """The standard error of the mean, by the scatter of the rows; no less than the noise."""
        n = len(self.rows)
        spread = math.fsum((row - self.mean) ** 2 for row in self.rows)
        return max((spread / max(n - 1, 1) / n) ** 0.5, self.noise)

    def without(self, i: int) -> Squares:
        """The same without the i-th row."""
        return Squares([*self.rows[:i], *self.rows[i + 1 :]], self.noise)


def vanishes(
    name: str, dims: Sequence[int], at_n: Sequence[Squares], tolerance: float
) -> Condition:
    """The condition that a relative size tends to 0, from unbiased estimates of its square.

    It holds if the size is seen to shrink, or if it does not differ significantly from 0 and is
    below the tolerance at the largest n. It fails if the size is significant at the largest n and
    does not shrink. It differs significantly from 0 where noise alone would not make it so large;
    that the rows scatter, as sizes differ from one lift to the next, says nothing against it.
    """
    n = dims[-1]
    squares, errors = [s.mean for s in at_n], [s.error for s in at_n]
    sizes = tuple(max(s, 0.0) ** 0.5 for s in squares)
    bounds = [(max(s, 0.0) + 2 * e) ** 0.5 for s, e in zip(squares, errors, strict=True)]
    size_errors = tuple(
        e / (2 * y) if s > e else b - y
        for s, e, y, b in zip(squares, errors, sizes, bounds, strict=True)
    )
    told = [i for i, s in enumerate(at_n) if s.mean > 3 * s.noise and s.mean > 0]
    place = (tuple(dims), sizes, size_errors)
    last = len(squares) - 1
    if last not in told:
        if bounds[last] <= tolerance:
            verdict = f"holds: below {_percent(bounds[last])} at n = {n}"
        else:
            verdict = (
                f"undecided at these n: at most {_percent(bounds[last])} at n = {n}, more samples "
                "would tell"
            )
        return Condition(name, *place, None, verdict)
    if len(told) < 2:
        return Condition(
            name, *place, None, f"undecided at these n: {_percent(sizes[last])} at n = {n}"
        )
    law = _paired(_fit_told(told, *place), told, dims, at_n)
    found = (
        f"{_percent(sizes[last])} at n = {n}, exponent {law.exponent:.2f} ± "
        f"{law.standard_error:.2f}, needed < 0"
    )
    flat = law.exponent - _SIGMAS * law.standard_error > -2 * RESOLUTION
    word = _word(holds=law.exponent < -law.half_width, fails=flat)
    return Condition(name, *place, law, f"{word}: {found}")


def _word(*, holds: bool, fails: bool) -> str:
    return "holds" if holds else "fails" if fails else "undecided at these n"


def _paired(
    law: PowerLaw, told: Sequence[int], dims: Sequence[int], at_n: Sequence[Squares]
) -> PowerLaw:
    """The law with the jackknife's error over rows that are left out at all n together.

    What makes one row larger than others makes it so at every n, and is no error of the exponent.
    """
    count = len(at_n[0].rows)
    if count < 3 or any(len(at_n[i].rows) != count for i in told):
        return law
    slopes = []
    for row in range(count):
        rest = [at_n[i].without(row) for i in told]
        if min(s.mean for s in rest) <= 0:
            return law
        sizes = [s.mean**0.5 for s in rest]
        errors = [s.error / (2 * y) for s, y in zip(rest, sizes, strict=True)]
        slopes.append(fit([dims[i] for i in told], sizes, errors).exponent)
    mean = math.fsum(slopes) / count
    variance = (count - 1) / count * math.fsum((slope - mean) ** 2 for slope in slopes)
    return PowerLaw(law.exponent, variance**0.5, law.constant)


def _fit_told(
    told: Sequence[int], dims: Sequence[int], values: Sequence[float], errors: Sequence[float]
) -> PowerLaw:
    return fit([dims[i] for i in told], [values[i] for i in told], [errors[i] for i in told])


def _percent(size: float) -> str:
    return f"{100 * size:.2g} %"


@dataclass(frozen=True)
class ConditionReport(Tabular):
    """Conditions and their verdicts.

    Attributes:
        title: what was examined.
        conditions: the conditions, one after the other.

    Example:
        >>> dims, errors = [10, 100, 1000], [0.0, 0.0, 0.0]
        >>> bounded = at_most("x", dims, [1.0, 1.0, 1.0], errors, needed=0.0)
        >>> growing = at_most("y", dims, [1.0, 10.0, 100.0], errors, needed=0.5)
        >>> report = ConditionReport("two bounds", (bounded, growing))
        >>> report.holds, report.fails, report["x"].holds, report["y"].law.exponent
        (False, True, True, 1.0)
    """

    title: str
    conditions: tuple[Condition, ...]

    @property
    def holds(self) -> bool:
        """Whether all conditions hold."""
        return all(c.holds for c in self.conditions)

    @property
    def fails(self) -> bool:
        """Whether at least one condition fails."""
        return any(c.fails for c in self.conditions)

    def __getitem__(self, name: str) -> Condition:
        """Return the condition of a name; a ValueError lists the names if there is none."""
        for condition in self.conditions:
            if condition.name == name:
                return condition
        raise ValueError(f"expected one of {[c.name for c in self.conditions]}, got {name!r}")

    def _table(self) -> Table:
        dims = self.conditions[0].dims
        rows = [["condition", *(f"n = {n}" for n in dims), "verdict"]]
        for c in self.conditions:
            cells = [f"{y:.2g} ± {e:.1g}" for y, e in zip(c.values, c.errors, strict=True)]
            rows.append([c.name, *cells, c.verdict])
        notes = {
            f"n = {dims[0]}" + " ..." * (len(dims) > 1): "size ± standard error at dimension n",
            "verdict": "what these sizes say of the limit of large n",
        }
        return Table(rows, notes, self.title, prose=True)

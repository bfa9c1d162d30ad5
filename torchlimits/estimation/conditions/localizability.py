"""`localizability` and `critical_step_size`: how moments of gradients grow with n."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from torchlimits._exact import exactly
from torchlimits.estimation.conditions.power_law import ConditionReport, PowerLaw, at_most, fit
from torchlimits.estimation.conditions.sized_problem import Triple, triples
from torchlimits.estimation.estimate import standard_error
from torchlimits.estimation.per_sample_gradients import PerSampleGradients
from torchlimits.statistics.quadratic import dense, total

_ITERATIONS = 30
#: directions whose derivatives are taken at once
_AT_ONCE = 16
#: samples whose gradients are held at once
_PIECE = 64

Moments = dict[str, tuple[float, float]]


def localizability(
    triple_at: Callable[[int], Triple],
    dims: Sequence[int],
    *,
    time: float = 1.0,
    points: int = 2,
    samples: int = 2048,
    seed: int = 0,
) -> ConditionReport:
    r"""The bounds of Definition 2.1 (delta_n-localizability): do they hold as n grows?

    .. math::
        \|\nabla^j u_i\|_{op} &\le C \delta^{-(3-j)/2}, \quad j = 2, 3 \\
        \|\nabla\Phi\| &\le C, \quad E\|\nabla H\|^3 \le C \delta^{-3/2}, \quad
            E\|\nabla H\|^8 \le C \delta^{-4} \\
        E\langle\nabla H, \nabla u_i\rangle^4 &\le C \delta^{-2}, \quad
            E\langle\nabla^2 u_i, \nabla H \otimes \nabla H - V\rangle^2 = o(\delta^{-3})

    A real SGD run at the largest n gives values of u. Each left side is estimated at parameters
    that have them, lifted with random and with aligned remainders, at every n; the largest over
    points and statistics is taken, and a power of n fitted. The right sides are powers of n through
    delta_n, whose exponent is fitted likewise.

    Source: Definition 2.1 of arXiv 2206.04030; the 8th moment and the last bound are those of its
    later version, the 3rd moment that of the first.

    Args:
        triple_at: n -> `Triple`.
        dims: at least two increasing n.
        time: limit time of the run.
        points: parameters taken from it.
        samples: at each point.
        seed: of everything random.

    Returns:
        A `ConditionReport`: a table and a verdict for each bound, in words. Operator norms are
        found by power iteration (for j = 3 from a few starts: a lower bound).

    Raises:
        ValueError: if a number is out of its range, or the statistics need a lift of your own.
        TypeError: if ``triple_at`` returns no `Triple`.

    Example:
        >>> import torchlimits as tl
        >>> def triple_at(n):
        ...     return tl.Triple.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=1.0)
        >>> report = tl.localizability(triple_at, [20, 40, 80], samples=512)
        >>> report["|grad^3 u|"].verdict
        'holds: 0 at all n'
    """
    at_n = triples(triple_at, dims)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for triple, places in zip(at_n, _places(at_n, time, points, seed), strict=True):
        for name, value in _largest([_moments(triple, x, samples, seed) for x in places]).items():
            found[name].append(value)
    rate = _step_exponent(at_n)
    needed = {
        "|grad^2 u|": rate / 2,
        "|grad^3 u|": 0.0,
        "|grad Phi|": 0.0,
        "E|grad H|^3": 1.5 * rate,
        "E|grad H|^8": 4 * rate,
        "E<grad H, grad u>^4": 2 * rate,
        "E<grad^2 u, grad H x grad H - V>^2": 3 * rate,
    }
    strict = "E<grad^2 u, grad H x grad H - V>^2"
    conditions = []
    for name, power in needed.items():
        values, errors = zip(*found[name], strict=True)
        conditions.append(at_most(name, dims, values, errors, power, strict=name == strict))
    title = f"localizability (Definition 2.1), delta = n^-{rate:.3g}: largest over points"
    return ConditionReport(title, tuple(conditions))


@dataclass(frozen=True)
class CriticalStepSize:
    r"""What `critical_step_size` found: :math:`\delta_n = constant \cdot n^{-exponent}`.

    Attributes:
        exponent: a; 1 for the problems of the paper.
        standard_error: of the exponent.
        constant: c at which the driving term is 1.
        driver: ``"corrector of ..."`` or ``"diffusion of ..."``, the term that becomes order 1
            first, at the largest n.
        corrector, diffusion: the power laws of the largest entry of Lgen u and of J V J^T, the
            two at delta = 1; None where they are not told from 0.

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
    triple_at: Callable[[int], Triple],
    dims: Sequence[int],
    *,
    time: float = 1.0,
    points: int = 2,
    samples: int = 2048,
    seed: int = 0,
) -> CriticalStepSize:
    r"""The step size at which the corrector g or the diffusion matrix Sigma becomes order 1.

    At delta = 1 they are Lgen u and J V J^T. Their largest entries, over parameters as in
    `localizability`, are fitted by :math:`C n^a`; of the two the one that is larger at the largest
    n gives the critical step size: :math:`\delta_n = n^{-a} / C` makes that term 1. Below it SGD
    follows gradient flow; above it there is no limit.

    Source: section 2 of arXiv 2206.04030.

    Args:
        triple_at, dims, time, points, samples, seed: as in `localizability`.

    Raises:
        ValueError, TypeError: as `localizability`; ValueError also if neither term is seen at
            every n.

    Example:
        >>> import torchlimits as tl
        >>> def triple_at(n):
        ...     return tl.Triple.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=1.0)
        >>> found = tl.critical_step_size(triple_at, [50, 100, 200], samples=256)
        >>> round(found.exponent, 1), found.driver
        (1.0, 'corrector of r2')
    """
    at_n = triples(triple_at, dims)
    names = at_n[0].statistics.names_of(dict(at_n[0].model.named_parameters()))
    largest: dict[str, list[tuple[float, float, str]]] = {"corrector": [], "diffusion": []}
    for triple, places in zip(at_n, _places(at_n, time, points, seed), strict=True):
        estimator = triple.estimator()
        generator = torch.Generator(device=triple.device).manual_seed(seed)
        rows: dict[str, list[tuple[float, float, str]]] = {"corrector": [], "diffusion": []}
        for parameters in places:
            e = estimator(parameters, step_size=1.0, samples=samples, generator=generator)
            spread = e.diffusion
            for kind, value, error in (
                ("corrector", e.corrector.value.abs(), e.corrector.standard_error),
                ("diffusion", spread.value.diagonal(), spread.standard_error.diagonal()),
            ):
                i = int(value.argmax())
                rows[kind].append((float(value[i]), float(error[i]), names[i]))
        for kind, candidates in rows.items():
            largest[kind].append(max(candidates))
    laws: dict[str, PowerLaw | None] = {}
    for kind, found in largest.items():
        values, errors, _ = zip(*found, strict=True)
        told = all(y > 3 * e and y > 0 for y, e in zip(values, errors, strict=True))
        laws[kind] = fit(dims, values, errors) if told else None
    known = {kind: law for kind, law in laws.items() if law is not None}
    if not known:
        raise ValueError(
            "expected a corrector or a diffusion that is told from 0 at every n, got none: more "
            "samples, or statistics that the noise of the gradients moves"
        )
    # of exponents that are the same within their errors, the larger term
    driver = max(known, key=lambda kind: known[kind].constant * dims[-1] ** known[kind].exponent)
    law = known[driver]
    return CriticalStepSize(
        exponent=law.exponent,
        standard_error=law.standard_error,
        constant=1 / law.constant,
        driver=f"{driver} of {largest[driver][-1][2]}",
        corrector=laws["corrector"],
        diffusion=laws["diffusion"],
    )


# --- points -------------------------------------------------------------------------------------


def _places(
    at_n: Sequence[Triple], time: float, points: int, seed: int
) -> list[list[dict[str, Tensor]]]:
    """For every n, parameters with the statistics that a run at the largest n goes through."""
    largest = at_n[-1]
    common = [largest.u(x) for x in largest.run(time, points, seed)]
    own = [{n: p.detach() for n, p in t.model.named_parameters()} for t in at_n]
    return [
        [{**x, **lift(u)} for u in common for lift in triple.lifts().values()]
        for triple, x in zip(at_n, own, strict=True)
    ]


def _largest(moments: Sequence[Moments]) -> Moments:
    return {name: max(found[name] for found in moments) for name in moments[0]}


def _step_exponent(at_n: Sequence[Triple]) -> float:
    """kappa of delta ~ n^-kappa."""
    dims, sizes = [t.dim for t in at_n], [t.step_size for t in at_n]
    return -fit(dims, sizes, [0.0] * len(dims)).exponent


# --- moments ------------------------------------------------------------------------------------


@exactly()
def _moments(triple: Triple, parameters: dict[str, Tensor], samples: int, seed: int) -> Moments:
    """The left sides of Definition 2.1 at one point, the largest over statistics, with errors."""
    generator = torch.Generator(device=triple.device).manual_seed(seed + 1)
    found = _gradient_moments(triple, parameters, samples, generator)
    along, curved, *_ = triple.estimator().rows(
        parameters, triple.step_size, samples, triple.weight_decay, generator
    )
    found["E<grad H, grad u>^4"] = _mean((along - along.mean(0)) ** 4)
    # curved is half of <grad^2 u, grad H x grad H>
    found["E<grad^2 u, grad H x grad H - V>^2"] = _mean(4 * (curved - curved.mean(0)) ** 2)
    for order, value in _derivative_norms(triple, parameters, seed).items():
        found[f"|grad^{order} u|"] = (value, 0.0)
    return found


def _mean(rows: Float[Tensor, "S k"]) -> tuple[float, float]:
    """The largest mean over statistics, and its error."""
    mean, error = rows.mean(0), standard_error(rows)
    i = int(mean.argmax())
    return float(mean[i]), float(error[i])


def _gradient_moments(
    triple: Triple, parameters: dict[str, Tensor], samples: int, generator: torch.Generator
) -> Moments:
    """|grad Phi| and moments of |grad H|, over all trainable parameters."""
    names = [n for n, p in triple.model.named_parameters() if p.requires_grad]
    gradients = PerSampleGradients(triple.model, triple.loss, names, structured=True)
    counts = [min(_PIECE, samples - done) for done in range(0, samples, _PIECE)]
    # two halves: their means' product has no noise squared in it
    halves = [{n: torch.zeros_like(parameters[n]) for n in names} for _ in range(2)]
    sizes = [0, 0]
    batches = [triple.sampler(count, generator=generator) for count in counts]
    with torch.no_grad():
        for i, batch in enumerate(batches):
            for name, g in gradients(parameters, batch).items():
                halves[i % 2][name] += total(g)
            sizes[i % 2] += counts[i]
        if not all(sizes):
            raise ValueError(f"expected more than {_PIECE} samples, got {samples}")
        mean = {n: (halves[0][n] + halves[1][n]) / samples for n in names}
        squares = torch.cat(
            [
                _squared_norms(
                    {n: dense(g) - mean[n] for n, g in gradients(parameters, batch).items()}
                )
                for batch in batches
            ]
        )
        ridge = {n: triple.weight_decay * parameters[n] for n in names}
        phi = [{n: h[n] / s + ridge[n] for n in names} for h, s in zip(halves, sizes, strict=True)]
        square = float(sum((phi[0][n] * phi[1][n]).sum() for n in names))
    # the noise of the product: |V| in size is about E|grad H|^2 / samples, of random sign
    noise = 2 * float(squares.mean()) / samples
    norm = math.sqrt(max(square, 0.0))
    error = noise / (2 * norm) if square > noise else math.sqrt(noise)
    found: Moments = {"|grad Phi|": (norm, error)}
    for power in (3, 8):
        found[f"E|grad H|^{power}"] = _mean((squares ** (power / 2))[:, None])
    return found


def _squared_norms(gradients: Mapping[str, Tensor]) -> Float[Tensor, " B"]:
    parts = [g.flatten(1).double().square().sum(1) for g in gradients.values()]
    return torch.stack(parts).sum(0)


def _derivative_norms(triple: Triple, parameters: dict[str, Tensor], seed: int) -> dict[int, float]:
    """The largest operator norms of the statistics' second and third derivatives."""
    names = [n for n, p in triple.model.named_parameters() if p.requires_grad]
    moving = {n: parameters[n].double() for n in names}
    fixed = {n: p.double() for n, p in parameters.items() if n not in moving}
    k = len(triple.statistics(parameters))
    normal: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(seed), "dtype": torch.float64, "device": "cpu",
    }  # fmt: skip
    starts = 3

    def values(x: dict[str, Tensor]) -> Tensor:
        return triple.statistics({**fixed, **x})

    def second(x: dict[str, Tensor], w: dict[str, Tensor]) -> Tensor:
        """D^2 u_i[w, w], (k,)."""
        return jvp(lambda y: jvp(values, (y,), (w,))[1], (x,), (w,))[1]

    def second_on(e: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """grad^2 u_i w, e being the i-th unit vector."""
        return jvp(grad(lambda y: values(y) @ e), (moving,), (w,))[1]

    def third_on(e: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """grad^3 u_i [w, w, .]."""
        return grad(lambda y: second(y, w) @ e)(moving)

    result = {}
    chosen = torch.eye(k, dtype=torch.float64, device=triple.device).repeat(starts, 1)
    for order, product in ((2, second_on), (3, third_on)):
        w = {
            n: torch.randn(len(chosen), *p.shape, **normal).to(p.device) for n, p in moving.items()
        }
        norms = chosen.new_zeros(len(chosen))
        for _ in range(_ITERATIONS):
            length = _squared_norms(w).sqrt().clamp_min(1e-300)
            w = {n: t / length.reshape(-1, *[1] * (t.ndim - 1)) for n, t in w.items()}
            w = vmap(product, chunk_size=_AT_ONCE)(chosen, w)
            norms = _squared_norms(w).sqrt()
        result[order] = float(norms.max())
    return result

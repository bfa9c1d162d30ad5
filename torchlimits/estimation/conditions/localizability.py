"""`localizability`: do moments of gradients grow no faster with n than the theory allows?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from torchlimits._exact import exactly
from torchlimits.estimation.conditions.power_law import ConditionReport, at_most
from torchlimits.estimation.conditions.sized_problem import SizedProblem, places, sized_problems
from torchlimits.estimation.conditions.step_size import step_exponent
from torchlimits.estimation.estimated import standard_error
from torchlimits.estimation.motion import Motion
from torchlimits.estimation.per_sample_gradients import PerSampleGradients
from torchlimits.statistics.quadratic import dense, total

_ITERATIONS = 30
#: directions whose derivatives are taken at once
_AT_ONCE = 16
#: samples whose gradients are held at once
_PIECE = 64
#: the condition that is an o() and not an O()
_STRICT = "E<grad^2 u, grad H x grad H - V>^2"

Moments = dict[str, tuple[float, float]]


def localizability(
    problem_at: Callable[[int], SizedProblem], dims: Sequence[int], *, time: float = 1.0,
    points: int = 2, samples: int = 2048, seed: int = 0,
) -> ConditionReport:  # fmt: skip
    r"""Test whether the bounds of Definition 2.1 (delta_n-localizability) hold as n grows.

    .. math::
        \|\nabla^j u_i\|_{op} &\le C \delta^{-(3-j)/2}, \quad j = 2, 3 \\
        \|\nabla\Phi\| &\le C, \quad E\|\nabla H\|^3 \le C \delta^{-3/2}, \quad
            E\|\nabla H\|^8 \le C \delta^{-4} \\
        E\langle\nabla H, \nabla u_i\rangle^4 &\le C \delta^{-2}, \quad
            E\langle\nabla^2 u_i, \nabla H \otimes \nabla H - V\rangle^2 = o(\delta^{-3})

    A real SGD run at the largest n gives values of u. At every n each left side is estimated at
    parameters that have these values, lifted with random and with aligned remainders; the largest
    over points and statistics is taken, and a power of n is fitted. The right sides are powers of n
    through delta_n, whose exponent is fitted in the same way.

    Source: Definition 2.1 of arXiv 2206.04030; the 8th moment and the last bound are those of its
    later version, the 3rd moment that of the first.

    Args:
        problem_at: a function n -> `SizedProblem`.
        dims: at least two dimensions n, increasing.
        time: limit time of the run.
        points: the number of parameters taken from the run.
        samples: the number of samples at each point.
        seed: the seed of everything random.

    Returns:
        A `ConditionReport`: a table and a verdict in words for each bound. Operator norms are found
        by power iteration; for j = 3 this, from a few starts, gives a lower bound.

    Raises:
        ValueError: if a number is out of its range, or the statistics need a lift of your own.
        TypeError: if ``problem_at`` does not return a `SizedProblem`.

    Example:
        >>> import torchlimits as tl
        >>> def problem_at(n):
        ...     return tl.SizedProblem.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=1.0)
        >>> report = tl.localizability(problem_at, [20, 40, 80], samples=512)
        >>> report["|grad^3 u|"].verdict
        'holds: 0 at all n'
    """
    at_n = sized_problems(problem_at, dims)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for problem, xs in zip(at_n, places(at_n, time, points, seed), strict=True):
        at_points = [_moments(problem, x, samples, seed) for x in xs]
        for name in at_points[0]:
            found[name].append(max(moments[name] for moments in at_points))
    rate = step_exponent(dims, [problem.step_size for problem in at_n])
    conditions = [
        at_most(name, dims, *zip(*found[name], strict=True), power, strict=name == _STRICT)  # type: ignore[arg-type]
        for name, power in _powers(rate).items()
    ]
    title = f"localizability (Definition 2.1), delta = n^-{rate:.3g}: largest over points"
    return ConditionReport(title, tuple(conditions))


def _powers(rate: float) -> dict[str, float]:
    """The powers of n on the right sides of Definition 2.1, with delta = n^-rate."""
    return {
        "|grad^2 u|": rate / 2,
        "|grad^3 u|": 0.0,
        "|grad Phi|": 0.0,
        "E|grad H|^3": 1.5 * rate,
        "E|grad H|^8": 4 * rate,
        "E<grad H, grad u>^4": 2 * rate,
        _STRICT: 3 * rate,
    }


@exactly()
def _moments(
    problem: SizedProblem, parameters: dict[str, Tensor], samples: int, seed: int
) -> Moments:
    """The left sides of Definition 2.1 at one point, each the largest over the statistics."""
    generator = torch.Generator(device=problem.device).manual_seed(seed + 1)
    found = _gradient_moments(problem, parameters, samples, generator)
    along, curved, *_ = problem.estimator().rows(
        parameters, problem.step_size, samples, Motion(problem.weight_decay), generator
    )
    found["E<grad H, grad u>^4"] = _mean((along - along.mean(0)) ** 4)
    # curved is half of <grad^2 u, grad H x grad H>
    found[_STRICT] = _mean(4 * (curved - curved.mean(0)) ** 2)
    for order, value in _derivative_norms(problem, parameters, seed).items():
        found[f"|grad^{order} u|"] = (value, 0.0)
    return found


def _mean(rows: Float[Tensor, "S k"]) -> tuple[float, float]:
    """The largest mean over the statistics, and its error."""
    mean, error = rows.mean(0), standard_error(rows)
    i = int(mean.argmax())
    return float(mean[i]), float(error[i])


def _gradient_moments(
    problem: SizedProblem, parameters: dict[str, Tensor], samples: int, generator: torch.Generator
) -> Moments:
    """|grad Phi| and moments of |grad H|, over all trainable parameters."""
    names = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    gradients = PerSampleGradients(problem.model, problem.loss, names)
    counts = [min(_PIECE, samples - done) for done in range(0, samples, _PIECE)]
    # two halves: the product of their means contains no squared noise
    halves = [{n: torch.zeros_like(parameters[n]) for n in names} for _ in range(2)]
    sizes = [0, 0]
    batches = [problem.sampler(count, generator=generator) for count in counts]
    with torch.no_grad():
        for i, batch in enumerate(batches):
            for name, g in gradients(parameters, batch).items():
                halves[i % 2][name] += total(g)
            sizes[i % 2] += counts[i]
        if not all(sizes):
            raise ValueError(f"expected more than {_PIECE} samples, got {samples}")
        mean = {n: (halves[0][n] + halves[1][n]) / samples for n in names}
        deviations = (
            {n: dense(g) - mean[n] for n, g in gradients(parameters, batch).items()}
            for batch in batches
        )
        squares = torch.cat([_squared_norms(of_batch) for of_batch in deviations])
        ridge = {n: problem.weight_decay * parameters[n] for n in names}
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


def _derivative_norms(
    problem: SizedProblem, parameters: dict[str, Tensor], seed: int
) -> dict[int, float]:
    """The largest operator norms of the statistics' second and third derivatives."""
    names = [n for n, p in problem.model.named_parameters() if p.requires_grad]
    moving = {n: parameters[n].double() for n in names}
    fixed = {n: p.double() for n, p in parameters.items() if n not in moving}
    k = len(problem.statistics(parameters))
    normal: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(seed), "dtype": torch.float64, "device": "cpu",
    }  # fmt: skip
    starts = 3

    def values(x: dict[str, Tensor]) -> Tensor:
        return problem.statistics({**fixed, **x})

    # forward over reverse: torch's forward over forward is wrong for det and solve
    def along(x: dict[str, Tensor], e: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
        return jvp(grad(lambda y: values(y) @ e), (x,), (w,))[1]

    def second_on(e: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """grad^2 u_i w, e being the i-th unit vector."""
        return along(moving, e, w)

    def third_on(e: Tensor, w: dict[str, Tensor]) -> dict[str, Tensor]:
        """grad^3 u_i [w, w, .]."""

        def second(x: dict[str, Tensor]) -> Tensor:
            moved = along(x, e, w)
            return torch.stack([(moved[n] * w[n]).sum() for n in names]).sum()

        return grad(second)(moving)

    result = {}
    chosen = torch.eye(k, dtype=torch.float64, device=problem.device).repeat(starts, 1)
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

"""Hold predictions for anisotropic inputs against SGD in full space.

    python scripts/reach_anisotropic.py --part "least squares" --out scripts/reach_anisotropic.json

Least squares: from w = 0, 100 runs of torch.optim.SGD on a `torchlimits.LinearModel` of N = 1000,
recorded at twelve times, for

* three levels of the covariance, batches of 1;
* the same with batches of 4 and Nesterov's momentum of 0.8;
* a power law, lambda_i = i^(-1), at full resolution of 1000 levels, grouped into six statistics for
  the comparison: sums of D over the first 1, 3, 10 ... directions and the others.

Of the means over runs, the root mean square z (a z has a standard error of the runs; cells are
correlated) should be below 1.3, of the standard deviations the mean ratio to the band within 0.9 to
1.1, and the risk within 1 %. The controls must fail with a root mean square z above 10: no
corrector, and noise that is spread evenly over the dimensions, tau f_l in place of lambda_l f_l
with tau = tr Lambda / N.

Blocks: 100 runs of a network of two tanh neurons on inputs with three levels, N = 1000, under the
same bounds and controls.

Chain: 4000 paths of the exact chain beside as many runs of SGD, N = 60, batches of 2, weight decay,
one block of four dimensions. Ratios of standard deviations should be within 0.95 to 1.05.

Grouping: 16 blocks of a power law beside all 1000 levels. The risks of the two should be within
5e-4 of each other up to t = 3, and a right-hand side of all levels should cost at most three times
that of four blocks.

The script ends with an error otherwise. Figures of other parts that are in the file already are
kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import reach
import torch
from torch import Tensor, nn

import torchlimits as tl
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.gains import Gains
from torchlimits.problems.network.block_field import BlockField
from torchlimits.problems.network.block_piece import BlockPiece

DIM = 1000
#: recorded times after the start
TIMES = 12


@dataclass(frozen=True)
class Case:
    """A linear model, how it is trained, and sums of its statistics that are compared."""

    problem: tl.LinearModel
    step_size: float
    time: float
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    ends: tuple[int, ...] = ()


def cases() -> dict[str, Case]:
    """Three levels, with and without momentum, and a power law."""
    double: dict[str, Any] = {"dtype": torch.float64}
    levels = tl.LinearModel(
        DIM, covariance=[(4.0, 0.1), (1.0, 0.4), (0.25, 0.5)], errors=[0.6, 0.3, 0.8], noise=0.7,
        **double,
    )  # fmt: skip
    spectrum = 1 / torch.arange(1, DIM + 1, dtype=torch.float64)
    power = tl.LinearModel(DIM, covariance=spectrum, noise=0.03, **double)
    return {
        "three levels": Case(levels, 0.9, 3.0),
        "three levels, B = 4, Nesterov 0.8": Case(
            levels, 0.4, 1.0, {"batch_size": 4, "momentum": 0.8, "nesterov": True}
        ),
        "power law": Case(power, 20.0, 40.0, ends=(1, 3, 10, 30, 100)),
    }


def grouped(values: Tensor, case: Case) -> Tensor:
    """Sums of neighbouring statistics, or the statistics themselves."""
    if not case.ends:
        return values
    starts, ends = (0, *case.ends), (*case.ends, values.shape[-1])
    return torch.stack(
        [values[..., a:b].sum(-1) for a, b in zip(starts, ends, strict=True)], dim=-1
    )


def without_spectrum(problem: tl.LinearModel) -> LeastSquaresField:
    """The field whose noise goes into all dimensions alike."""
    levels = problem.levels
    tau = float(levels.fractions @ levels.eigenvalues)
    even = tau * levels.fractions
    gains = Gains(torch.outer(even, levels.eigenvalues), even * problem.noise**2)
    return LeastSquaresField(levels, gains, problem.noise, problem.dim)


def measured(case: Case, runs: int) -> tuple[tl.Trajectory, torch.optim.SGD]:
    """Runs of torch.optim.SGD in the full space."""
    problem, options = case.problem, dict(case.options)
    batch = options.pop("batch_size", 1)
    model = problem.model(replicas=(runs,))
    sgd = torch.optim.SGD(model.parameters(), lr=case.step_size / problem.dim, **options)
    steps = round(case.time * problem.dim / case.step_size)
    generator = torch.Generator().manual_seed(0)
    every = max(1, steps // TIMES)
    with tl.track(model, sgd, problem.statistics, every=every) as tracker:
        for _ in range(steps):
            x, y = problem.sample(batch, replicas=(runs,), generator=generator)
            sgd.zero_grad()
            problem.loss(model(x), y).backward()
            sgd.step()
    return tracker.trajectory(), sgd


def figures_of(case: Case, runs: int) -> dict[str, Any]:
    """What is compared of one case."""
    began = time.perf_counter()
    path, sgd = measured(case, runs)
    problem = case.problem
    dynamics = problem.dynamics(sgd, batch_size=case.options.get("batch_size", 1))
    start, times = problem.initial, path.times
    values = grouped(path.values, case)[:, 1:]
    mean, std = values.mean(0), values.std(0)

    def rms(predicted: Tensor) -> float:
        z = (mean - grouped(predicted, case)[1:]) / (std / runs**0.5)
        return float(z.square().mean().sqrt())

    began_theory = time.perf_counter()
    solved = dynamics.solve(start, times).values
    seconds = time.perf_counter() - began_theory
    covariance = dynamics.covariance(start, times)
    sums = grouped(torch.eye(len(problem.names), dtype=torch.float64), case)
    band = (sums.mT @ covariance @ sums).diagonal(dim1=-2, dim2=-1).sqrt()
    even = tl.EffectiveDynamics(without_spectrum(problem), dynamics.limit)
    risk, truth = problem.risk(path.values).mean(0), problem.risk(solved)
    return {
        "N": problem.dim, "levels": len(problem.names), "c": case.step_size, "time": case.time,
        "cells": mean.numel(), "rms z": rms(solved),
        "largest risk error": float((risk / truth - 1).abs().max()),
        "risk falls by": float(truth[0] / truth[-1]),
        "sd over band": float((std / band[1:]).mean()),
        "rms z without corrector": rms(dynamics.solve(start, times, corrector=False).values),
        "rms z with tau f_l": rms(even.solve(start, times).values),
        "seconds": round(time.perf_counter() - began, 1), "seconds of solve": round(seconds, 3),
    }  # fmt: skip


def least_squares(runs: int) -> tuple[dict[str, Any], bool]:
    """All cases, and whether they are as they should be."""
    report: dict[str, Any] = {}
    held = True
    for name, case in cases().items():
        found = report[name] = figures_of(case, runs)
        print(name, json.dumps(found, indent=2), flush=True)
        held &= found["rms z"] < 1.3 and abs(found["sd over band"] - 1) < 0.1
        held &= found["largest risk error"] < 0.01
        held &= min(found["rms z without corrector"], found["rms z with tau f_l"]) > 10
    return {"runs": runs, **report}, held


# --- networks -------------------------------------------------------------------------------------


def network(
    dim: int, places: tuple[int, int, int], covariance: list[tuple[float, float]]
) -> tl.NetworkProblem:
    """Two tanh neurons on two means in the first block; labels read a direction in the others."""
    e = torch.zeros(2, dim, dtype=torch.float64)
    e[0, places[0]], e[1, places[1]], e[1, places[2]] = 1.0, 0.6, 0.8
    torch.manual_seed(1)
    return tl.NetworkProblem(
        dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, means=torch.stack([1.2 * e[0], -1.2 * e[0]]), directions=e,
        labels=lambda x, component: 0.8 * x[:, 1] + 0.5 - component.to(x), label_noise=0.3,
        snr=1.0, ridge=0.1, dtype=torch.float64, covariance=covariance,
    )  # fmt: skip


def evenly(problem: tl.NetworkProblem, step_size: float) -> tl.EffectiveDynamics:
    """Dynamics whose noise goes into all dimensions alike."""
    dynamics = problem.dynamics(step_size=step_size)
    field = dynamics.field
    assert isinstance(field, BlockField)
    blocks = field.blocks
    even = blocks.covariance.trace / problem.dim * blocks.fractions

    def weights(piece: BlockPiece, like: Tensor) -> Tensor:
        return even.to(like)[:, None, None]

    field._weights = weights  # pyright: ignore
    return dynamics


def blocks(runs: int) -> tuple[dict[str, Any], bool]:
    """Runs of SGD beside the dynamics in blocks."""
    c, T = 0.5, 1.0
    problem = network(DIM, (10, 500, 900), [(0.5, 0.4), (1.0, 0.4), (4.0, 0.2)])
    began = time.perf_counter()
    path = tl.train(
        problem, step_size=c, time=T, runs=runs, seed=1, progress=False, every=250,
        start=problem.model(generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    dynamics, u = problem.dynamics(step_size=c), path.initial[0]
    predicted = dynamics.solve(u, path.times, band=True)
    assert predicted.std is not None
    mean, std = path.values.mean(0)[1:], path.values.std(0)[1:]

    def rms(values: Tensor) -> float:
        z = (mean - values[1:]) / (std / runs**0.5)
        return float(z.square().mean().sqrt())

    found = {
        "N": DIM, "blocks": len(problem.layout.blocks), "c": c, "time": T,  # pyright: ignore
        "cells": mean.numel(), "rms z": rms(predicted.values),
        "sd over band": float((std / predicted.std[1:]).mean()),
        "rms z without corrector": rms(dynamics.solve(u, path.times, corrector=False).values),
        "rms z with tau f_l": rms(evenly(problem, c).solve(u, path.times).values),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    held = found["rms z"] < 1.3 and abs(found["sd over band"] - 1) < 0.1
    held &= min(found["rms z without corrector"], found["rms z with tau f_l"]) > 10
    return {"runs": runs, **found}, held


def chain(runs: int) -> tuple[dict[str, Any], bool]:
    """Paths of the exact chain beside runs of SGD in the full space."""
    dim, steps, c = 60, 60, 0.6
    problem = network(dim, (0, 30, 57), [(0.5, 30 / 60), (1.0, 26 / 60), (4.0, 4 / 60)])
    settings: dict[str, Any] = {"step_size": c, "batch_size": 2}
    began = time.perf_counter()
    full = tl.train(
        problem, **settings, time=steps * c / dim, runs=runs, seed=1, progress=False, every=steps,
        start=problem.model(generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    exact = problem.reduced_chain(**settings).run(
        full.initial[0], steps, runs=runs, every=steps, generator=torch.Generator().manual_seed(3)
    )
    first, second = full.values[:, -1], exact.values[:, -1]
    error = ((first.var(0) + second.var(0)) / runs).sqrt()
    z = (first.mean(0) - second.mean(0)) / error
    ratio = first.std(0) / second.std(0)
    found = {
        "N": dim, "sizes of blocks": [30, 26, 4], "steps": steps, "statistics": len(z),
        "largest |z|": float(z.abs().max()), "smallest sd ratio": float(ratio.min()),
        "largest sd ratio": float(ratio.max()), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    held = found["smallest sd ratio"] > 0.95 and found["largest sd ratio"] < 1.05
    return {"runs": runs, **found}, held and found["largest |z|"] < 4


def power_law(blocks: int | str) -> tl.NetworkProblem:
    """Two tanh neurons that learn a teacher on inputs with lambda_i ~ 1/i."""
    spectrum = 1 / torch.arange(1, DIM + 1, dtype=torch.float64)
    vector = torch.randn(DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    return tl.NetworkProblem(
        dim=DIM, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)), snr=1.0,
        loss=nn.functional.mse_loss, directions=(vector / vector.norm())[None], label_noise=0.3,
        labels=lambda x, _: torch.tanh(2 * x[:, 0]), dtype=torch.float64, blocks=blocks,
        covariance=spectrum / spectrum.mean(),
    )  # fmt: skip


def grouping(runs: int) -> tuple[dict[str, Any], bool]:
    """16 blocks beside all levels, and what a right-hand side costs; `runs` repeats of it."""
    c, times = 0.1, torch.linspace(0, 3, 13)
    model = power_law("all").model(generator=torch.Generator().manual_seed(0))
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    risks: dict[str, Tensor] = {}
    sides: dict[str, Callable[[], Tensor]] = {}
    seconds: dict[str, float] = {}
    for blocks in ("all", 16, 4):
        problem = power_law(blocks)
        dynamics, u = problem.dynamics(step_size=c), problem.statistics(parameters)
        sides[str(blocks)] = lambda f=dynamics, u=u: f(0.0, u)
        began = time.perf_counter()
        values = dynamics.solve(u, times, rtol=1e-6, atol=1e-8).values
        seconds[str(blocks)] = round(time.perf_counter() - began, 1)
        risks[str(blocks)] = dynamics.risk(values)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            spent[name].append(1e3 * (time.perf_counter() - began))
    cost = {name: statistics.median(some) for name, some in spent.items()}
    error = {n: float((risks[n] - risks["all"]).abs().max()) for n in ("16", "4")}
    found = {
        "N": DIM, "c": c, "time": 3.0, "repeats": runs,
        "risk": [round(float(risks["all"][n]), 5) for n in (0, -1)],
        "largest risk error of 16 blocks": error["16"],
        "largest risk error of 4 blocks": error["4"],
        "ms of a right-hand side": {n: round(ms, 3) for n, ms in cost.items()},
        "all levels over 4 blocks": cost["all"] / cost["4"], "seconds of solve": seconds,
    }  # fmt: skip
    return found, error["16"] < 5e-4 and cost["all"] < 3 * cost["4"]


#: the parts, and their numbers of runs
PARTS: dict[str, tuple[Callable[[int], tuple[dict[str, Any], bool]], int]] = {
    "least squares": (least_squares, 100), "blocks": (blocks, 100), "chain": (chain, 4000),
    "grouping": (grouping, 100),
}  # fmt: skip


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of other parts that are in the file already."""
    if options.out is None or not options.out.exists():
        return {}
    known = json.loads(options.out.read_text())
    return {part: known[part] for part in PARTS if part in known}


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default="least squares")
    parser.add_argument("--runs", type=int, help="or repeats, by default those of the part")
    options = parser.parse_args()
    # lr lambda_max of the power law
    warnings.filterwarnings("ignore", message="lr lambda_max")
    measure, runs = PARTS[options.part]
    figures, held = measure(options.runs or runs)
    reach.keep({**kept(options), options.part: figures}, options)
    if not held:
        sys.exit(f"{options.part}: the prediction does not hold as it should")


if __name__ == "__main__":
    main()

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
with tau = tr Lambda / N. The script ends with an error otherwise. Figures of other parts that
are in the file already are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import reach
import torch
from torch import Tensor

import torchlimits as tl
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.gains import Gains

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


PARTS: dict[str, Callable[[int], tuple[dict[str, Any], bool]]] = {"least squares": least_squares}


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of other parts that are in the file already."""
    if options.out is None or not options.out.exists():
        return {}
    known = json.loads(options.out.read_text())
    return {part: known[part] for part in PARTS if part in known}


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--part", choices=PARTS, default="least squares")
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    figures, held = PARTS[options.part](options.runs)
    reach.keep({**kept(options), options.part: figures}, options)
    if not held:
        sys.exit(f"{options.part}: the prediction does not hold as it should")


if __name__ == "__main__":
    main()

"""Hold the law of runs against SGD in full space, random starts near saddles included.

    python scripts/reach_law.py --out scripts/reach_law.json

Four problems: the binary mixture (K = 2), XOR (K = 4), matrix PCA just above the critical snr, and
tensor PCA of order 3 at its equator. From each of several random starts, drawn once, 2,000 runs of
torch.optim.SGD are compared with the 95 % bounds of `problem.dynamics(...).reduced_chain().law`,
drawn by 20,000 paths, and with the linear band. A cell is one statistic at one time from one start;
its share of runs inside has a standard error of 0.5 %. The script ends with an error if a cell is
beyond what chance allows at the level of 1 % for all cells together, if the share over all cells is
not within 94 to 96 %, or if the linear band's worst cell holds 90 % or more: there it must fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import reach
import torch
from scipy.stats import norm

import torchlimits as tl

LEVEL = 0.95
#: recorded times after the start
TIMES = 12


@dataclass(frozen=True)
class Case:
    """A problem, and how long it is trained."""

    problem: Any
    step_size: float
    time: float
    starts: int


def cases() -> dict[str, Case]:
    """The problems, at dimensions at which saddles matter."""
    return {
        "binary K=2": Case(tl.GaussianMixture.binary(250, 2, snr=2.0, ridge=0.05), 1.0, 8.0, 3),
        "XOR K=4": Case(tl.GaussianMixture.xor(250, 4, snr=8.0, ridge=0.05), 1.0, 12.0, 3),
        "matrix PCA, snr 1.2": Case(tl.SpikedTensor(100, 2, snr=1.2), 1.0, 6.0, 3),
        "tensor PCA, k=3": Case(tl.SpikedTensor(30, 3, snr=6.0), 0.25, 0.6, 3),
    }


def shares(case: Case, start: int, runs: int, paths: int) -> dict[str, torch.Tensor]:
    """The share of runs inside the bounds in each cell, ``(T, k)``, of law and linear band."""
    problem, seed = case.problem, 100 + start
    model = problem.model(generator=torch.Generator().manual_seed(seed))
    steps = round(case.time * problem.dim / case.step_size)
    measured = tl.train(
        problem, step_size=case.step_size, time=case.time, runs=runs, seed=seed, start=model,
        every=max(1, steps // TIMES), dtype=torch.float64, progress=False,
    )  # fmt: skip
    u0, dynamics = measured.initial[0], problem.dynamics(step_size=case.step_size)
    generator = torch.Generator().manual_seed(seed)
    law = dynamics.reduced_chain().law(
        u0, measured.times, runs=paths, level=LEVEL, generator=generator
    )
    linear = dynamics.solve(u0, measured.times, band=True)
    found: dict[str, torch.Tensor] = {}
    for name, path in (("law", law), ("linear", linear)):
        assert path.bounds is not None
        low, high = path.bounds
        inside = (measured.values >= low) & (measured.values <= high)
        found[name] = inside[:, 1:].double().mean(0)
    return found


def measured_against(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The figures, and whether all is as it should be."""
    report: dict[str, Any] = {}
    for name, case in cases().items():
        began = time.perf_counter()
        found = [shares(case, i, options.runs, options.paths) for i in range(case.starts)]
        law, linear = (torch.stack([one[kind] for one in found]) for kind in ("law", "linear"))
        error = (LEVEL * (1 - LEVEL) * (1 / options.runs + 1 / options.paths)) ** 0.5
        report[name] = {
            "N": case.problem.dim, "c": case.step_size, "time": case.time, "starts": case.starts,
            "cells": law.numel(),
            "share inside the law": float(law.mean()),
            "law, worst cell": float(law.min()), "law, fullest cell": float(law.max()),
            "largest |z| of a cell": float((law - LEVEL).abs().max() / error),
            "linear band, share inside": float(linear.mean()),
            "linear band, worst cell": float(linear.min()),
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        print(name, json.dumps(report[name], indent=2), flush=True)
    cells = sum(part["cells"] for part in report.values())
    overall = sum(part["share inside the law"] * part["cells"] for part in report.values()) / cells
    allowed = float(norm.isf(0.005 / cells))
    worst = max(part["largest |z| of a cell"] for part in report.values())
    weakest = min(part["linear band, worst cell"] for part in report.values())
    total = {
        "cells": cells, "share inside the law": overall, "largest |z| of a cell": worst,
        "allowed |z| at 1 % for all cells": allowed, "linear band, worst cell": weakest,
    }  # fmt: skip
    held = worst < allowed and abs(overall - LEVEL) < 0.01 and weakest < 0.9
    return {"runs": options.runs, "paths": options.paths, **total, "problems": report}, held


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--paths", type=int, default=20_000)
    options = parser.parse_args()
    figures, held = measured_against(options)
    reach.keep(figures, options)
    if not held:
        sys.exit("the law does not hold as it should")


if __name__ == "__main__":
    main()

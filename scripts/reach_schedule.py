"""Hold runs with the optimal schedule against runs with the best constant learning rate.

    python scripts/reach_schedule.py --out scripts/reach_schedule.json

The committee machine of Saad and Rattray (K = M = 2, erf, label noise) and the binary mixture:
`tl.optimal_schedule` minimises the risk after a number of steps; the exact chain then makes 200
runs with the schedule, in 40 pieces of constant c, and 200 with the best constant, and torch.optim
itself, with LambdaLR, makes some of both. The gain is the difference of the mean risks of runs at
their end, with its standard error. The script ends with an error if a gain of the chain is not
above 0 by four errors, if it is off the predicted one by more than four errors and a quarter of it
(the limit is for n -> infinity), or if the mean risk of torch.optim's runs is off that of the
chain's by more than four errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import reach
import torch
from torch import Tensor

import torchlimits as tl

PIECES = 40


def committee(dim: int) -> tuple[Any, Tensor, float, int]:
    """The problem, its start, the step size of its dynamics and the number of steps."""
    problem = tl.TeacherStudent(
        dim=dim, width=2, teacher_width=2, noise=0.5, train_second_layer=False, dtype=torch.float64
    )
    Q = torch.diag(torch.tensor([0.3, 0.3], dtype=torch.float64))
    C = torch.tensor([[0.2, 0.05], [0.05, 0.2]], dtype=torch.float64)
    return problem, problem.from_order_parameters(Q, C), 0.5, 40 * dim


def mixture(dim: int) -> tuple[Any, Tensor, float, int]:
    """The same for the binary mixture."""
    problem = tl.GaussianMixture.binary(dim=dim, width=2, snr=2.0, dtype=torch.float64)
    u0 = torch.tensor([0.5, -0.5, 0.2, -0.2, 0.5, 0.0, 0.5], dtype=torch.float64)
    return problem, u0, 1.0, 12 * dim


def by_chain(
    problem: Any, u0: Tensor, c: Callable[[float], float], steps: int, runs: int, seed: int
) -> Tensor:
    """Statistics at the end of runs of the exact chain, c constant in each of some pieces."""
    generator = torch.Generator().manual_seed(seed)
    u = u0.expand(runs, -1)
    marks = torch.linspace(0, steps, PIECES + 1).round().long().tolist()
    for begin, end in pairwise(marks):
        chain = problem.reduced_chain(step_size=c((begin + end - 1) / 2 / problem.dim))
        u = chain.run(u, end - begin, every=end - begin, generator=generator).final
    return u


def by_torch(
    problem: Any, u0: Tensor, c: float, factor: Callable[[int], float], steps: int, runs: int,
    seed: int,
) -> Tensor:  # fmt: skip
    """Statistics at the end of runs of torch.optim.SGD with LambdaLR."""
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(replicas=(runs,), generator=generator)
    parameters = dict(model.named_parameters())
    first = parameters["first.weight"]
    with torch.no_grad():
        first.copy_(rows(problem, u0, first, generator))
        if "second.weight" in parameters:
            parameters["second.weight"].copy_(u0[:2].expand(runs, 1, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=c / problem.dim)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(steps):
        x, y = problem.sample(1, replicas=(runs,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        scheduler.step()
    return problem.statistics({n: p.detach() for n, p in model.named_parameters()})


def rows(problem: Any, u0: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    """Rows W with the statistics of a start, in random directions."""
    parts = problem.layout.split(u0)
    m, R = parts[2], parts[3]
    directions = problem.directions.to(like)
    normal = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    across = normal - normal @ directions.mT @ directions
    frame = torch.linalg.qr(across.mT).Q.mT
    return m @ directions + torch.linalg.cholesky(R) @ frame


def figures_of(make: Callable[[int], Any], options: argparse.Namespace) -> dict[str, Any]:
    """What is predicted and measured for a problem."""
    problem, u0, c, steps = make(options.dim)
    dynamics = problem.dynamics(step_size=c)
    began = time.perf_counter()
    best = tl.optimal_schedule(dynamics, u0, steps, dynamics.risk)
    found = time.perf_counter() - began
    risks: dict[str, Tensor] = {}
    for number, (name, of_alpha) in enumerate(
        {"schedule": best, "constant": lambda alpha: best.constant}.items()
    ):
        final = by_chain(problem, u0, of_alpha, steps, options.runs, seed=number)
        risks[name] = dynamics.risk(final)
        final = by_torch(
            problem, u0, c, lambda step, at=of_alpha: at(step / problem.dim) / c, steps,
            options.torch_runs, seed=10 + number,
        )  # fmt: skip
        risks[f"{name}, torch"] = dynamics.risk(final)
    mean = {name: float(x.mean()) for name, x in risks.items()}
    error = {name: float(x.std()) / len(x) ** 0.5 for name, x in risks.items()}
    gain_error = (error["schedule"] ** 2 + error["constant"] ** 2) ** 0.5
    return {
        "N": options.dim, "steps": steps, "runs": options.runs, "torch runs": options.torch_runs,
        "alpha": best.knots.tolist(), "c": best.step_sizes.tolist(), "best constant": best.constant,
        "predicted risk with the schedule": best.objective,
        "predicted risk with the constant": best.constant_objective,
        "predicted gain": best.gain,
        "mean risk": mean, "standard error": error,
        "gain": mean["constant"] - mean["schedule"], "its standard error": gain_error,
        "seconds of theory": round(found, 1),
    }  # fmt: skip


def faults(name: str, found: dict[str, Any]) -> list[str]:
    """What does not hold."""
    gain, error, told = found["gain"], found["its standard error"], found["predicted gain"]
    wrong: list[str] = []
    if gain < 4 * error:
        wrong.append(f"{name}: a gain of {gain:.2g} +- {error:.1g}")
    if abs(gain - told) > 4 * error + told / 4:
        wrong.append(f"{name}: a gain of {gain:.2g} +- {error:.1g}, predicted {told:.2g}")
    for kind in ("schedule", "constant"):
        mean, errors = found["mean risk"], found["standard error"]
        off = abs(mean[kind] - mean[f"{kind}, torch"])
        if off > 4 * (errors[kind] ** 2 + errors[f"{kind}, torch"] ** 2) ** 0.5:
            wrong.append(f"{name}: runs of torch.optim with the {kind} are off by {off:.2g}")
    return wrong


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--torch-runs", type=int, default=20)
    options = parser.parse_args()
    found = {
        "committee machine": figures_of(committee, options),
        "binary mixture": figures_of(mixture, options),
    }
    reach.keep(found, options)
    wrong = [fault for name, figures in found.items() for fault in faults(name, figures)]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

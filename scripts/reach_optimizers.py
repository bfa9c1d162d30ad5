"""Train networks with optimizers that scale gradients, and hold theory against them.

    python scripts/reach_optimizers.py --out scripts/reach_optimizers.json [--parts adam rmsprop]

Each part trains runs of one network from one start with an optimizer of torch.optim, and reports
the largest difference between their mean and the prediction, over the network's statistics and all
recorded times; the same with the corrector left out, which must be far off; and rms z, which is
that difference in standard errors of the mean. The part "adam" also has the prediction with second
moments that follow gradients at once, which must fail, and the runs' standard deviations over the
band's. The script ends with an error if a part is not within its bound. Parts that are not named
keep their figures in the file.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import reach
import torch
from torch import Tensor, nn

import torchlimits as tl

#: parameters, N -> optimizer
Make = Callable[[Any, int], torch.optim.Optimizer]


@dataclass(frozen=True)
class Part:
    """One optimizer on one network.

    Args:
        make: makes the optimizer.
        bound: of the largest difference.
        head: "tanh" with two neurons and two components, or "gelu" with three and three classes.
        dim: N.
        axes: whether the means lie on axes.
        batch: B.
        runs, time: how many, and for how long.
        band: whether the band is compared.
        slaved: whether second moments that follow at once are held against the runs.
    """

    make: Make
    bound: float
    head: str = "tanh"
    dim: int = 1000
    axes: bool = False
    batch: int = 1
    runs: int = 100
    time: float = 2.0
    band: bool = False
    slaved: bool = False


PARTS: dict[str, Part] = {
    "adam": Part(
        lambda p, n: torch.optim.Adam(p, lr=0.5 / n), 0.015, runs=200, band=True, slaved=True
    ),
    "adam on axes": Part(
        lambda p, n: torch.optim.Adam(p, lr=0.5 / n), 0.015, axes=True, runs=200
    ),
    "adamw": Part(
        lambda p, n: torch.optim.AdamW(p, lr=0.25 / n, weight_decay=0.2), 0.012, head="gelu",
        batch=4, time=1.5,
    ),
    "rmsprop": Part(lambda p, n: torch.optim.RMSprop(p, lr=0.25 / n), 0.012, dim=4000, runs=40),
    "adagrad": Part(
        lambda p, n: torch.optim.Adagrad(p, lr=0.5 * n**-0.5, initial_accumulator_value=0.5 * n),
        0.012, time=60.0,
    ),
}  # fmt: skip


def problem_of(part: Part) -> tl.NetworkProblem:
    """A Gaussian mixture with one component for each neuron."""
    count = 2 if part.head == "tanh" else 3
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    signs = torch.randn(part.dim, count, generator=generator, dtype=torch.float64).sign()
    means = torch.eye(count, part.dim) if part.axes else torch.linalg.qr(signs)[0].mT
    shared: dict[str, Any] = {"dim": part.dim, "width": count, "means": means, "snr": 4.0}
    if part.head == "tanh":
        head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
        return tl.NetworkProblem(
            head=head, loss=nn.functional.mse_loss, labels=torch.tensor([1.0, -1.0]), **shared
        )
    head = nn.Sequential(nn.GELU(), nn.Linear(3, 3))
    return tl.NetworkProblem(
        head=head, loss=nn.functional.cross_entropy, labels=torch.arange(3), ridge=0.2, **shared
    )


def runs_of(part: Part, seed: int = 1) -> tuple[tl.Trajectory, Any]:
    """Runs of the optimizer from one start, and the dynamics that go with it."""
    problem = problem_of(part)
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(replicas=(part.runs,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    optimizer = part.make(model.parameters(), part.dim)
    dynamics = problem.dynamics(optimizer, batch_size=part.batch, model=model, nodes=2**13)
    steps = round(part.time / optimizer.param_groups[0]["lr"])
    with tl.track(model, optimizer, dynamics.statistics, every=max(1, steps // 20)) as tracker:
        for _ in range(steps):
            x, y = problem.sample(part.batch, replicas=(part.runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    return tracker.trajectory(), dynamics


def slaved(dynamics: Any) -> Any:
    """The dynamics with second moments that are what gradients make them at every moment."""
    scales = dynamics.field._scales
    dynamics.field._scales = lambda v, w, Q: scales(Q, torch.ones_like(w), Q)
    return dynamics


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return float(x.square().mean().sqrt())


def figures_of(part: Part) -> dict[str, Any]:
    """What a part reports."""
    began = time.perf_counter()
    measured, dynamics = runs_of(part)
    trained = time.perf_counter() - began
    start, own = measured.initial[0], len(dynamics.network.names)
    mean, sd = measured.values.mean(0)[1:, :own], measured.values.std(0)[1:, :own]

    def off(predicted: tl.Trajectory) -> tuple[float, float]:
        difference = mean - predicted.values[1:, :own]
        z = difference / (sd / part.runs**0.5).clamp_min(1e-12)
        return round(float(difference.abs().max()), 5), round(rms(z), 2)

    began = time.perf_counter()
    predicted = dynamics.solve(start, measured.times)
    solved = time.perf_counter() - began
    largest, z = off(predicted)
    without, z_without = off(dynamics.solve(start, measured.times, corrector=False))
    figures: dict[str, Any] = {
        "bound": part.bound, "largest difference": largest, "rms z": z,
        "largest difference without corrector": without, "rms z without corrector": z_without,
        "largest standard error": round(float(sd.max()) / part.runs**0.5, 5),
        "largest change of a statistic": round(float((mean - start[:own]).abs().max()), 3),
        "N": part.dim, "B": part.batch, "runs": part.runs, "time": part.time,
        "optimizer": dynamics.describe(), "seconds of training": round(trained, 1),
        "seconds of theory": round(solved, 1),
    }  # fmt: skip
    if part.band:
        predicted = dynamics.solve(start, measured.times, band=True)
        assert predicted.std is not None
        band = predicted.std[1:, :own]
        ratios = (sd / band)[band > 0.1 * band.median()]
        figures["rms sd ratio"] = round(rms(ratios), 3)
    if part.slaved:
        figures["largest difference with second moments that follow at once"] = off(
            slaved(dynamics).solve(start, measured.times)
        )[0]
    return figures


def holds(figures: dict[str, Any]) -> bool:
    """Whether a part is within its bounds, and what must fail fails."""
    bound = figures["bound"]
    wrong = [v for k, v in figures.items() if k.startswith("largest difference w")]
    return (
        figures["largest difference"] < bound
        and all(value > 2 * bound for value in wrong)
        and 0.9 < figures.get("rms sd ratio", 1.0) < 1.1
    )


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    parts = {name: known[name] for name in PARTS if name in known}
    failed: list[str] = []
    for name in options.parts:
        stamp = {"date": datetime.date.today().isoformat(), "commit": reach.commit()}
        parts[name] = {**stamp, **figures_of(PARTS[name])}
        # after each part, as the next may take long
        reach.keep(parts, options)
        if not holds(parts[name]):
            failed.append(name)
    if failed:
        sys.exit(f"not within their bounds: {', '.join(failed)}")


if __name__ == "__main__":
    main()

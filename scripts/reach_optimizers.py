"""Train networks with optimizers that are not plain SGD, and hold theory against them.

    python scripts/reach_optimizers.py --out scripts/reach_optimizers.json [--parts adam rmsprop]

Each part trains runs of one network from one start with an optimizer of torch.optim (or
tl.SignSGD, or SGD with clipped gradients), and reports the largest difference between their mean
and the prediction, over the network's statistics and all recorded times; and rms z, which is that
difference in standard errors of the mean. The same with the corrector left out must be far off,
and so must what else is left out: second moments that are not there at once, clipping, the buffer
of momentum at finite N. Standard deviations of runs are held against the band's. Steps, sizes and
numbers of runs were fixed before anything was compared. The script ends with an error if a part is
not within its bounds. Parts that are not named keep their figures in the file.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import reach
import torch
from torch import Tensor, nn
from training import Change, ClipNorm, ClipValue, Make, Runs, means, muon, trained

import torchlimits as tl

#: runs, start, times -> what is predicted of them
Predict = Callable[[Runs, Tensor, Tensor], tl.Trajectory]

NODES = 2**13


def limit(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """The effective dynamics."""
    return runs.dynamics(nodes=NODES).solve(start, times)


def without_corrector(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """The drift alone."""
    return runs.dynamics(nodes=NODES).solve(start, times, corrector=False)


def without_clipping(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """The effective dynamics of gradients as they are."""
    return runs.dynamics(nodes=NODES, clip=False).solve(start, times)


def slaved(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """Second moments that are what gradients make them at every moment."""
    dynamics = runs.dynamics(nodes=NODES)
    scales = dynamics.field._scales
    dynamics.field._scales = lambda v, w, Q: scales(Q, torch.ones_like(w), Q)
    return dynamics.solve(start, times)


def next_order(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """The parameters of momentum, with its buffer at finite N."""
    return tl.NextOrder(runs.dynamics(nodes=NODES)).solve(start, times)


def next_order_slow(runs: Runs, start: Tensor, times: Tensor) -> tl.Trajectory:
    """The slow variable of momentum, with its buffer at finite N."""
    return tl.NextOrder(runs.dynamics(nodes=NODES)).solve(start, times, slow=True)


@dataclass(frozen=True)
class Part:
    """One optimizer on one network.

    Args:
        make: makes the optimizer.
        bound: of the largest difference, if it has one.
        bound_z: of rms z, if it has one.
        head: "tanh" with two neurons and two components, or "gelu" with three and three classes.
        dim: N.
        axes: whether the means lie on axes.
        batch: B.
        runs, time: how many, and for how long.
        band: whether the band is compared.
        change: makes what the loop does to gradients before the step.
        statistics: what is recorded, of the statistics of the dynamics.
        predict: the prediction.
        controls: predictions that must fail, beside that without the corrector; name -> prediction.
    """

    make: Make
    bound: float | None = None
    bound_z: float | None = None
    head: str = "tanh"
    dim: int = 1000
    axes: bool = False
    batch: int = 1
    runs: int = 100
    time: float = 2.0
    band: bool = False
    change: Callable[[], Change] = Change
    statistics: Callable[[Any], Any] | None = None
    predict: Predict = limit
    controls: Mapping[str, Predict] = field(default_factory=dict)


def sign(batch: int) -> Part:
    """Signs of gradients."""
    return Part(
        lambda m, n: tl.SignSGD(m.parameters(), lr=0.5 / n), 0.015, batch=batch, band=True
    )  # fmt: skip


def momentum(dim: int, *, slow: bool) -> Part:
    """Momentum near 1, whose steps add up to those of SGD with c = 1."""
    return Part(
        lambda m, n: torch.optim.SGD(m.parameters(), lr=0.03 / n, momentum=0.97), bound_z=1.5,
        dim=dim, time=0.06, statistics=tl.statistics.slow_variable if slow else None,
        predict=next_order_slow if slow else next_order,
        controls={"without the buffer": limit},
    )  # fmt: skip


def clipped_norm(step_size: float) -> Part:
    """SGD, whose gradients are clipped by half on the average."""
    return Part(
        lambda m, n: torch.optim.SGD(m.parameters(), lr=step_size / n), bound_z=2.0, dim=250,
        batch=16, time=4.0, band=True, change=lambda: ClipNorm(0.7),
        controls={"without clipping": without_clipping},
    )  # fmt: skip


def muon_and_sgd(model: nn.Module, dim: int) -> list[torch.optim.Optimizer]:
    """torch's defaults of Muon, but for the weight decay, on the first layer; SGD on the rest."""
    rest = [p for name, p in model.named_parameters() if name != "first.weight"]
    return [
        muon(model.first.weight, lr=0.25 * dim**-0.5, weight_decay=0.0),  # type: ignore[arg-type]
        torch.optim.SGD(rest, lr=1.0 / dim),
    ]


def sgd(model: nn.Module, dim: int) -> torch.optim.Optimizer:
    """Plain SGD with c = 1."""
    return torch.optim.SGD(model.parameters(), lr=1.0 / dim)


PARTS: dict[str, Part] = {
    "adam": Part(
        lambda m, n: torch.optim.Adam(m.parameters(), lr=0.5 / n), 0.015, runs=200, band=True,
        controls={"with second moments that follow at once": slaved},
    ),
    "adam on axes": Part(
        lambda m, n: torch.optim.Adam(m.parameters(), lr=0.5 / n), 0.015, axes=True, runs=200,
    ),
    "adamw": Part(
        lambda m, n: torch.optim.AdamW(m.parameters(), lr=0.25 / n, weight_decay=0.2), 0.012,
        head="gelu", batch=4, time=1.5,
    ),
    "rmsprop": Part(
        lambda m, n: torch.optim.RMSprop(m.parameters(), lr=0.25 / n), 0.012, dim=4000, runs=40,
    ),
    "adagrad": Part(
        lambda m, n: torch.optim.Adagrad(
            m.parameters(), lr=0.5 * n**-0.5, initial_accumulator_value=0.5 * n
        ),
        0.012, time=60.0,
    ),
    "sign, B = 1": sign(1),
    "sign, B = 2": sign(2),
    "sign, B = 4": sign(4),
    "sign, B = 16": sign(16),
    "clip_grad_norm_": clipped_norm(1.0),
    # with c / B = 1/2, as above, the corrector counts
    "clip_grad_norm_, c = 8": clipped_norm(8.0),
    # steps of the length that clipping leaves: what of its rms z is plain SGD's; no bound
    "SGD, c = 4, B = 16": Part(
        lambda m, n: torch.optim.SGD(m.parameters(), lr=4.0 / n), dim=250, batch=16, time=4.0,
        band=True,
    ),
    "clip_grad_value_": Part(
        sgd, bound_z=1.5, time=4.0, band=True, change=lambda: ClipValue(0.15),
        controls={"without clipping": without_clipping},
    ),
    # 2 N steps; with 24 runs the largest standard error was .006, and the difference .0157
    "muon": Part(
        muon_and_sgd, 0.015, dim=4000, batch=4, time=0.5 * 4000**0.5, band=True,
    ),
    "momentum, N = 250": momentum(250, slow=False),
    "momentum, slow variable, N = 250": momentum(250, slow=True),
    "momentum, N = 1000": momentum(1000, slow=False),
    "momentum, slow variable, N = 1000": momentum(1000, slow=True),
}  # fmt: skip


def problem_of(part: Part) -> tl.NetworkProblem:
    """A Gaussian mixture with one component for each neuron."""
    count = 2 if part.head == "tanh" else 3
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    signs = torch.randn(part.dim, count, generator=generator, dtype=torch.float64).sign()
    directions = torch.eye(count, part.dim) if part.axes else torch.linalg.qr(signs)[0].mT
    shared: dict[str, Any] = {"dim": part.dim, "width": count, "means": directions, "snr": 4.0}
    if part.head == "tanh":
        head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
        return tl.NetworkProblem(
            head=head, loss=nn.functional.mse_loss, labels=torch.tensor([1.0, -1.0]), **shared
        )
    head = nn.Sequential(nn.GELU(), nn.Linear(3, 3))
    return tl.NetworkProblem(
        head=head, loss=nn.functional.cross_entropy, labels=torch.arange(3), ridge=0.2, **shared
    )


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return float(x.square().mean().sqrt())


def figures_of(part: Part) -> dict[str, Any]:
    """What a part reports."""
    began = time.perf_counter()
    runs = trained(
        problem_of(part), part.make, runs=part.runs, time=part.time, batch=part.batch,
        change=part.change(), statistics=part.statistics,
    )  # fmt: skip
    training = time.perf_counter() - began
    measured, dynamics = runs.measured, runs.dynamics(nodes=NODES)
    start, own = measured.initial[0], len(dynamics.network.names)
    mean, sd = means(runs, own)
    error = (sd / part.runs**0.5).clamp_min(1e-12)

    def off(predict: Predict) -> tuple[float, float]:
        difference = mean - predict(runs, start, measured.times).values[1:, :own]
        return round(float(difference.abs().max()), 5), round(rms(difference / error), 2)

    began = time.perf_counter()
    largest, z = off(part.predict)
    solving = time.perf_counter() - began
    bounds = {"bound": part.bound, "bound of rms z": part.bound_z}
    figures: dict[str, Any] = {k: v for k, v in bounds.items() if v is not None}
    figures |= {"largest difference": largest, "rms z": z}
    for name, predict in {"without corrector": without_corrector, **part.controls}.items():
        figures[f"largest difference {name}"], figures[f"rms z {name}"] = off(predict)
    figures |= {
        "largest standard error": round(float(error.max()), 5),
        "largest change of a statistic": round(float((mean - start[:own]).abs().max()), 3),
        "N": part.dim, "B": part.batch, "runs": part.runs, "time": part.time,
        **runs.change.figures(), "optimizer": dynamics.describe(),
        "seconds of training": round(training, 1), "seconds of theory": round(solving, 1),
    }  # fmt: skip
    if part.band:
        predicted = dynamics.solve(start, measured.times, band=True)
        assert predicted.std is not None
        band = predicted.std[1:, :own]
        ratios = (sd / band)[band > 0.1 * band.median()]
        figures["rms sd ratio"] = round(rms(ratios), 3)
        figures["median sd ratio"] = round(float(ratios.median()), 3)
    return figures


def controls(figures: Mapping[str, Any], kind: str) -> list[float]:
    """What predictions that must fail are off by."""
    return [value for name, value in figures.items() if name.startswith(f"{kind} w")]


def holds(figures: Mapping[str, Any]) -> bool:
    """Whether a part is within its bounds, and what must fail fails.

    That is beyond twice the bound of the largest difference, or beyond that of rms z.
    """
    bound, bound_z = figures.get("bound"), figures.get("bound of rms z")
    if bound is not None and not figures["largest difference"] < bound:
        return False
    if bound is not None and not min(controls(figures, "largest difference")) > 2 * bound:
        return False
    if bound_z is not None and not figures["rms z"] < bound_z < min(controls(figures, "rms z")):
        return False
    return 0.9 < figures.get("median sd ratio", 1.0) < 1.1


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    options = parser.parse_args()
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    parts = {name: known[name] for name in PARTS if name in known}
    failed: list[str] = []
    for name in options.parts:
        stamp = {"date": datetime.date.today().isoformat(), "commit": reach.commit()}
        figures = figures_of(PARTS[name])
        parts[name] = {**stamp, "holds": holds(figures), **figures}
        # after each part, as the next may take long
        reach.keep(parts, options)
        if not parts[name]["holds"]:
            failed.append(name)
    if failed:
        sys.exit(f"not within their bounds: {', '.join(failed)}")


if __name__ == "__main__":
    main()

"""One network, one start, nine optimizers: what they do, over what is predicted for each.

    python scripts/optimizers.py
    python scripts/optimizers.py --smoke

Two Gaussian classes, two tanh neurons, as many steps for every optimizer. Each panel has the risk
and R[0,0], the squared length of a neuron off the directions of the data: means of runs (dots) with
a standard deviation of one run on either side (shaded), the effective dynamics (lines), and the
same with the corrector left out (dashed). Prints the largest differences, and writes
<out>/optimizers.png. An optimizer of torch that is predicted is one more line in OPTIMIZERS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from training import Change, ClipNorm, Make, muon, trained

import torchlimits as tl

#: of each statistic that is drawn
COLOURS = {"risk": "#3b6fb6", "R[0,0]": "#c8452f"}


@dataclass
class Options:
    """Sizes."""

    dim: int = 1000
    """N"""
    runs: int = 40
    """runs of each optimizer"""
    length: float = 4.0
    """steps over N"""
    seed: int = 1
    smoke: Annotated[bool, tyro.conf.arg(aliases=["--quick"])] = False
    """small sizes, done in half a minute"""
    out: Path = Path("runs/optimizers")


@dataclass(frozen=True)
class Entry:
    """An optimizer, and what the loop does to gradients before its step.

    Args:
        make: makes it of a model and N.
        change: makes what is done to gradients, of N.
        decay: its weight decay.
    """

    make: Make
    change: Callable[[int], Change] = lambda n: Change()
    decay: float = 0.0


def muon_and_adamw(model: nn.Module, dim: int) -> list[torch.optim.Optimizer]:
    """Muon on the first layer, whose steps have the length c / sqrt(N), AdamW on the rest."""
    rest = [p for name, p in model.named_parameters() if name != "first.weight"]
    return [
        muon(model.first.weight, lr=0.3 * dim**-0.5, weight_decay=0.0),  # type: ignore[arg-type]
        torch.optim.AdamW(rest, lr=0.5 / dim, weight_decay=0.0),
    ]


OPTIMIZERS: dict[str, Entry] = {
    "SGD": Entry(lambda m, n: torch.optim.SGD(m.parameters(), lr=2 / n)),
    "SGD, momentum 0.9": Entry(
        lambda m, n: torch.optim.SGD(m.parameters(), lr=0.2 / n, momentum=0.9)
    ),
    "SGD, clip_grad_norm_": Entry(
        lambda m, n: torch.optim.SGD(m.parameters(), lr=4 / n), lambda n: ClipNorm(0.25 * n**0.5)
    ),
    "Muon, AdamW on the head": Entry(muon_and_adamw),
    "SignSGD": Entry(lambda m, n: tl.SignSGD(m.parameters(), lr=0.5 / n)),
    "Adam": Entry(lambda m, n: torch.optim.Adam(m.parameters(), lr=0.5 / n)),
    "AdamW, decay 0.5": Entry(
        lambda m, n: torch.optim.AdamW(m.parameters(), lr=0.5 / n, weight_decay=0.5), decay=0.5
    ),
    "RMSprop": Entry(lambda m, n: torch.optim.RMSprop(m.parameters(), lr=0.5 / n)),
    "Adagrad": Entry(
        lambda m, n: torch.optim.Adagrad(
            m.parameters(), lr=2 * n**-0.5, initial_accumulator_value=n
        )
    ),
}


@dataclass(frozen=True)
class Curves:
    """What is drawn of one optimizer: values of a statistic over times, ``(T,)``.

    Args:
        steps: steps over N.
        measured, spread: means and standard deviations of runs.
        predicted, drift: predictions, with the corrector and without.
    """

    steps: Tensor
    measured: dict[str, Tensor]
    spread: dict[str, Tensor]
    predicted: dict[str, Tensor]
    drift: dict[str, Tensor]

    def off(self, name: str, of: dict[str, Tensor]) -> float:
        """The largest difference between measured means and a prediction."""
        return float((self.measured[name] - of[name]).abs().max())


def problem_of(dim: int, decay: float = 0.0) -> tl.NetworkProblem:
    """Two Gaussian classes, whose means are spread over all coordinates."""
    torch.manual_seed(0)
    return tl.NetworkProblem(
        dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, labels=torch.tensor([1.0, -1.0]), snr=4.0,
        means=torch.linalg.qr(torch.randn(dim, 2).sign())[0].mT, ridge=decay,
    )  # fmt: skip


def curves(options: Options, entry: Entry) -> Curves:
    """Train and predict."""
    problem = problem_of(options.dim, entry.decay)
    first: Any = entry.make(problem.model(), options.dim)
    rate = (first[0] if isinstance(first, list) else first).param_groups[0]["lr"]
    runs = trained(
        problem, entry.make, runs=options.runs, time=options.length * options.dim * rate,
        change=entry.change(options.dim), seed=options.seed,
    )  # fmt: skip
    measured, dynamics = runs.measured, runs.dynamics()
    start, times = measured.initial[0], measured.times

    def shown(values: Tensor) -> dict[str, Tensor]:
        own = values[..., : len(problem.names)]
        return {"risk": dynamics.risk(values), "R[0,0]": own[..., problem.names.index("R[0,0]")]}

    each = shown(measured.values)
    return Curves(
        measured.steps / options.dim,
        {name: values.mean(0) for name, values in each.items()},
        {name: values.std(0) for name, values in each.items()},
        shown(dynamics.solve(start, times).values),
        shown(dynamics.solve(start, times, corrector=False).values),
    )


def draw(options: Options, found: dict[str, Curves]) -> Figure:
    """A panel for each optimizer, one legend for all."""
    columns = 4 if len(found) % 4 == 0 else 3
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, of) in zip(panels.flat, found.items(), strict=False):
        for statistic, colour in COLOURS.items():
            _panel(axes, of, statistic, colour)
        axes.set_title(name, fontsize=10)
    for axes in panels.flat[len(found) :]:
        axes.set_axis_off()
    figure.supxlabel("steps / $N$", fontsize=10)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels) // 2, fontsize=9,
        frameon=False,
    )  # fmt: skip
    return figure


def _panel(axes: Axes, of: Curves, name: str, colour: str) -> None:
    """One statistic."""
    label = r"$R_{00}$" if name == "R[0,0]" else name
    mean, spread = of.measured[name], of.spread[name]
    axes.fill_between(
        of.steps, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0,
        label=f"{label}: one sd of runs",
    )  # fmt: skip
    axes.plot(of.steps, mean, "o", color=colour, markersize=3.5, mfc="white", label="mean of runs")
    axes.plot(of.steps, of.predicted[name], color=colour, linewidth=1.2, label="predicted")
    axes.plot(
        of.steps, of.drift[name], "--", color=colour, linewidth=1, label="without corrector"
    )  # fmt: skip


def report(options: Options, found: dict[str, Curves], console: Console) -> None:
    """The largest differences."""
    table = Table(title=f"largest differences from means of {options.runs} runs, N = {options.dim}")
    table.add_column("optimizer")
    for name in COLOURS:
        table.add_column(name)
        table.add_column("without\ncorrector")
    for optimizer, of in found.items():
        cells = [of.off(name, side) for name in COLOURS for side in (of.predicted, of.drift)]
        table.add_row(optimizer, *(f"{cell:.4f}" for cell in cells))
    console.print(table)


def main(options: Options, console: Console) -> None:
    """Train, predict, and draw."""
    if options.smoke:
        options.dim, options.runs, options.length = 250, 10, 1.0
    found: dict[str, Curves] = {}
    for name, entry in OPTIMIZERS.items():
        console.print(f"training: {name}", highlight=False)
        found[name] = curves(options, entry)
    report(options, found, console)
    picture = options.out / "optimizers.png"
    tl.figures.save(draw(options, found), picture, dpi=110)
    console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen: Any = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

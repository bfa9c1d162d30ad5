"""Models that no theory in the package covers: what can be predicted of them, and what cannot.

    python scripts/your_own.py gelu
    python scripts/your_own.py digits

gelu: three Gaussian classes, one hidden layer of GELU units, cross-entropy; statistics chosen by
the user. digits: real data, scikit-learn's handwritten digits (1797 images of 8 x 8), a two-layer
ReLU network; statistics are overlaps with the class means, the neurons' Gram matrix, and the
output weights. (pip install 'torchlimits[examples]'.)

For each: SGD from one start, several runs; the effective dynamics estimated from data and solved
from that start (tl.EmpiricalDynamics), with and without the corrector; along one run, what drift
and corrector explain (tl.Probe); and whether the statistics close (tl.closability). Writes
pictures, trajectories and TensorBoard files into --logdir.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import torchlimits as tl
from torchlimits.statistics import entries, gram, overlaps


@dataclass
class Options:
    """Which example, and how large."""

    example: Annotated[Literal["gelu", "digits"], tyro.conf.Positional]
    dim: int = 400
    """n of gelu; the digits have 64"""
    step_size: float = 2.0
    """c_delta of gelu; lr = c_delta / dim"""
    time: float = 8.0
    """limit time to train for"""
    runs: int = 8
    """SGD runs from one start"""
    samples: int = 4096
    """samples of each estimate"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds, to see that it runs"""
    logdir: Path | None = None
    """the folder; by default runs/gelu or runs/digits"""


# --- the two examples: a model, a sampler, a loss, statistics -------------------------------------


def gelu(options: Options, dim: int) -> tl.SizedProblem:
    """Three classes around means of length 2, four GELU units, biases at the output."""
    generator = torch.Generator().manual_seed(options.seed)
    means = 2 * torch.eye(3, dim)

    def sampler(batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        label = torch.randint(3, (batch,), generator=generator)
        return means[label] + torch.randn(batch, dim, generator=generator), label

    model = nn.Sequential(nn.Linear(dim, 4, bias=False), nn.GELU(), nn.Linear(4, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / max(1, p.shape[-1]) ** 0.5)
    directions = torch.eye(3, dim)
    statistics = tl.SummaryStatistics(
        {
            "m": overlaps("0.weight", directions),
            "R": gram("0.weight", perpendicular_to=directions),
            "v": entries("2.weight"),
            "b": entries("2.bias"),
        },
        symmetric=["R"],
    )
    lr = options.step_size / dim
    return tl.SizedProblem(model, F.cross_entropy, sampler, statistics, lr, dim)


def digits(options: Options) -> tl.SizedProblem:
    """Six ReLU units on the images, scaled to |x|^2 = 64 on average; samples with replacement."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("error: the digits need pip install 'torchlimits[examples]'") from None
    pixels, digit_of = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32)
    images = images - images.mean(0)
    images = images / images.square().mean().sqrt()
    labels = torch.tensor(digit_of)
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])

    def sampler(batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        return images[chosen], labels[chosen]

    generator = torch.Generator().manual_seed(options.seed)
    model = nn.Sequential(nn.Linear(64, 6, bias=False), nn.ReLU(), nn.Linear(6, 10, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    statistics = tl.SummaryStatistics(
        {
            "m": overlaps("0.weight", F.normalize(means)),
            "G": gram("0.weight"),
            "v": entries("2.weight"),
        },
        symmetric=["G"],
    )
    return tl.SizedProblem(model, F.cross_entropy, sampler, statistics, 0.5 / 64, 64)


# --- the same for both ----------------------------------------------------------------------------


def train(
    problem: tl.SizedProblem, steps: int, seed: int, probe: tl.Probe | None = None
) -> tl.Tracker:
    """One run of SGD from the problem's own start: an ordinary training loop, recorded."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.step_size)
    every = max(1, steps // 200)
    with tl.track(model, optimizer, problem.statistics, every=every, probe=probe) as tracker:
        for _ in range(steps):
            x, y = problem.sampler(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    return tracker


def stacked(runs: list[tl.Trajectory]) -> tl.Trajectory:
    """Runs of the same times as one trajectory."""
    values = torch.stack([run.values for run in runs])
    return tl.Trajectory(runs[0].times, runs[0].steps, values, runs[0].names)


def group_table(measured: tl.Trajectory, predictions: dict[str, tl.Trajectory]) -> list[str]:
    """How much each group of statistics changes, and how far predictions are off."""
    mean = measured.values.mean(0)
    error = measured.values.std(0) / measured.runs**0.5
    lines = [f"{'':10}{'change':>10}{'error bar':>12}" + "".join(f"{n:>20}" for n in predictions)]
    for group in dict.fromkeys(name.split("[")[0] for name in measured.names):
        columns = [i for i, name in enumerate(measured.names) if name.split("[")[0] == group]
        change = (mean - mean[0])[:, columns].abs().max()
        cells = [(p.values - mean)[:, columns].abs().max() for p in predictions.values()]
        lines.append(
            f"{group:10}{float(change):10.3f}{float(error[:, columns].max()):12.3f}"
            + "".join(f"{float(cell):20.3f}" for cell in cells)
        )
    return lines


def conclusions(report: tl.ConditionReport) -> list[str]:
    """What the report means for predictions from the statistics alone."""
    lines = []
    for quantity in ("drift", "corrector"):
        sizes = {c.name: c.values[-1] for c in report.conditions if c.name.startswith(quantity)}
        told = [c for c in report.conditions if c.name in sizes and c.values[-1] > 3 * c.errors[-1]]
        worst = max(sizes.values())
        if told and worst > 0.1:
            lines.append(
                f"-> The {quantity} is not a function of these statistics: it differs by up to "
                f"{worst:.0%} between parameters that share them. A prediction from them is only "
                "as good as that; along the run (2.) it is the run's own parameters that count."
            )
        else:
            lines.append(f"-> The {quantity} is not seen to depend on more than these statistics.")
    return lines


def main(options: Options, console: Console) -> None:
    """Train, predict, explain, judge."""
    if options.smoke:
        options.dim, options.time, options.runs, options.samples = 60, 0.5, 2, 1024
    is_digits = options.example == "digits"
    problem = digits(options) if is_digits else gelu(options, options.dim)
    steps = round(options.time / problem.step_size)
    logdir = options.logdir or Path("runs") / options.example

    def say(text: object) -> None:
        console.print(str(text), highlight=False, markup=False, soft_wrap=True)

    probe = tl.Probe(
        problem.loss, problem.sampler, every=max(1, steps // 40), samples=options.samples // 4
    )
    console.rule(f"{options.example}: {steps} steps, lr = {problem.step_size:.4g}")
    first = train(problem, steps, options.seed, probe)
    others = [train(problem, steps, options.seed + r) for r in range(1, options.runs)]
    measured = stacked([first.trajectory(), *(t.trajectory() for t in others)])
    measured.save(logdir / "measured.npz")

    dynamics = tl.EmpiricalDynamics(
        problem.model, problem.loss, problem.sampler, problem.statistics, samples=options.samples,
        step_size=problem.step_size * problem.dim, dim=problem.dim, seed=options.seed,
    )  # fmt: skip
    with console.status("solving the effective dynamics"):
        start = measured.initial[0]
        predicted = dynamics.solve(start, measured.times)
        flow = dynamics.solve(start, measured.times, corrector=False)
    predicted.save(logdir / "predicted.npz")
    say("1. From the start alone: the largest difference from the mean of the runs")
    for line in group_table(measured, {"effective dynamics": predicted, "gradient flow": flow}):
        say(line)

    explanation = first.explanation()
    parts = {name: path.final for name, path in explanation.parts().items()}
    size, noise = parts["change"].norm(), explanation.residual.std[-1]  # type: ignore[index]
    left = {"drift alone": parts["change"] - parts["drift"], "both": parts["residual"]}
    say("\n2. Along one run, with f and g estimated where it is: what of the change is left")
    say(f"by the drift alone {float(left['drift alone'].norm() / size):8.0%}")
    say(f"by drift and corrector {float(left['both'].norm() / size):4.0%}")
    say(f"by SGD's noise, expected {float(noise.norm() / size):2.0%}")

    dims = [problem.dim] if is_digits else [problem.dim // 4, problem.dim // 2, problem.dim]
    make: Callable[[int], tl.SizedProblem] = (
        (lambda n: digits(options)) if is_digits else (lambda n: gelu(options, n))
    )
    with console.status("do the statistics close?"):
        report = tl.closability(
            make, dims, time=options.time, points=2, remainders=6, samples=options.samples
        )
    say(f"\n3. {report}")
    for line in conclusions(report):
        say(line)

    tl.tensorboard.write(logdir, measured=measured, predicted=predicted)
    tl.tensorboard.Writer(logdir).explain(explanation)
    tl.figures.save(tl.figures.overlay(measured, predicted), logdir / "overlay.png", dpi=110)
    say(f"\nPicture: {logdir / 'overlay.png'}\ntensorboard --logdir {logdir}")


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

"""Train a two-layer network on a Gaussian mixture, predict its summary statistics, overlay both.

    python scripts/run.py xor
    python scripts/run.py binary --snr 2 --runs 8 --no-corrector
    torchrun --nproc-per-node=2 scripts/run.py xor --runs 200     (the runs shared by two processes)

Writes into --logdir: measured.npz and predicted.npz (`torchlimits.Trajectory.load`), overlay.png,
and the event files for TensorBoard.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

import torchlimits as tl
from torchlimits.ensemble.processes import process_group, rank_in


@dataclass
class Options:
    """What both mixtures have in common."""

    dim: int = 1000
    """N, dimension of the data"""
    ridge: float = 0.05
    """alpha, the weight decay"""
    step_size: float = 2.0
    """c_delta; the learning rate is c_delta / dim"""
    time: float = 10.0
    """limit time to train for; a step takes lr"""
    runs: int = 3
    """independent runs, each from its own random start"""
    seed: int = 0
    directions: Literal["axis", "random"] = "axis"
    """the means lie on coordinate axes, or in random directions"""
    corrector: bool = True
    """predict with the population corrector; --no-corrector predicts gradient flow instead"""
    band: bool = True
    """shade 95 % of runs at this dimension, if with the corrector; seconds a run for xor"""
    device: str = "auto"
    """auto takes CUDA where there is one"""
    logdir: Path | None = None
    """by default runs/xor or runs/binary"""


@dataclass
class Xor(Options):
    """The XOR mixture: means +mu, -mu (label 1) and +nu, -nu (label 0)."""

    snr: float = 8.0
    """lambda, signal-to-noise ratio"""
    width: int = 4
    """K, hidden units"""


@dataclass
class Binary(Options):
    """The binary mixture: means +mu (label 1) and -mu (label 0)."""

    snr: float = 2.0
    """lambda, signal-to-noise ratio"""
    width: int = 2
    """K, hidden units"""


Command = (
    Annotated[Xor, tyro.conf.subcommand("xor")] | Annotated[Binary, tyro.conf.subcommand("binary")]
)


def make_problem(options: Xor | Binary, device: str) -> tl.GaussianMixture:
    """The problem, its random directions drawn from the seed."""
    make = tl.GaussianMixture.xor if isinstance(options, Xor) else tl.GaussianMixture.binary
    return make(
        options.dim,
        options.width,
        snr=options.snr,
        ridge=options.ridge,
        directions=options.directions,
        generator=torch.Generator().manual_seed(options.seed),
        device=device,
    )


def device_of(options: Options) -> str:
    """Where to train."""
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return options.device


def main(options: Xor | Binary, console: Console, group: Any = None) -> None:
    """Train, predict, compare, write; with a process group, rank 0 does all but the training."""
    name = type(options).__name__.lower()
    logdir = options.logdir or Path("runs") / name
    device = device_of(options)
    problem = make_problem(options, device)
    console.print(f"{problem}, c_delta={options.step_size:g}, {options.runs} runs on {device}")
    try:
        measured = tl.train(
            problem,
            step_size=options.step_size,
            time=options.time,
            runs=options.runs,
            seed=options.seed,
            device=device,
            logdir=logdir,
            path=logdir / "measured.npz",
            group=group,
        )
    except tl.NonFiniteStatistic as error:
        if error.trajectory is not None:
            tl.tensorboard.write(logdir, measured=error.trajectory)
        raise SystemExit(f"{error}\nSaved up to there: {logdir / 'measured.npz'}") from None
    if rank_in(group) != 0:
        return

    with console.status("integrating the effective dynamics"):
        dynamics = problem.dynamics(step_size=options.step_size)
        predicted = dynamics.solve(
            measured.initial, measured.times, corrector=options.corrector,
            band=options.band and options.corrector,
        )  # fmt: skip
    predicted.save(logdir / "predicted.npz")
    console.print(tl.compare(measured, predicted))

    tl.tensorboard.write(logdir, measured=measured, predicted=predicted)
    tl.figures.save(tl.figures.overlay(measured, predicted), logdir / "overlay.png", dpi=120)
    console.print(f"Picture: {logdir / 'overlay.png'}", highlight=False)
    program = Path(sys.executable).with_name("tensorboard")
    console.print(f"{program} --logdir {logdir}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Command, description=__doc__)
    try:
        with process_group(device_of(chosen)) as group:
            main(chosen, Console(quiet=rank_in(group) != 0), group)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

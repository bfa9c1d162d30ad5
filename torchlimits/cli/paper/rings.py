"""`ring_runs`: SGD around a ring of fixed points of a mixture, beside the SDE that it follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from rich.console import Console

from torchlimits.cli.paper.common import BLUE, RED, STEP_SIZE, say, seeded
from torchlimits.cli.paper.parts import Tell
from torchlimits.cli.paper.specs import MixtureFigure
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.ensemble.train import train
from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.trajectory import Trajectory


@dataclass(frozen=True)
class RingRuns:
    """Runs that start next to one point of the rings, and what the SDE says of them."""

    snr: float
    limit: LinearDiffusion
    runs: Trajectory
    offset: torch.Tensor


def ring_runs(
    spec: MixtureFigure, dim: int, snr: float, runs: int, seed: int, tell: Tell
) -> RingRuns:
    """SGD at one snr, and the SDE of the small-noise limit.

    Args:
        spec: which of the two figures.
        dim: the dimension N.
        snr: of the problem that is trained, inf included.
        runs: the number of independent runs.
        seed: of the data.
        tell: is told how many steps were made.
    """
    limit_problem = spec.make(dim, spec.width, snr=math.inf, ridge=0.1)
    component = next(c for c in limit_problem.fixed_point_components() if c.classes == spec.classes)
    at = component.point(seeded(1))
    limit = limit_problem.diffusive(at=at, step_size=STEP_SIZE)
    offset = 0.5 * at / at.norm()  # outwards, to see the drift
    problem = spec.make(dim, spec.width, snr=snr, ridge=0.1)
    path = train(
        problem, step_size=STEP_SIZE, time=2.0, runs=runs, seed=seed, every=1,
        start=_network_at(problem, at + offset / dim**0.5), progress=tell,
    )  # fmt: skip
    return RingRuns(snr, limit, limit.rescale(path), offset)


def _network_at(problem: GaussianMixture, u: torch.Tensor) -> torch.nn.Module:
    """A network with statistics (v, m, R = 0)."""
    K, d = problem.width, len(problem.directions)
    model = problem.model()
    model.get_parameter("second.weight").data[0] = u[:K]
    overlaps = u[K : K + K * d].unflatten(0, (K, d))
    model.get_parameter("first.weight").data.copy_(overlaps @ problem.directions)
    return model


def sde_numbers(console: Console, ring: RingRuns) -> None:
    """Print mean and covariance of the rescaled v at the end, beside those of the SDE.

    Args:
        console: where.
        ring: the runs.
    """
    K = sum(name.startswith("v") for name in ring.runs.names)
    end, count = ring.runs.values[:, -1, :K].double(), ring.runs.runs
    time = float(ring.runs.times[-1])
    flow = torch.linalg.matrix_exp(ring.limit.jacobian * time)
    drift = (flow @ ring.offset)[:K]
    P = ring.limit.covariance([0.0, time])[-1, :K, :K]
    mean, covariance = end.mean(0), end.mT.cov()
    mean_z = ((mean - drift) / (P.diag() / count).sqrt()).abs().max()
    spread = ((torch.outer(P.diag(), P.diag()) + P**2) / count).sqrt()
    cov_z = ((covariance - P) / spread).abs().max()
    say(
        console,
        f"rings, snr = {ring.snr:g}, {count} runs, t = {time:g}, rescaled v: mean {_row(mean)}, "
        f"SDE {_row(drift)} (largest |z| {float(mean_z):.1f}); sd {_row(end.std(0))}, SDE "
        f"{_row(P.diag().sqrt())}; correlation of v[0], v[1] "
        f"{float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()):.3f}, SDE "
        f"{float(P[0, 1] / (P[0, 0] * P[1, 1]).sqrt()):.3f}; covariance: largest |z| "
        f"{float(cov_z):.1f}",
    )


def _row(values: torch.Tensor) -> str:
    return "(" + ", ".join(f"{x:.3f}" for x in values.tolist()) + ")"


def plane_panel(axes: Axes, plane: tuple[str, str], diffusions: Sequence[RingRuns]) -> None:
    """Rescaled statistics at t = 2: runs, and the SDE's ellipse of two standard deviations."""
    for ring, colour in zip(diffusions, (BLUE, RED), strict=True):
        i, j = (ring.runs.index(name) for name in plane)
        if ring is diffusions[0]:
            for path in ring.runs.values[:6]:
                axes.plot(path[:, i], path[:, j], color="#bbbbbb", lw=0.5, zorder=1)
        end = ring.runs.values[:, -1]
        axes.plot(end[:, i], end[:, j], ls="none", marker=".", ms=4, color=colour,
                  label=f"SGD, snr = {ring.snr:g}")  # fmt: skip
    ring, pair = diffusions[0], [diffusions[0].runs.index(name) for name in plane]
    time = float(ring.runs.times[-1])
    P = ring.limit.covariance([0.0, time])[-1][pair][:, pair]
    centre = (torch.linalg.matrix_exp(ring.limit.jacobian * time) @ ring.offset)[pair]
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(P)
    root = vectors * values.clamp_min(0).sqrt()
    ellipse = centre + 2 * torch.stack([angle.cos(), angle.sin()], -1) @ root.mT
    axes.plot(ellipse[:, 0], ellipse[:, 1], color="black", lw=1.2, label="SDE, 2 sd")
    axes.set(xlabel=rf"$\sqrt{{N}}\,\delta${plane[0]}", ylabel=rf"$\sqrt{{N}}\,\delta${plane[1]}")
    axes.set_title("around a point of the rings, t = 2", fontsize=10)
    axes.legend(fontsize=7)


def rank_panel(axes: Axes, console: Console, diffusions: Sequence[RingRuns]) -> None:
    """Singular values of the diffusion matrix: theory, and SGD's quadratic variation.

    They are of v and of each neuron's overlap with its own mean, the others being held at 0.
    """
    moving = diffusions[0].limit.centre.nonzero().flatten()
    theory = torch.linalg.svdvals(diffusions[0].limit.matrix[moving][:, moving])
    rank = diffusions[0].limit.rank()
    shown = min(6, len(moving))
    place = torch.arange(1, shown + 1)
    axes.semilogy(place, theory[:shown].clamp_min(1e-8), "ks", mfc="none", ms=9, label="theory")
    say(console, f"diffusion matrix of v and own overlaps: rank {rank} in theory; singular values")
    say(console, f"  theory            {_digits(theory[:shown])}")
    for ring, colour in zip(diffusions, (BLUE, RED), strict=True):
        early = ring.runs.times <= 0.5
        paths = ring.runs.values[:, early][..., moving].double()
        moves = paths.diff(dim=1).flatten(0, 1)
        step = float(ring.runs.times[1] - ring.runs.times[0])
        values = torch.linalg.svdvals(moves.mT.cov() / step)
        axes.semilogy(
            place, values[:shown].clamp_min(1e-8), "o", color=colour, ms=4,
            label=f"SGD, snr = {ring.snr:g}",
        )  # fmt: skip
        big = int((values > 0.05 * values[0]).sum())
        say(
            console,
            f"  SGD, snr = {ring.snr:<6g} {_digits(values[:shown])}   above 5 % of the largest: "
            f"{big}",
        )
    axes.set(xlabel="number", ylim=(1e-8, 1), xticks=place.tolist())
    axes.set_title(f"singular values of the diffusion: rank {rank}", fontsize=10)
    axes.legend(fontsize=7)


def _digits(values: torch.Tensor) -> str:
    return "  ".join(f"{x:.2e}" for x in values.tolist())

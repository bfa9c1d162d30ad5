"""Figures 1 to 3 of arXiv 2206.04030 with their parameters: real SGD and what theory predicts.

    python scripts/figures.py all
    python scripts/figures.py 2 --smoke

It is `torchlimits figures`. Each figure is a file of `torchlimits/cli/paper`, made of the names
that README has: figure 2 begins with

    problem = tl.GaussianMixture.binary(250, 2, snr=100.0, ridge=0.1)
    measured = tl.train(problem, step_size=1.0, time=60.0, runs=200)
    dynamics = problem.small_noise().dynamics(step_size=1.0)
    predicted = dynamics.solve(measured.initial[:8], measured.times)
    print(problem.is_optimal(measured.final).double().mean(), problem.success_probability())
"""

import sys
<<<<<<< HEAD
=======
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

import torchlimits as tl
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.problems.mixture.small_noise import FixedPointComponent

BLUE, RED, GREEN, GREY = "#3b6fb6", "#c8452f", "#2f8f5b", "#777777"
#: critical, as in the paper
STEP_SIZE = 1.0


@dataclass
class Options:
    """Which figure, and where to."""

    figure: Annotated[Literal["1", "2", "3", "all"], tyro.conf.Positional]
    smoke: bool = False
    """small and in seconds, to see that all works; its numbers mean little"""
    seed: int = 0
    logdir: Path = Path("runs/figures")


# --- figure 1: matrix PCA -------------------------------------------------------------------------


def figure1(options: Options, console: Console) -> Figure:
    """One dense run below and one above the threshold; many implicit ones at the equator."""
    n, time, runs = (60, 2.0, 40) if options.smoke else (1500, 10.0, 200)
    snrs = (0.8, 1.2)
    jobs = [(n, snr, time, options.seed) for snr in snrs]
    with console.status(f"dense SGD, n = {n}, {time * n:.0f} steps, two processes"):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(jobs), mp_context=context) as pool:
            measured = list(pool.map(_dense_run, jobs))
    figure = Figure(figsize=(12.5, 6.4), layout="constrained")
    grid = figure.subplots(2, 3)
    for row, snr, path in zip(grid, snrs, measured, strict=True):
        problem = tl.SpikedTensor(dim=n, order=2, snr=snr)
        dynamics = problem.dynamics(step_size=STEP_SIZE)
        predicted = dynamics.solve(path.initial, path.times)
        folder = options.logdir / f"figure1/snr {snr:g}"
        tl.tensorboard.write(folder, measured=path, predicted=predicted)
        _pca_row(row, problem, path, predicted)
        _pca_numbers(console, problem, path)
    with console.status(f"{runs} implicit runs at snr 0.8"):
        problem = tl.SpikedTensor(dim=n, order=2, snr=snrs[0])
        many = tl.train(
            problem, step_size=STEP_SIZE, time=time / 2, runs=runs, seed=options.seed + 1,
            every=max(1, int(time * n) // 100), progress=False,
        )  # fmt: skip
    _equator_panel(grid[0, 2], console, problem, many)
    _escape_panel(grid[1, 2], measured[1], snrs[1], n)
    figure.suptitle(
        f"Matrix PCA, n = {n}, $c_\\delta$ = 1, dense data: below (top) and above (bottom) "
        "the threshold $\\lambda_c$ = 1",
        fontsize=12,
    )
    return figure


def _dense_run(job: tuple[int, float, float, int]) -> tl.Trajectory:
    n, snr, time, seed = job
    torch.set_num_threads(1)
    problem = tl.SpikedTensor(dim=n, order=2, snr=snr, sampler="dense")
    return tl.train(problem, step_size=STEP_SIZE, time=time, seed=seed, progress=False)


def _pca_row(
    row: Sequence[Axes], problem: tl.SpikedTensor, path: tl.Trajectory, predicted: tl.Trajectory
) -> None:
    points = problem.dynamics(step_size=STEP_SIZE).exact_fixed_points()
    stable_m = [float(p.u[0]) for p in points if p.stable]
    late = _ballistic(problem, path)
    for name, colour in (("m", BLUE), ("r2", RED)):
        label = {"m": "$m$", "r2": r"$r_\perp^2$"}[name]
        row[0].plot(path.times, path[name][0], color=colour, alpha=0.6, label=f"{label}, SGD")
        row[0].plot(
            predicted.times, predicted[name][0], color=colour, lw=1.2, ls="--",
            label=f"{label}, ODE from step 0",
        )  # fmt: skip
    if late is not None:
        row[0].plot(late.times, late["m"], color="black", lw=1.2, label="$m$, ODE once ballistic")
    for level in stable_m:
        row[0].axhline(level, color=GREY, lw=0.8, ls=":")
    row[0].set(xlabel="limit time $t$", title=f"$\\lambda$ = {problem.snr:g}")
    row[0].legend(fontsize=7, loc="center right")
    _portrait(row[1], problem, path, points)


def _portrait(
    axes: Axes, problem: tl.SpikedTensor, path: tl.Trajectory, points: Sequence[tl.FixedPoint]
) -> None:
    """The plane (m, r2): streamlines of the ODE, the run, the fixed points."""
    m, r2 = torch.linspace(-0.75, 0.75, 31), torch.linspace(0, 1.6, 31)
    plane = torch.stack(torch.meshgrid(m, r2, indexing="xy"), -1).double()
    flow = problem.dynamics(step_size=STEP_SIZE)(0.0, plane)
    axes.streamplot(
        m.numpy(), r2.numpy(), flow[..., 0].numpy(), flow[..., 1].numpy(),
        color="#c9c9c9", linewidth=0.7, arrowsize=0.7, density=0.9,
    )  # fmt: skip
    axes.plot(path["m"][0], path["r2"][0], color=BLUE, lw=0.8, label="SGD")
    _mark(axes, points, 0, 1)
    axes.set(xlabel="$m$", ylabel=r"$r_\perp^2$", xlim=(-0.75, 0.75), ylim=(-0.05, 1.6))
    axes.set_title("flow and fixed points", fontsize=10)
    axes.legend(fontsize=7, loc="upper right")


def _mark(axes: Axes, points: Sequence[tl.FixedPoint], x: int, y: int) -> None:
    for kind, face in (("stable", "black"), ("unstable", "white"), ("marginal", GREY)):
        some = [p.u for p in points if p.kind == kind]
        if some:
            axes.plot(
                [u[x] for u in some], [u[y] for u in some], ls="none", marker="o",
                mfc=face, mec="black", label=kind, zorder=5,
            )  # fmt: skip


def _ballistic(problem: tl.SpikedTensor, path: tl.Trajectory) -> tl.Trajectory | None:
    """The ODE from half of the final overlap on, if there is one and the run gets there."""
    dynamics = problem.dynamics(step_size=STEP_SIZE)
    if problem.snr <= dynamics.critical_snr:
        return None
    beyond = (path["m"][0].abs() > dynamics.m_star() / 2).nonzero().flatten()
    if not len(beyond) or int(beyond[0]) > len(path) - 3:
        return None
    later = path.slice(slice(int(beyond[0]), None))
    return dynamics.solve(later.initial[0], later.times)


def _pca_numbers(console: Console, problem: tl.SpikedTensor, path: tl.Trajectory) -> None:
    points = problem.dynamics(step_size=STEP_SIZE).exact_fixed_points()
    end = path.values[0, -max(1, len(path) // 20) :].mean(0)  # the last twentieth
    nearest = min((p for p in points if p.stable), key=lambda p: float((p.u - end).norm()))
    say(console, f"snr {problem.snr:g}: fixed points {', '.join(map(repr, points))}")
    say(
        console,
        f"  the run ends at (m, r2) = ({end[0]:.4f}, {end[1]:.4f}), "
        f"{float((nearest.u - end).norm()):.4f} from the stable ({nearest.u[0]:.4f}, "
        f"{nearest.u[1]:.4f}); fluctuations are of order n^-1/2 = {problem.dim**-0.5:.4f}",
    )
    late = _ballistic(problem, path)
    if late is not None:
        start = len(path) - len(late)
        gap = (path.values[0, start:] - late.values).abs().max()
        say(console, f"  from t = {late.times[0]:.2f} on within {float(gap):.4f} of the ODE")


def _equator_panel(
    axes: Axes, console: Console, problem: tl.SpikedTensor, many: tl.Trajectory
) -> None:
    """sqrt(n) m over time: paths of SGD, and standard deviations of SGD and of the SDE."""
    limit = problem.equator(step_size=STEP_SIZE)
    m = limit.rescale(many)["m"]
    paths = limit.solve(
        torch.stack([torch.randn(20_000, generator=seeded(5)), torch.ones(20_000)], -1),
        many.times,
        generator=seeded(6),
    )
    rate = 4 * (1 - problem.snr)
    exact = 1 / (1 - problem.snr) + (1 - 1 / (1 - problem.snr)) * torch.exp(-2 * rate * many.times)
    axes.plot(many.times, m[:40].T, color=BLUE, alpha=0.15, lw=0.6)
    spread = m.std(0)
    error = spread / (2 * len(m)) ** 0.5
    axes.errorbar(many.times, spread, 2 * error, color=BLUE, fmt="o", ms=3, label="SGD, sd")
    axes.plot(many.times, paths["m"].std(0), color=RED, label="SDE, sd (20,000 paths)")
    axes.plot(many.times, exact.sqrt(), color="black", ls=":", label="OU, sd")
    axes.set(xlabel="limit time $t$", ylim=(-8, 8))
    axes.set_title(r"diffusive limit: $\sqrt{n}\,m$ at $\lambda$ = 0.8", fontsize=10)
    axes.legend(fontsize=7, loc="lower left")
    count = len(m)
    variance, theory = float(m[:, -1].var()), float(exact[-1])
    say(
        console,
        f"equator at snr {problem.snr:g}, t = {many.times[-1]:g}: Var sqrt(n) m = {variance:.2f} "
        f"+- {variance * (2 / count) ** 0.5:.2f} ({count} runs), OU {theory:.2f}, "
        f"SDE {float(paths['m'][:, -1].var()):.2f}; settles at 1/(1 - snr) = "
        f"{1 / (1 - problem.snr):.2f}",
    )
    # drift: one step of regression of the increments on sqrt(n) m, all runs and times
    gain, before = m.diff(dim=1), m[:, :-1]
    step = float(many.times[1] - many.times[0])
    slope = float((gain * before).sum() / before.square().sum())
    fluctuation = float((gain - slope * before).var() / before.square().sum()) ** 0.5
    say(
        console,
        f"  drift of sqrt(n) m: rate {-math.log1p(slope) / step:.3f} +- "
        f"{fluctuation / step / (1 + slope):.3f}, theory 4 (1 - snr) = {rate:.3f}",
    )


def _escape_panel(axes: Axes, path: tl.Trajectory, snr: float, n: int) -> None:
    """|m| on a logarithmic axis: a diffusive phase, then e^(4 (snr - 1) t), then m*."""
    axes.semilogy(path.times, path["m"][0].abs().clamp_min(1e-4), color=BLUE, lw=0.8, label="SGD")
    t = path.times
    axes.semilogy(t, n**-0.5 * torch.exp(4 * (snr - 1) * t), color=RED, ls="--",
                  label=r"$n^{-1/2} e^{4(\lambda - 1)t}$")  # fmt: skip
    axes.axhline((snr - 1) ** 0.5, color="black", ls=":", label=r"$m_* = \sqrt{\lambda - 1}$")
    axes.axhline(n**-0.5, color=GREY, lw=0.8, label=r"$n^{-1/2}$")
    axes.set(xlabel="limit time $t$", ylim=(n**-0.5 / 10, 1.5))
    axes.set_title(f"$|m|$ at $\\lambda$ = {snr:g}: diffusive, then ballistic", fontsize=10)
    axes.legend(fontsize=7, loc="lower right")


# --- figures 2 and 3: mixtures --------------------------------------------------------------------


@dataclass(frozen=True)
class MixtureFigure:
    """What differs between figures 2 and 3."""

    name: str
    make: Callable[..., tl.GaussianMixture]
    width: int
    snr: float
    time: float
    classes: tuple[int, ...]
    """which mean each neuron serves on the rings around which the diffusion is looked at"""
    planes: tuple[tuple[str, str], ...]
    """statistics whose rescaled values are drawn against each other"""
    endpoints: tuple[str, str]


BINARY = MixtureFigure(
    name="figure2",
    make=tl.GaussianMixture.binary,
    width=2,
    snr=100.0,
    time=60.0,
    classes=(0, 0),
    planes=(("v[0]", "v[1]"), ("v[0]", "m[0,0]")),
    endpoints=("m[0,0]", "m[1,0]"),
)
XOR = MixtureFigure(
    name="figure3",
    make=tl.GaussianMixture.xor,
    width=4,
    snr=1000.0,
    time=120.0,
    classes=(0, 0, 2, 2),
    planes=(("v[0]", "v[1]"), ("v[0]", "v[2]")),
    endpoints=("m[0,0]", "m[1,0]"),
)


def mixture_figure(spec: MixtureFigure, options: Options, console: Console) -> Figure:
    """Where 200 random starts end, and the diffusion on the rings."""
    dim, runs, time = (40, 20, 4.0) if options.smoke else (250, 200, spec.time)
    problem = spec.make(dim, spec.width, snr=spec.snr, ridge=0.1)
    with console.status(f"{runs} runs of SGD, N = {dim}, {time * dim:.0f} steps"):
        measured = tl.train(
            problem, step_size=STEP_SIZE, time=time, runs=runs, seed=options.seed,
            every=max(1, int(time * dim) // 300), progress=False,
        )  # fmt: skip
    with console.status("integrating the small-noise dynamics from the same starts"):
        dynamics = problem.small_noise().dynamics(step_size=STEP_SIZE)
        predicted = dynamics.solve(measured.initial[:8], measured.times, rtol=1e-4, atol=1e-6)
    shown = replace(measured, values=measured.values[:8])
    tl.tensorboard.write(options.logdir / spec.name, measured=shown, predicted=predicted)
    diffusions = _rings(spec, dim, 40 if options.smoke else 200, options.seed, console)

    figure = Figure(figsize=(12.5, 6.6), layout="constrained")
    grid = figure.subplots(2, 3)
    _fraction_panel(grid[0, 0], console, problem, measured)
    _endpoint_panel(grid[0, 1], console, spec, problem, measured)
    _runs_panel(grid[0, 2], spec, measured, predicted)
    for axes, plane in zip(grid[1], spec.planes, strict=False):
        _plane_panel(axes, plane, diffusions)
    _rank_panel(grid[1, 2], console, diffusions)
    figure.suptitle(f"{problem}, $c_\\delta$ = 1, {runs} runs", fontsize=12)
    return figure


def _fraction_panel(
    axes: Axes, console: Console, problem: tl.GaussianMixture, measured: tl.Trajectory
) -> None:
    """The fraction of runs at the optimal classifier, with its 99 % interval."""
    optimal = problem.is_optimal(measured.values)  # (runs, T)
    runs = len(optimal)
    found = [tl.success.Proportion(int(n), runs) for n in optimal.sum(0).tolist()]
    low, high = zip(*(p.interval(0.99) for p in found), strict=True)
    theory = problem.success_probability()
    axes.fill_between(measured.times, low, high, color=BLUE, alpha=0.2, lw=0, label="99 % interval")
    axes.plot(measured.times, [p.value for p in found], color=BLUE, label="SGD")
    axes.axhline(theory, color="black", ls=":", label=f"theory, {theory:.4g}")
    axes.set(xlabel="limit time $t$", ylim=(0, 1))
    axes.set_title("fraction of runs at an optimal classifier", fontsize=10)
    axes.legend(fontsize=7)
    last = found[-1]
    inside = low[-1] <= theory <= high[-1]
    say(
        console,
        f"optimal classifiers: {last.successes} of {runs} = {last.value:.4f}, 99 % interval "
        f"{low[-1]:.4f} to {high[-1]:.4f}; theory {theory:.5f} is "
        f"{'inside' if inside else 'OUTSIDE'}; others: {1 - last.value:.4f}, theory "
        f"{1 - theory:.5f}",
    )


def _endpoint_panel(
    axes: Axes,
    console: Console,
    spec: MixtureFigure,
    problem: tl.GaussianMixture,
    measured: tl.Trajectory,
) -> None:
    """Endpoints in the plane of two overlaps over the fixed points of the small-noise limit."""
    components = problem.small_noise().fixed_point_components()
    x, y = (measured.index(name) for name in spec.endpoints)
    final = measured.final.double()
    optimal = problem.is_optimal(final)
    radius = components[0].radius2 ** 0.5
    _rings_drawn(axes, components, radius, (x, y))
    for some, colour, label in ((optimal, GREEN, "optimal"), (~optimal, RED, "not optimal")):
        axes.plot(final[some, x], final[some, y], ls="none", marker="o", ms=3.5, mfc="none",
                  mec=colour, label=f"SGD, {label}", zorder=4)  # fmt: skip
    labels = [f"${name.replace('[', '_{').replace(']', '}')}$" for name in spec.endpoints]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_aspect("equal", "datalim")
    axes.set_title("endpoints over the predicted points and rings", fontsize=10)
    axes.legend(fontsize=7, loc="upper right")
    distance = torch.stack([c.distance(final) for c in components])
    nearest, which = distance.min(0)
    agree = torch.tensor([components[i].optimal for i in which.tolist()]) == optimal
    for some, label in ((optimal, "optimal"), (~optimal, "not optimal")):
        if bool(some.any()):
            say(
                console,
                f"endpoints, {label}: distance of (v, m, R) to the nearest fixed points at snr = "
                f"inf: median {float(nearest[some].median()):.3f}, largest "
                f"{float(nearest[some].max()):.3f} (radius of the rings {radius:.3f})",
            )
    say(
        console,
        f"  runs whose nearest component says rightly whether they are optimal: "
        f"{int(agree.sum())} of {len(agree)}",
    )


def _rings_drawn(
    axes: Axes, components: Sequence[FixedPointComponent], radius: float, plane: tuple[int, int]
) -> None:
    """Closed set of (m_0, m_1) at fixed points: the points, and arcs where both share a mean."""
    x, y = plane
    points = {tuple(round(float(c.point()[i]), 6) for i in (x, y)) for c in components
              if c.dimension == 0 and (c.stable or 0.0 in c.point()[[x, y]].tolist())}  # fmt: skip
    stable = {tuple(round(float(c.point()[i]), 6) for i in (x, y)) for c in components if c.stable}
    angle = torch.linspace(0, math.pi / 2, 60)
    for sign in (1, -1):
        axes.plot(
            sign * radius * angle.cos(), sign * radius * angle.sin(), color="black", lw=1.0,
            label="rings" if sign == 1 else None,
        )  # fmt: skip
    for some, face, label in ((stable, "black", "stable"), (points - stable, "white", "unstable")):
        if some:
            axes.plot(*zip(*some, strict=True), ls="none", marker="s", ms=6, mfc=face, mec="black",
                      label=label, zorder=3)  # fmt: skip


def _runs_panel(
    axes: Axes, spec: MixtureFigure, measured: tl.Trajectory, predicted: tl.Trajectory
) -> None:
    """One overlap of the first runs over the small-noise dynamics from the same starts."""
    name = spec.endpoints[0]
    for run, values in enumerate(predicted[name]):
        colour = f"C{run}"
        axes.plot(measured.times, measured[name][run], color=colour, lw=0.6, alpha=0.6)
        axes.plot(predicted.times, values, color=colour, lw=1.3, ls="--")
    axes.set(xlabel="limit time $t$")
    axes.set_title(f"{name}: 8 runs (lines), ODE at snr = $\\infty$ (dashed)", fontsize=10)


@dataclass(frozen=True)
class RingRuns:
    """Runs that start next to one point of the rings, and what the SDE says of them."""

    snr: float
    limit: LinearDiffusion
    runs: tl.Trajectory
    offset: torch.Tensor


def _rings(spec: MixtureFigure, dim: int, runs: int, seed: int, console: Console) -> list[RingRuns]:
    """Fixed points at the figure's snr and in the small-noise limit itself."""
    limit_problem = spec.make(dim, spec.width, snr=math.inf, ridge=0.1)
    component = next(c for c in limit_problem.fixed_point_components() if c.classes == spec.classes)
    at = component.point(seeded(1))
    limit = limit_problem.diffusive(at=at, step_size=STEP_SIZE)
    offset = 0.5 * at / at.norm()  # outwards, to see the drift
    found = []
    for snr in (math.inf, spec.snr):
        problem = spec.make(dim, spec.width, snr=snr, ridge=0.1)
        with console.status(f"{runs} runs from the rings, snr = {snr:g}"):
            path = tl.train(
                problem, step_size=STEP_SIZE, time=2.0, runs=runs, seed=seed, every=1,
                start=_network_at(problem, at + offset / dim**0.5), progress=False,
            )  # fmt: skip
        found.append(RingRuns(snr, limit, limit.rescale(path), offset))
    for one in found:
        _sde_numbers(console, one)
    return found


def _network_at(problem: tl.GaussianMixture, u: torch.Tensor) -> torch.nn.Module:
    """A network with statistics (v, m, R = 0)."""
    K, d = problem.width, len(problem.directions)
    model = problem.model()
    model.get_parameter("second.weight").data[0] = u[:K]
    overlaps = u[K : K + K * d].unflatten(0, (K, d))
    model.get_parameter("first.weight").data.copy_(overlaps @ problem.directions)
    return model


def _sde_numbers(console: Console, ring: RingRuns) -> None:
    """Mean and covariance of the rescaled v at the end, with standard errors, beside the SDE's."""
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


def _plane_panel(axes: Axes, plane: tuple[str, str], diffusions: Sequence[RingRuns]) -> None:
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


def _rank_panel(axes: Axes, console: Console, diffusions: Sequence[RingRuns]) -> None:
    """Singular values of the diffusion matrix: theory, and SGD's quadratic variation.

    Of v and of each neuron's overlap with its own mean, the others being held at 0.
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


# --- all ------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def say(console: Console, text: str) -> None:
    """One line of numbers, as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def main(options: Options, console: Console) -> None:
    """Make the figures asked for."""
    makers = {
        "1": figure1,
        "2": lambda *arguments: mixture_figure(BINARY, *arguments),
        "3": lambda *arguments: mixture_figure(XOR, *arguments),
    }
    for number in makers if options.figure == "all" else [options.figure]:
        console.rule(f"figure {number}")
        figure = makers[number](options, console)
        picture = options.logdir / f"figure{number}.png"
        tl.figures.save(figure, picture, dpi=90)
        say(console, f"Picture: {picture}")
    program = Path(sys.executable).with_name("tensorboard")
    say(console, f"{program} --logdir {options.logdir}")
>>>>>>> p21d

from torchlimits.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["figures", *sys.argv[1:]]))

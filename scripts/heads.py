"""Networks with heads of several kinds beside their theory: four pictures.

    python scripts/heads.py
    python scripts/heads.py --part c --out runs/phase_retrieval

a. Saad and Solla's committee machine, K = M = 2 and 3: SGD waits on the symmetric plateau, whose
   value for small learning rates is known, until the neurons specialise.
b. Three classes, a head with two hidden layers (GELU, tanh) and biases: risk and accuracy on
   held-out data over their prediction, with the band of runs at this dimension, and gradient flow
   beside them.
c. Phase retrieval: the time to escape from the equator grows like log(N)/8 for a small learning
   rate. The exact chain up to N = 1000; a step of it costs the same at every N, but there are
   N log N of them. Up to N = 10^9 the linear-noise law on the equator, and the ODE from there.
d. Label noise: the error that SGD ends at, against its learning rate, beside the law of Goldt et
   al., which is its first order.

Prints the numbers, and writes <out>/<part>.png.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call

import torchlimits as tl

DOUBLE = torch.float64
#: colours
BLUE, RED, GREY = "#3b6fb6", "#c8452f", "#777777"


@dataclass
class Options:
    """Which picture, and where it goes."""

    part: Literal["a", "b", "c", "d", "all"] = "all"
    runs: int = 20
    """runs of SGD"""
    seed: int = 0
    smoke: bool = False
    """small sizes, done in seconds"""
    out: Path = Path("runs/heads")


def committee(K: int, M: int, *, dim: int, noise: float = 0.0) -> tl.TeacherStudent:
    """A committee of K erf neurons that learns one of M."""
    return tl.TeacherStudent(
        dim=dim, width=K, teacher_width=M, noise=noise, train_second_layer=False
    )


# --- a. plateau and specialisation ----------------------------------------------------------------


def plateau(K: int) -> float:
    """The generalization error of the symmetric plateau, K = M, T = 1, for small learning rates."""
    return K / math.pi * (math.pi / 6 - K * math.asin(1 / (2 * K)))


def leaning(problem: tl.TeacherStudent, overlap: float, seed: int) -> nn.Module:
    """A student each of whose neurons has a small overlap with one neuron of the teacher."""
    model = problem.model(generator=torch.Generator().manual_seed(seed))
    E = problem.directions.float()
    with torch.no_grad():
        weight = model.get_parameter("first.weight")
        weight += overlap * E - weight @ E.mT @ E
    return model


def specialisation(options: Options, console: Console) -> Figure:
    """Error and overlaps along the runs."""
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    dim, time, eta = (60, 10.0, 0.5) if options.smoke else (150, 80.0, 0.5)
    for K, colour in ((2, BLUE), (3, RED)):
        problem = committee(K, K, dim=dim)
        measured = tl.train(
            problem, step_size=eta, time=time, runs=options.runs, seed=options.seed,
            start=leaning(problem, 0.15, options.seed), every=round(time * dim / eta / 45),
            progress=False,
        )  # fmt: skip
        dynamics, u0 = problem.dynamics(step_size=eta), measured.initial[0]
        predicted = dynamics.solve(u0, measured.times)
        slow = problem.dynamics(step_size=0.01).solve(u0, measured.times)
        errors = problem.generalization_error(measured.values)
        _dots(left, measured.times, errors, colour)
        theory = problem.generalization_error(predicted.values)
        left.plot(measured.times, theory, color=colour, label=rf"$K = {K}$, $\eta = {eta:g}$")
        limit = problem.generalization_error(slow.values)
        left.plot(measured.times, limit, ":", color=colour, label=r"$\eta \to 0$")
        left.axhline(plateau(K), color=colour, linewidth=0.7, linestyle="--")
        console.print(
            f"K = M = {K}: the plateau for eta -> 0 is {plateau(K):.6f}; at t = {time:g} the error "
            f"is {errors[:, -1].mean():.5f}, predicted {theory[-1]:.5f}",
            highlight=False,
            soft_wrap=True,
        )
    _overlaps(right, measured, predicted, K)
    left.set(yscale="log", xlabel="limit time $t$", ylim=(1e-4, 1.5))
    left.set_title("generalization error; dashes: the plateau for small $\\eta$", fontsize=9)
    left.legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _overlaps(axes: Axes, measured: tl.Trajectory, predicted: tl.Trajectory, K: int) -> None:
    """Overlaps with each neuron's own teacher neuron and with the others."""
    for i in range(K):
        for j in range(K):
            name, colour = f"m[{i},{j}]", RED if i == j else GREY
            label = {(0, 0): "own teacher", (0, 1): "the others"}.get((i, j))
            axes.plot(predicted.times, predicted[name], color=colour, linewidth=1, label=label)
            _dots(axes, measured.times, measured[name], colour)
    axes.set_xlabel("limit time $t$")
    axes.set_title(f"$K = {K}$: overlaps of neurons with the teacher's", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _dots(axes: Axes, times: Tensor, values: Tensor, colour: str, label: str | None = None) -> None:
    """Means over the runs, and bars of a standard deviation of one run."""
    axes.errorbar(
        times, values.mean(0), values.std(0), fmt="o", markersize=3, linewidth=0.7, color=colour,
        mfc="white", label=label,
    )  # fmt: skip


# --- b. three classes, two hidden layers ----------------------------------------------------------


def classes(dim: int) -> tl.NetworkProblem:
    """Three Gaussian classes with orthonormal means."""
    head = nn.Sequential(nn.GELU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return tl.NetworkProblem(
        dim=dim, width=4, head=head, loss=nn.functional.cross_entropy, means=torch.eye(3, dim),
        labels=torch.arange(3), snr=4.0, ridge=0.01,
    )  # fmt: skip


def three_classes(options: Options, console: Console) -> Figure:
    """Risk and accuracy on held-out data, over what is predicted for them."""
    dim, time, c, held = (60, 2.0, 4.0, 500) if options.smoke else (1000, 20.0, 4.0, 10_000)
    problem = classes(dim)
    start = problem.model(generator=torch.Generator().manual_seed(options.seed))
    x, y = problem.sample(held, generator=torch.Generator().manual_seed(options.seed + 1))

    def risk(parameters: dict[str, Tensor]) -> Tensor:
        return problem.loss_function(functional_call(start, parameters, (x,)), y)

    def accuracy(parameters: dict[str, Tensor]) -> Tensor:
        return (functional_call(start, parameters, (x,)).argmax(-1) == y).float().mean()

    measured = tl.train(
        problem, step_size=c, time=time, runs=options.runs, seed=options.seed, start=start,
        every=round(time * dim / c / 25), progress=False,
        statistics=problem.statistics | {"risk": risk, "accuracy": accuracy},
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=c)
    u0 = measured.select(problem.names).initial[0]
    predicted = dynamics.solve(u0, measured.times)
    flow = dynamics.solve(u0, measured.times, corrector=False)
    spread = drawn(predicted, dynamics.covariance(u0, measured.times), 4 if options.smoke else 40)
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    quality = {"risk": dynamics.risk, "accuracy": dynamics.accuracy}
    for axes, (name, function) in zip(figure.subplots(1, 2), quality.items(), strict=True):
        theory, around = function(predicted.values), function(spread)
        axes.plot(predicted.times, theory, color=BLUE, label="effective dynamics")
        mean, deviation = around.mean(0), around.std(0)  # the mean is not that of the mean u
        low, high = mean - 1.96 * deviation, mean + 1.96 * deviation
        axes.fill_between(predicted.times, low, high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(flow.times, function(flow.values), "--", color=GREY, label="gradient flow")
        label = f"{options.runs} runs of SGD, held-out data"
        _dots(axes, measured.times, measured[name], RED, label)
        axes.set_xlabel("limit time $t$")
        axes.set_title(f"{name}; shaded: 95 % of runs at $N = {dim}$", fontsize=9)
        console.print(
            f"{name} at t = {time:g}: {measured[name][:, -1].mean():.4f} on {held} held-out "
            f"samples, predicted {theory[-1]:.4f}, by gradient flow "
            f"{function(flow.final):.4f}; sd of runs {measured[name][:, -1].std():.4f}, predicted "
            f"{deviation[-1]:.4f}",
            highlight=False,
            soft_wrap=True,
        )
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def drawn(path: tl.Trajectory, covariance: Tensor, count: int) -> Tensor:
    """Normal u with the predicted mean and covariance at every time, ``(count, T, k)``."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()[:, None]
    normal = torch.randn(count, *path.values.shape, 1, generator=torch.Generator().manual_seed(0))
    return path.values + (root @ normal.to(root))[..., 0]


# --- c. phase retrieval ---------------------------------------------------------------------------


def retrieval(dim: int) -> tl.TeacherStudent:
    """Phase retrieval: one neuron, whose output is squared."""
    return tl.TeacherStudent(
        dim=dim, width=1, teacher_width=1, activation="square", train_second_layer=False
    )


#: when m^2 is half of what it is in the end
_LEVEL = 0.5**0.5


def exits(path: tl.Trajectory) -> Tensor:
    """When |m| passes the level, for each run, interpolated."""
    m, t = path["m[0,0]"].abs(), path.times
    after = (m >= _LEVEL).double().argmax(-1, keepdim=True).clamp_min(1)
    low, high = m.gather(-1, after - 1), m.gather(-1, after)
    share = (_LEVEL - low) / (high - low)
    if not bool((m.amax(-1) >= _LEVEL).all()):
        raise RuntimeError(f"runs have not left the equator by t = {float(t[-1]):.1f}")
    return (t[after - 1] + share * (t[after] - t[after - 1]))[..., 0]


def exits_of_chain(options: Options, dim: int, c: float) -> Tensor:
    """Exit times of the exact chain from random starts."""
    generator = torch.Generator().manual_seed(options.seed + dim)
    m = torch.randn(4 * options.runs, generator=generator, dtype=DOUBLE) / dim**0.5
    starts = torch.stack([m, torch.ones_like(m)], dim=-1)
    steps = round((2.2 + math.log(dim) / 6) * dim / c)
    chain = retrieval(100).reduced_chain(step_size=c, dim=dim)
    return exits(chain.run(starts, steps, every=max(1, steps // 400), generator=generator))


def exits_of_limit(dim: int, c: float) -> Tensor:
    """Exit times by the linear-noise law on the equator, and, once m has grown, by the ODE."""
    dynamics = retrieval(100).dynamics(step_size=c, dim=dim, nodes=400)
    grown = 0.5 + math.log(dim / 1000) / 12  # m is still far below 1, and noise no longer counts
    equator, first = torch.tensor([0.0, 1.0], dtype=DOUBLE), [0.0, grown]
    around = torch.diag(torch.tensor([1 / dim, 0.0], dtype=DOUBLE))
    spread = dynamics.covariance(equator, first, initial_covariance=around)[-1, 0, 0].sqrt()
    R = dynamics.solve(equator, first).final[1]
    shares = (torch.arange(64, dtype=DOUBLE) + 0.5) / 64  # quantiles in place of draws
    m = spread * torch.special.ndtri(shares)
    starts = torch.stack([m, (R - m**2).clamp_min(0)], dim=-1)
    times = torch.linspace(0, 2.5 + math.log(dim) / 6, 400, dtype=DOUBLE)
    return grown + exits(dynamics.solve(starts, times, rtol=1e-7, atol=1e-12))


def escape(options: Options, console: Console) -> Figure:
    """Exit times over N."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="$N$", ylabel="limit time of the exit")
    dims = [10**p for p in range(3, 6 if options.smoke else 10)]
    exact = [100] if options.smoke else [100, 200, 500, 1000]
    for c, colour in ((0.05, RED), (1e-3, BLUE)):
        times = [float(exits_of_limit(n, c).mean()) for n in dims]
        label = rf"$c = {c:g}$: linear noise, then the ODE"
        axes.plot(dims, times, "x", color=colour, label=label)
        slope = (times[-1] - times[-2]) / math.log(10)
        rate = equator_rate(c)
        line = [times[-1] + math.log(n / dims[-1]) / (2 * rate) for n in dims]
        axes.plot(dims, line, color=colour, linewidth=1, label=f"slope 1/(2 · {rate:.2f})")
        console.print(
            f"c = {c:g}: slope {slope:.4f} at N = {dims[-1]:.0e}; theory 1/(2 rate) = "
            f"{1 / (2 * rate):.4f}, 1/8 for c -> 0",
            highlight=False,
            soft_wrap=True,
        )
        if c < 0.01:
            continue
        for n in exact:
            found = exits_of_chain(options, n, c)
            mean, error = float(found.mean()), float(found.std() / len(found) ** 0.5)
            label = "exact chain" if n == exact[0] else None
            axes.errorbar(n, mean, error, fmt="o", color=colour, mfc="white", label=label)
            beside = f", by the limit {float(exits_of_limit(n, c).mean()):.3f}" if n >= 1000 else ""
            console.print(
                f"  N = {n}: {mean:.3f} ± {error:.3f}{beside}", highlight=False, soft_wrap=True
            )
    eighth = [times[-1] + math.log(n / dims[-1]) / 8 - 0.15 for n in dims]
    axes.plot(dims, eighth, "--", color=GREY, linewidth=1, label="slope 1/8")
    axes.set_title("phase retrieval: escape from the equator $m = 0$", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def equator_rate(c: float) -> float:
    """The rate at which m grows on the equator, where R has come to rest."""
    dynamics = retrieval(100).dynamics(step_size=c)
    (rest,) = dynamics.solve(torch.tensor([[0.0, 1.0]], dtype=DOUBLE), [0.0, 20.0]).final
    nearby = rest + torch.tensor([1e-6, 0.0], dtype=DOUBLE)
    return float((dynamics.drift(nearby) + dynamics.corrector(nearby))[0] / 1e-6)


# --- d. label noise -------------------------------------------------------------------------------


def goldt(K: int, M: int, eta: float, noise: float) -> float:
    """The final error to first order in eta, of committees of erf with weights 1."""
    return eta * noise**2 / (2 * math.pi) * (K - M + M / 3**0.5)


def fixed_points(K: int, M: int, etas: Sequence[float], noise: float) -> list[tuple[float, Tensor]]:
    """Error and u of the fixed point next to the teacher, followed from one eta to the next."""
    problem = committee(K, M, dim=300, noise=noise)
    small = [1.01] * M + [0.02] * (K - M)  # neurons that the teacher has no use for
    u = problem.from_order_parameters(torch.diag(torch.tensor(small, dtype=DOUBLE)),
                                      torch.eye(K, M, dtype=DOUBLE))  # fmt: skip
    found: list[tuple[float, Tensor]] = []
    for eta in etas:
        u = problem.dynamics(step_size=eta).fixed_points(u[None])[0].u
        found.append((float(problem.generalization_error(u)), u))
    return found


def stay(options: Options, eta: float, noise: float, start: Tensor) -> tuple[float, float]:
    """Mean error of runs that begin where theory says they end, and its standard error.

    The slowest rate there is about 0.07: from elsewhere they would take very long.
    """
    problem = committee(2, 2, dim=200, noise=noise)
    steps = round((1 if options.smoke else 15) * problem.dim / eta)
    chain = problem.reduced_chain(step_size=eta)
    generator = torch.Generator().manual_seed(options.seed)
    every = max(1, steps // 100)
    path = chain.run(start, steps, runs=options.runs, every=every, generator=generator)
    errors = problem.generalization_error(path.values)[:, len(path) // 2 :].mean(-1)
    return float(errors.mean()), float(errors.std() / len(errors) ** 0.5)


def label_noise(options: Options, console: Console) -> Figure:
    """Final errors over eta, and their ratio to the law."""
    noise = 0.1
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    grids = {(2, 2): [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5],
             (4, 2): [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]}  # fmt: skip
    if options.smoke:
        grids = {(2, 2): [0.02, 0.1]}
    starts: dict[float, Tensor] = {}
    for ((K, M), etas), colour in zip(grids.items(), (BLUE, RED), strict=False):
        points, label = fixed_points(K, M, etas, noise), f"$K = {K}$, $M = {M}$"
        errors = [error for error, _ in points]
        if K == M:
            starts = {eta: u for eta, (_, u) in zip(etas, points, strict=True)}
        laws = [goldt(K, M, eta, noise) for eta in etas]
        ratios = [e / law for e, law in zip(errors, laws, strict=True)]
        left.plot(etas, errors, color=colour, label=f"{label}: fixed point")
        left.plot(etas, laws, ":", color=colour, label="the law of Goldt et al.")
        right.plot(etas, ratios, "o-", color=colour, ms=3, label=label)
        shown = ", ".join(f"{r:.4f} ({eta:g})" for eta, r in zip(etas, ratios, strict=True))
        console.print(
            f"K = {K}, M = {M}: fixed point over law (eta): {shown}",
            highlight=False,
            soft_wrap=True,
        )
    runs = [0.1] if options.smoke else [0.2, 0.35, 0.5, 0.75, 1.0, 1.25, 1.5]
    for eta in runs:
        mean, error = stay(options, eta, noise, starts[eta])
        label = "SGD, exact chain, N = 200" if eta == runs[0] else None
        left.errorbar(eta, mean, error, fmt="o", color=BLUE, mfc="white", ms=4, label=label)
        console.print(
            f"  SGD, eta = {eta:g}: {mean:.3e} ± {error:.0e}", highlight=False, soft_wrap=True
        )
    right.axhline(1, color=GREY, linewidth=0.7)
    left.set(xscale="log", yscale="log", xlabel=r"$\eta$")
    left.set_title(f"final generalization error, label noise {noise:g}", fontsize=9)
    right.set(xlabel=r"$\eta$")
    right.set_title("its ratio to the law of first order", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    right.legend(fontsize=8, frameon=False)
    return figure


def main(options: Options, console: Console) -> None:
    """Draw one picture, or all."""
    if options.smoke:
        options.runs = 4
    parts = {"a": specialisation, "b": three_classes, "c": escape, "d": label_noise}
    for name in parts if options.part == "all" else [options.part]:
        picture = options.out / f"{name}.png"
        tl.figures.save(parts[name](options, console), picture, dpi=110)
        console.print(f"Picture: {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    chosen = tyro.cli(Options, description=__doc__)
    try:
        main(chosen, Console())
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from None

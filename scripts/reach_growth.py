"""What everything costs as it grows: N, K, statistics, runs, steps, nodes, blocks, data.

    python scripts/reach_growth.py --out scripts/reach_growth.json --picture scripts/growth.png

For each piece of work and axis: seconds (the least of some repeats, of one core) and peak memory
(resident bytes beside those before the work, as Linux counts them, in a process of its own) at
several sizes; the slope of the last four in logarithms, with its standard error; and the exponent
that it has to have, with the reason. It ends with an error if one grows faster than expected + 0.1
and nothing says why. `--smoke` takes the two smallest sizes of each, `--only` pieces by a part of
their name or axis, `--table` prints what the JSON file of `--out` holds. `--page` measures nothing
and writes the table of `reach_growth.json`, with what nobody has measured, into docs/growth.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pages
import reach
import torch
from growth import Growth, Work, measured, picture, table, told
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import torchlimits as tl
from torchlimits.cli.show import Show

# names are imported when they are used: here, and not in each forked process
for name in dir(tl):
    getattr(tl, name)
FOLDER = tempfile.TemporaryDirectory()

PAGE = Path(__file__).parent.parent / "docs/growth.md"
KEPT = Path(__file__).with_suffix(".json")


def place(name: str) -> Path:
    """A file that is not there yet."""
    return Path(tempfile.mkdtemp(dir=FOLDER.name), name)


# --- recording ------------------------------------------------------------------------------------


def tracked(
    steps: int, *, dim: int = 20, width: int = 1, entries: int | None = None, functions: int = 0,
    rows: bool = False, start: bool = False, writer: Callable[[], object] | None = None,
) -> Work:  # fmt: skip
    """Steps of SGD with a gradient that is there already, recorded from beginning to end."""
    model = nn.Linear(dim, width, bias=False)
    # so small a rate that nothing grows
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    model.weight.grad = torch.ones_like(model.weight)
    statistics = {"gram": lambda p: p["weight"] @ p["weight"].mT}
    if entries is not None:
        statistics = {"m": lambda p: p["weight"].flatten()[:1] * torch.ones(entries)}
    if functions:
        statistics = {f"m{i}": lambda p, i=i: p["weight"][0, i % dim] for i in range(functions)}

    def work() -> object:
        tracker = tl.track(
            model, optimizer, statistics, path=place("u.rows") if rows else None,
            writer=None if writer is None else writer(),
        )  # fmt: skip
        for _ in range(steps):
            optimizer.step()
        tracker.close()
        return tracker

    return work


def normed(parameters: int) -> Work:
    """The norms of so many parameters, recorded over ten steps."""
    model = nn.ParameterList(torch.ones(3) for _ in range(parameters))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    for parameter in model:
        parameter.grad = torch.ones(3)

    def work() -> None:
        with tl.track(model, optimizer, tl.statistics.norms(model)):
            for _ in range(10):
                optimizer.step()

    return work


def checkpointed(steps: int) -> Work:
    """The state of a tracker, once."""
    trajectory = path(steps)
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"m": lambda p: p["weight"][0]})
    state = tracker.state_dict()
    state.update(
        step=int(trajectory.steps[-1]), time=float(trajectory.times[-1]), records=len(trajectory),
        times=trajectory.times, steps=trajectory.steps, values=trajectory.values[..., :2],
    )  # fmt: skip
    tracker.load_state_dict(state)
    return tracker.state_dict


# --- trajectories ---------------------------------------------------------------------------------


def path(
    steps: int, *, statistics: int = 2, runs: int | None = None, family: bool = True
) -> tl.Trajectory:
    """A trajectory of noise; its statistics are one family, or each of its own."""
    lead = () if runs is None else (runs,)
    values = torch.rand(*lead, steps, statistics, dtype=torch.float64)
    times = torch.linspace(0.0, 1.0, steps, dtype=torch.float64)
    names = [f"m[{i}]" if family else f"m{i}" for i in range(statistics)]
    return tl.Trajectory(times, torch.arange(steps), values, names)


def predicted(like: tl.Trajectory) -> tl.Trajectory:
    """The same with a band."""
    values = like.values.reshape(-1, *like.values.shape[-2:])[0]
    return tl.Trajectory(like.times, like.steps, values, like.names, std=torch.ones_like(values))


def saved(trajectory: tl.Trajectory) -> Work:
    return lambda: trajectory.save(place("u.npz"))


def loaded(trajectory: tl.Trajectory) -> Work:
    file = place("u.npz")
    trajectory.save(file)
    return lambda: tl.Trajectory.load(file)


def rows_file(steps: int, statistics: int) -> Path:
    """A file of rows, as a tracker leaves it."""
    model = nn.Linear(statistics, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    file = place("u.rows")
    trajectory = path(steps, statistics=statistics)
    tracker = tl.track(model, optimizer, {"m": lambda p: p["weight"][0]}, path=file)
    state = tracker.state_dict()
    state.update(
        step=steps - 1, time=1.0, records=steps, times=trajectory.times, steps=trajectory.steps,
        values=trajectory.values,
    )  # fmt: skip
    tracker.load_state_dict(state)
    tracker.close()
    return file


def rows_loaded(steps: int, statistics: int = 2) -> Work:
    file = rows_file(steps, statistics)
    return lambda: tl.Trajectory.load(file)


def shown(steps: int) -> Work:
    """What `torchlimits show` prints."""
    file = rows_file(steps, 2)
    return Show(file).main


def csv(trajectory: tl.Trajectory) -> Work:
    def work() -> None:
        sink = tl.CSV(place("u.csv"))
        sink.add(trajectory)
        sink.finish()

    return work


def live(trajectory: tl.Trajectory) -> Work:
    """The live writer, given a thousand rows at a time."""

    def work() -> None:
        with tl.tensorboard.Writer(place("run")) as writer:
            for first in range(0, len(trajectory), 1000):
                writer.add(trajectory.slice(slice(first, first + 1000)))
                writer.flush()

    return work


def written(trajectory: tl.Trajectory, **options: Any) -> Work:
    beside = predicted(trajectory)
    return lambda: tl.tensorboard.write(
        place("run"), measured=trajectory, predicted=beside, **options
    )


def compared(trajectory: tl.Trajectory) -> Work:
    beside = predicted(trajectory)
    return lambda: str(tl.compare(trajectory, beside))


def plotted(trajectory: tl.Trajectory) -> Work:
    beside = predicted(trajectory)
    return lambda: beside.plot("m")


def overlaid(trajectory: tl.Trajectory) -> Work:
    beside = predicted(trajectory)
    return lambda: tl.figures.overlay(trajectory, beside)


# --- training -------------------------------------------------------------------------------------


def trained(
    steps: int = 100, *, dim: int = 100, width: int = 4, runs: int = 1, every: int | None = None
) -> Work:
    problem = tl.GaussianMixture.binary(dim, width, snr=2.0)
    return lambda: tl.train(
        problem, step_size=0.1, time=0.1 * steps / dim, runs=runs, progress=False,
        every=every or steps,
    )  # fmt: skip


def chain(
    steps: int = 200, *, dim: int = 1000, width: int = 2, runs: int = 10, every: int | None = None
) -> Work:
    problem = tl.TeacherStudent(dim=max(dim, 4 * width), width=width, teacher_width=1)
    start = problem.starts(1)[0]
    made = problem.reduced_chain(step_size=0.1, dim=dim)
    return lambda: made.run(start, steps, runs=runs, every=every or steps)


def law(runs: int) -> Work:
    problem = tl.SpikedTensor(dim=1000, order=2, snr=2.0)
    start = torch.tensor([0.1, 1.0])
    times = torch.linspace(0, 0.05, 6)
    return lambda: problem.reduced_chain(step_size=1.0).law(start, times, runs=runs)


# --- theory ---------------------------------------------------------------------------------------


def head(
    width: int = 2, *, nodes: int = 1024, dim: int = 200, levels: int | None = None
) -> tl.NetworkProblem:
    """A committee machine with a head of its own, and two classes."""
    return tl.NetworkProblem(
        dim=dim, width=width, head=nn.Sequential(nn.Tanh(), nn.Linear(width, 1)),
        loss=nn.functional.mse_loss, means=torch.eye(2, dim), labels=torch.tensor([1.0, -1.0]),
        snr=4.0, covariance=None if levels is None else spectrum(dim, levels),
        blocks=None if levels is None else "all",
    )  # fmt: skip


def spectrum(dim: int, levels: int) -> Tensor:
    """So many eigenvalues, each as often as the others."""
    return (1 + torch.arange(levels, dtype=torch.float64) / levels).repeat(dim // levels)


def right_hand_side(problem: tl.NetworkProblem | tl.GaussianMixture, **options: Any) -> Work:
    dynamics = problem.dynamics(step_size=0.1, **options)
    u = problem.starts(1)[0]
    return lambda: dynamics.drift(u)


def closed(width: int, activation: str) -> Work:
    """Closed forms: drift and corrector."""
    problem = tl.TeacherStudent(dim=400, width=width, teacher_width=2, activation=activation)
    dynamics, u = problem.dynamics(step_size=0.1), problem.starts(1)[0]
    return lambda: (dynamics.drift(u), dynamics.corrector(u))


def solved(
    dim: int = 1000, *, times: int = 2, starts: int | None = None, band: bool = False
) -> Work:
    """A mixture's effective dynamics."""
    problem = tl.GaussianMixture.binary(dim, 2, snr=2.0)
    dynamics = problem.dynamics(step_size=0.1)
    u = problem.starts(1 if starts is None else starts)
    u = u[0] if starts is None else u
    asked = torch.linspace(0, 1, times)
    return lambda: dynamics.solve(u, asked, band=band)


class Chains(tl.VectorField):
    """Each statistic decays, and pushes the next."""

    def terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """-f and g."""
        return u.roll(1, -1) - 2 * u, torch.ones_like(u)

    def increment_covariance(self, u: Tensor, step_size: float) -> Tensor:
        """The noise of each by itself."""
        return torch.eye(u.shape[-1], dtype=u.dtype).expand(*u.shape, u.shape[-1])


def banded(statistics: int) -> Work:
    field = Chains([f"m{i}" for i in range(statistics)], dim=1000)
    dynamics, u = tl.EffectiveDynamics(field, step_size=0.1), torch.ones(statistics)
    return lambda: dynamics.solve(u, [0.0, 0.5, 1.0], band=True)


def without_band(statistics: int) -> Work:
    field = Chains([f"m{i}" for i in range(statistics)], dim=1000)
    dynamics, u = tl.EffectiveDynamics(field, step_size=0.1), torch.ones(statistics)
    return lambda: dynamics.solve(u, [0.0, 0.5, 1.0])


def least_squares(levels: int, *, band: bool = False) -> Work:
    problem = tl.LinearModel(dim=levels, covariance=1 / torch.arange(1.0, levels + 1), noise=0.1)
    times = torch.linspace(0, 1, 5)
    # dynamics that have been solved keep their eigenvectors
    return lambda: problem.dynamics(step_size=0.1).solve(problem.initial, times, band=band)


def least_squares_chain(levels: int) -> Work:
    problem = tl.LinearModel(dim=levels, covariance=1 / torch.arange(1.0, levels + 1), noise=0.1)
    made = problem.reduced_chain(step_size=0.1)
    return lambda: made.run(problem.initial, 100, runs=10, every=100)


# --- data and estimates ---------------------------------------------------------------------------


def estimated(
    samples: int = 256, *, dim: int = 100, statistics: int = 1, plain: bool = False
) -> Work:
    problem = tl.SpikedTensor(dim=dim, order=2, snr=2.0)
    model = problem.model()
    directions = torch.randn(statistics, dim)
    if plain:
        own = {"m": lambda p: (p["x"] @ directions.mT).tanh()}
    else:
        own = {"m": tl.statistics.overlaps("x", directions)}
    return lambda: tl.estimate(
        model, problem.loss, problem.sample, own, step_size=0.01, samples=samples
    )


def of_data(rows: int, dim: int = 20) -> Work:
    x = torch.randn(rows, dim)
    y = (x[:, 0] > 0).long()
    return lambda: str(tl.Covariance.of_data(x, y))


def decades(low: float, high: float, a_decade: int = 2) -> list[int]:
    """Sizes from 10^low to 10^high."""
    count = round((high - low) * a_decade)
    return [round(10 ** (low + i / a_decade)) for i in range(count + 1)]


WIDTHS = [1, 2, 4, 8, 16, 32, 64]

# fmt: off
GROWTHS = [
    # N
    Growth("tl.track", "N", [100, 1000, *decades(4, 6)], lambda n: tracked(100, dim=n),
           1, 1, "copies of N"),
    Growth("tl.train", "N", [100, 1000, *decades(4, 6)], lambda n: trained(20, dim=n, runs=4), 1, 1,
           "data and weights of N"),
    Growth("tl.estimate", "N", decades(2, 6, 1), lambda n: estimated(dim=n), 1, 1,
           "a gradient of N for each sample, in pieces"),
    Growth("tl.estimate, plain functions", "N", decades(2, 6, 1),
           lambda n: estimated(dim=n, plain=True), 1, 1, "the same"),
    Growth("dynamics.solve", "N", decades(2, 6, 1), solved, 0, 0, "N enters as a number"),
    Growth("dynamics.solve, band", "N", decades(2, 6, 1), lambda n: solved(n, band=True), 0, 0,
           "N enters as a number"),
    Growth("reduced_chain", "N", decades(2, 6, 1), lambda n: chain(dim=n), 0, 0,
           "no vector of N"),
    Growth("any head, right-hand side", "N", decades(2, 6, 1),
           lambda n: right_hand_side(head(dim=n)), 0, 0, "N enters as a number"),
    # K
    Growth("tl.track, Gram matrix", "K", WIDTHS, lambda k: tracked(200, dim=100, width=k), 2, 2,
           "K² statistics"),
    Growth("tl.train", "K", WIDTHS, lambda k: trained(50, dim=2000, width=k, runs=4), 1, 1,
           "K rows of N"),
    Growth("reduced_chain", "K", WIDTHS, lambda k: chain(50, width=k, runs=200), 2, 2,
           "K rows of K + 6 coordinates"),
    Growth("any head, right-hand side", "K", WIDTHS,
           lambda k: right_hand_side(head(k), nodes=8192), 2, 1,
           "K² products at each node, of which K numbers are held"),
    Growth("mixture, right-hand side", "K", [8, 16, 32, 64],
           lambda k: right_hand_side(tl.GaussianMixture.binary(400, k, snr=2.0), level=-3), 2, 1,
           "K² products at each node, of which K numbers are held; from K = 8 on, as many nodes"),
    Growth("erf, closed form", "K", WIDTHS, lambda k: closed(k, "erf"), 4, 4,
           "K⁴ four-point averages in the corrector"),
    Growth("ReLU, closed form", "K", WIDTHS[:6], lambda k: closed(k, "relu"), 4, 4,
           "K⁴ four-point averages in the corrector"),
    # statistics
    Growth("tl.track, one function", "statistics", decades(1, 4),
           lambda s: tracked(100, entries=s), 1, 1, "8 bytes each"),
    Growth("tl.track, functions", "statistics", decades(1, 4),
           lambda s: tracked(10, functions=s), 1, 1, "a call each"),
    Growth("tl.track, norms", "statistics", decades(0, 3),
           normed, 1, 1, "one of each parameter"),
    Growth("tensorboard.write", "statistics", decades(1, 4),
           lambda s: written(path(20, statistics=s)), 1, 1, "events of S values"),
    Growth("tensorboard.write, a family each", "statistics", decades(1, 4),
           lambda s: written(path(20, statistics=s, family=False)), 1, 1,
           "events of S values; at most 24 panels"),
    Growth("tensorboard.Writer", "statistics", decades(1, 4),
           lambda s: live(path(20, statistics=s)), 1, 1, "events of S values"),
    Growth("CSV", "statistics", decades(1, 4), lambda s: csv(path(20, statistics=s)), 1, 1,
           "cells"),
    Growth("Trajectory.save", "statistics", decades(1, 4),
           lambda s: saved(path(100, statistics=s)), 1, 1, "8 bytes each"),
    Growth("Trajectory.load", "statistics", decades(1, 4),
           lambda s: loaded(path(100, statistics=s)), 1, 1, "8 bytes each"),
    Growth("tl.compare", "statistics", decades(1, 4), lambda s: compared(path(20, statistics=s)),
           1, 1, "a row each"),
    Growth("figures.overlay", "statistics", decades(1, 4),
           lambda s: overlaid(path(20, statistics=s)), 1, 1, "a name each; at most 48 lines"),
    Growth("Trajectory.plot", "statistics", decades(1, 3.5),
           lambda s: plotted(path(20, statistics=s)), 1, 1, "a line each"),
    Growth("tl.estimate", "statistics", decades(0, 3), lambda s: estimated(statistics=s), 2, 2,
           "S x S diffusion matrix"),
    Growth("tl.estimate, plain functions", "statistics", decades(0, 2.5),
           lambda s: estimated(statistics=s, plain=True), 2, 2, "S x S diffusion matrix"),
    Growth("dynamics.solve", "statistics", decades(1, 4), without_band, 1, 1, "vectors of S"),
    Growth("dynamics.solve, band", "statistics", [1, 3, 10, 20, 40, 80, 160, 320], banded, 3, 2,
           "products of S x S matrices"),
    # runs
    Growth("tl.train", "runs", decades(2, 5), lambda r: trained(20, dim=20, runs=r), 1, 1,
           "each by itself"),
    Growth("reduced_chain", "runs", decades(2, 5), lambda r: chain(50, runs=r), 1, 1,
           "each by itself"),
    Growth("reduced_chain.law", "runs", [100, 316, *decades(3, 5)], law, 1, 1,
           "each by itself; sorting's logarithm"),
    Growth("dynamics.solve, starts", "runs", decades(1, 4), lambda r: solved(starts=r), 1, 1,
           "each by itself"),
    Growth("Trajectory.save", "runs", decades(2, 5), lambda r: saved(path(20, runs=r)), 1, 1,
           "8 bytes each"),
    Growth("tl.compare", "runs", decades(2, 5), lambda r: compared(path(20, runs=r)), 1, 1,
           "each number once"),
    Growth("tensorboard.write", "runs", decades(2, 5), lambda r: written(path(20, runs=r)), 1, 1,
           "at most three runs are shown"),
    Growth("figures.overlay", "runs", decades(2, 5), lambda r: overlaid(path(20, runs=r)), 1, 1,
           "each number once"),
    # steps
    Growth("tl.track", "steps", decades(3, 5.5), tracked, 1, 1, "8 (S + 3) bytes each"),
    Growth("tl.track, path=", "steps", decades(3, 5.5), partial(tracked, rows=True), 1, 1,
           "to a file, which is mapped"),
    Growth("tl.track, writer=", "steps", decades(3, 5.5),
           partial(tracked, writer=lambda: place("run")), 1, 1, "at most 1000 are shown"),
    Growth("Tracker.state_dict", "steps", decades(3, 6), checkpointed, 1, 1, "all rows, once"),
    Growth("tl.train", "steps", decades(3, 5), lambda s: trained(s, dim=50), 1, 0,
           "1000 records at most"),
    Growth("reduced_chain", "steps", decades(2.5, 4.5), lambda s: chain(s, every=1), 1, 1,
           "each is recorded"),
    Growth("tensorboard.write", "steps", decades(4, 7), lambda s: written(path(s)), 1, 1,
           "each is read, 1000 are shown"),
    Growth("tensorboard.write, max_points=None", "steps", decades(3, 6),
           lambda s: written(path(s), max_points=None), 1, 1, "an event each"),
    Growth("tensorboard.Writer", "steps", decades(3, 6), lambda s: live(path(s)), 1, 0,
           "at most 1000 are shown"),
    Growth("CSV", "steps", decades(3, 6), lambda s: csv(path(s)), 1, 1, "a line each"),
    Growth("Trajectory.save", "steps", decades(4, 7), lambda s: saved(path(s)), 1, 1,
           "8 (S + 2) bytes each"),
    Growth("Trajectory.load, npz", "steps", decades(4, 7), lambda s: loaded(path(s)), 1, 1,
           "8 (S + 2) bytes each"),
    Growth("Trajectory.load, rows", "steps", decades(4, 7), rows_loaded, 1, 1,
           "a checksum each"),
    Growth("tl.compare", "steps", decades(4, 7), lambda s: compared(path(s)), 1, 1,
           "each number once"),
    Growth("figures.overlay", "steps", decades(4, 7), lambda s: overlaid(path(s)), 1, 1,
           "each number once"),
    Growth("torchlimits show", "steps", decades(4, 7), shown, 1, 1, "each number once"),
    Growth("dynamics.solve", "steps", decades(3, 6), lambda s: solved(times=s), 1, 1,
           "a row each"),
    Growth("dynamics.solve, band", "steps", decades(2, 5), lambda s: solved(times=s, band=True),
           1, 1, "a matrix each"),
    # nodes, blocks, levels, data
    Growth("any head, right-hand side", "nodes", [2**i for i in range(8, 22, 2)],
           lambda n: right_hand_side(head(4), nodes=n), 1, 1, "each by itself"),
    Growth("any head, right-hand side", "blocks", decades(0, 3),
           lambda n: right_hand_side(head(levels=n, dim=10 * n)), 1, 1, "K² products in each"),
    Growth("problem of blocks, made", "blocks", decades(0, 3),
           lambda n: lambda: head(levels=n, dim=10 * n).dynamics(step_size=0.1), 1, 1,
           "each once"),
    Growth("LinearModel, solve", "levels", decades(1, 3.5), least_squares, 3, 2,
           "eigenvectors, L x L"),
    Growth("LinearModel, band", "levels", decades(1, 3), partial(least_squares, band=True), 3, 2,
           "products of L x L matrices"),
    Growth("LinearModel, reduced_chain", "levels", decades(1, 4), least_squares_chain, 1, 1,
           "each once"),
    Growth("Covariance.of_data", "rows of data", decades(3, 6.5), of_data, 1, 1, "each once"),
    Growth("Covariance.of_data", "dimensions of data", [16, 32, 64, 128, 256, 512],
           lambda n: of_data(2048, n), 3, 2, "eigenvectors, N x N"),
]  # fmt: skip


def smallest(growth: Growth) -> Growth:
    """Two sizes, for the tests."""
    return replace(growth, sizes=growth.sizes[:2])


def found_before(file: Path | None, growths: Sequence[Growth]) -> dict[str, Any]:
    """What the file has of these pieces of work, at these sizes."""
    if file is None or not file.exists():
        return {}
    kept = json.loads(file.read_text())["growths"]
    return {
        growth.name: kept[growth.name] for growth in growths
        if growth.name in kept and kept[growth.name]["sizes"] == list(growth.sizes)
    }  # fmt: skip


def page() -> str:
    """What the page on growth has to say."""
    found = found_before(KEPT, GROWTHS)
    return pages.written(PAGE.read_text(), "reach_growth.py", table(GROWTHS, found))


def small(figure: Figure, file: Path) -> None:
    """Save a large picture of few colours, which take a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--only", default="", help="pieces with this in 'operation over axis'")
    parser.add_argument("--missing", action="store_true", help="keep what --out has already")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no others then")
    parser.add_argument("--smoke", action="store_true", help="two sizes of each")
    parser.add_argument("--picture", type=Path, help="where to draw what --out has, as PNG")
    parser.add_argument("--table", action="store_true", help="print a table of what --out has")
    parser.add_argument("--page", action="store_true", help="only write the table into its page")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page())
        return
    growths = [smallest(growth) for growth in GROWTHS] if options.smoke else GROWTHS
    found, begin = found_before(options.out, growths), time.monotonic()
    for growth in growths:
        if options.only not in growth.name or (options.missing and growth.name in found):
            continue
        if time.monotonic() - begin > options.seconds:
            break
        origin = {"date": date.today().isoformat(), "commit": reach.commit()}
        one = measured(growth, 0.0, rounds=1) if options.smoke else measured(growth)
        print(told(one), file=sys.stderr, flush=True)
        found[growth.name] = {**origin, **one}
        # in order, and after each: it takes long
        found = {other.name: found[other.name] for other in growths if other.name in found}
        with contextlib.redirect_stdout(None):
            reach.keep({"growths": found}, options)
    if options.table:
        print(table(growths, found))
    if options.picture is not None:
        small(picture([*found.values()]), options.picture)
    faster = [name for name, one in found.items() if not one["holds"] and not one.get("faster")]
    if faster and not options.smoke:
        sys.exit(f"these grow faster than expected: {', '.join(faster)}")


if __name__ == "__main__":
    main()

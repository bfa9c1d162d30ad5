"""Everything about CUDA that is worth measuring, in less than five minutes on one card.

    python scripts/bench_cuda.py --out cuda

Parts, the most useful first: **checks** (what has to hold, `cuda_checks.py`), **tracking**
(`tl.track` around a user's loop), **ensemble** (`tl.train` beside its floors, by its kernel and
captured), **theory** (chain, solver, basins, estimates beside the CPU), **memory**. A part
that fails prints why, and the next goes on. After each, ``results.json`` and ``table.md`` in the
folder hold all there is. ``--device cpu --smoke`` runs every part in seconds.

Times are medians of interleaved rounds after one that warms up, by the host's clock, with the
device synchronised before and after.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import math
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from benchmark import HEADER, Row, Training, interleaved, machine, timed
from cuda_checks import CHECKS
from torch import Tensor, nn

import torchlimits as tl
from torchlimits import _checks
from torchlimits.ensemble.ensemble import Ensemble

#: `compiled=` of `tl.train`
WAYS = {"captured": False, "kernel": True}
PARTS = ("checks", "tracking", "ensemble", "theory", "memory")


@dataclass(kw_only=True)
class Options:
    """What to measure, and where to put it."""

    out: Path
    """a folder for results.json and table.md"""
    device: str = "cuda"
    smoke: bool = False
    """tiny sizes, to see that everything runs"""
    parts: tuple[str, ...] = PARTS
    seconds: float = 285.0
    """what has not begun by then is left out, as the table then says"""

    def __post_init__(self) -> None:
        _checks.device(self.device)
        if unknown := set(self.parts) - set(PARTS):
            raise ValueError(f"expected parts among {PARTS}, got {sorted(unknown)}")


@dataclass
class Note:
    """A finding that is not a time."""

    what: str
    text: str

    def __str__(self) -> str:
        return f"| {self.what} |  |  |  |  |  | {self.text} |"


Finding = Row | Note


class Report:
    """Findings so far, on disk after each of them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.begin = time.monotonic()
        self.findings: list[tuple[str, Finding]] = []
        self.failures: dict[str, str] = {}
        options.out.mkdir(parents=True, exist_ok=True)
        self.header = header(options.device)
        print(json.dumps(self.header), HEADER, sep="\n", flush=True)

    @property
    def late(self) -> bool:
        """Whether nothing more is to begin."""
        return time.monotonic() - self.begin > self.options.seconds

    def add(self, part: str, finding: Finding) -> None:
        """Print it, and write everything anew."""
        self.findings.append((part, finding))
        print(finding, flush=True)
        self.write()

    def failed(self, what: str) -> None:
        """Say why a part failed; the next one goes on."""
        self.failures[what] = traceback.format_exc()
        print(f"| {what} |  |  |  |  |  | FAILED |\n{self.failures[what]}", flush=True)
        self.write()

    def write(self) -> None:
        """results.json and table.md."""
        rows = [
            {"part": part, **dataclasses.asdict(one)}
            | ({"cells": one.cells} if isinstance(one, Row) else {})
            for part, one in self.findings
        ]
        found = {**self.header, "findings": rows, "failures": self.failures}
        (self.options.out / "results.json").write_text(json.dumps(found, indent=1))
        lines = [", ".join(f"{k}: {v}" for k, v in self.header.items()), "", HEADER]
        lines += [str(one) for _, one in self.findings]
        lines += [f"| {what} |  |  |  |  |  | FAILED |" for what in self.failures]
        (self.options.out / "table.md").write_text("\n".join(lines) + "\n")


def header(device: str) -> dict[str, str]:
    """Card, driver, torch, date, commit."""

    def said(*command: str) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        return done.stdout.strip() or "unknown"

    facts = {"machine": machine(device)}
    if device != "cpu":
        facts["card"] = said(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
        )
        facts["cuda"] = str(torch.version.cuda)
    facts["date"] = time.strftime("%Y-%m-%d")
    facts["commit"] = said("git", "rev-parse", "--short", "HEAD")
    return facts


# --- checks ----------------------------------------------------------------------------------


def correctness(options: Options, report: Report) -> Iterator[Finding]:
    """What has to hold, each by itself."""
    for check in CHECKS[:3] if options.smoke else CHECKS:
        if options.device == "cpu" and check.cuda_only:
            continue
        try:
            begin = time.perf_counter()
            remark = check(options.device)
            took = time.perf_counter() - begin
            yield Note(check.__name__, f"ok, {took:.1f} s" + (f": {remark}" if remark else ""))
        except Exception:
            report.failed(check.__name__)


# --- tracking --------------------------------------------------------------------------------


class Loop:
    """A user's own training loop: model, optimizer, what to record, and a step."""

    statistics: Any

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.statistics = {
            f"norm {name}": (lambda p, name=name: p[name].norm())
            for name, p in model.named_parameters()
            if p.ndim > 1
        }

    def loss(self) -> Tensor:
        """Forward on fresh data."""
        raise NotImplementedError

    def run(self, steps: int) -> None:
        """Take this many steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()


class Mixture(Loop):
    """A two-layer network on the XOR mixture, N = 1000, K = 4, batch 1."""

    def __init__(self, options: Options) -> None:
        dim = 20 if options.smoke else 1000
        self.problem = tl.GaussianMixture.xor(dim, 4, snr=100.0, ridge=0.1, device=options.device)
        model = self.problem.model()
        super().__init__(model, torch.optim.SGD(model.parameters(), lr=1 / dim, weight_decay=0.1))
        self.statistics = self.problem.statistics

    def loss(self) -> Tensor:
        """Forward on fresh data."""
        x, y = self.problem.sample(1)
        return self.problem.loss(self.model(x), y)


class Convolutions(Loop):
    """A convolutional network of ten million parameters on 32 x 32 images, batch 128."""

    def __init__(self, options: Options) -> None:
        widths = [3, 8, 8] if options.smoke else [3, 64, 128, 256, 512, 512, 512, 512]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i in (1, 2, 3, 4) else []
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)]
        model = nn.Sequential(*layers).to(options.device)
        super().__init__(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
        batch = 4 if options.smoke else 128
        self.x = torch.randn(batch, 3, 32, 32, device=options.device)
        self.y = torch.randint(10, (batch,), device=options.device)

    def loss(self) -> Tensor:
        """Cross-entropy of one batch."""
        return nn.functional.cross_entropy(self.model(self.x), self.y)


class SmallGPT(Loop):
    """A decoder of six layers of width 384 on 16 texts of 256 characters, bfloat16 autocast."""

    def __init__(self, options: Options) -> None:
        width, heads, depth, length = (16, 2, 1, 8) if options.smoke else (384, 6, 6, 256)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        model: Any = nn.ModuleDict(
            {
                "embedding": nn.Embedding(256, width),
                "position": nn.Embedding(length, width),
                "body": nn.TransformerEncoder(layer, depth, enable_nested_tensor=False),
                "head": nn.Linear(width, 256),
            }
        ).to(options.device)
        super().__init__(model, torch.optim.AdamW(model.parameters(), lr=3e-4))
        batch = 2 if options.smoke else 16
        self.tokens = torch.randint(256, (batch, length + 1), device=options.device)
        self.places = torch.arange(length, device=options.device)
        self.mask = nn.Transformer.generate_square_subsequent_mask(
            length, device=torch.device(options.device)
        )
        self.device, self.parts = options.device, model

    def loss(self) -> Tensor:
        """Cross-entropy of the next characters."""
        with torch.autocast(self.device, torch.bfloat16):
            h = self.parts["embedding"](self.tokens[:, :-1]) + self.parts["position"](self.places)
            h = self.parts["body"](h, mask=self.mask, is_causal=True)
            logits = self.parts["head"](h)
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.tokens[:, 1:].flatten()
        )


def tracking(options: Options, report: Report) -> Iterator[Finding]:
    """`tl.track` around three loops, with TensorBoard and without."""
    cases = [(Mixture, 1000), (Convolutions, 60), (SmallGPT, 60)]
    for make, steps in cases:
        if report.late:
            return
        steps = 5 if options.smoke else steps
        loop = make(options)
        loop.run(min(steps, 20))  # kernels are chosen in the first steps

        def bare(loop: Loop = loop, steps: int = steps) -> float:
            return timed(lambda: loop.run(steps), steps)

        def tracked(loop: Loop = loop, steps: int = steps, **given: Any) -> float:
            tracker = tl.track(loop.model, loop.optimizer, loop.statistics, **given)

            def work() -> None:
                loop.run(steps)
                tracker.close()

            return timed(work, steps)

        def shown(tracked: Any = tracked) -> float:
            with tempfile.TemporaryDirectory() as logdir:
                return tracked(writer=f"{logdir}/run")

        # two snapshots do not fit
        held = sum(p.nbytes for p in loop.model.parameters())

        def shortest(tracked: Any = tracked, held: int = held) -> float:
            return tracked(max_bytes=2 * held - 1)

        seconds = interleaved(
            {"bare": bare, "tracked": tracked, "shown": shown, "in the hook": shortest},
            1 if options.smoke else 9,
        )
        count = len(tl.track(loop.model, loop.optimizer, loop.statistics).names)
        numbers = sum(p.numel() for p in loop.model.parameters())
        what = f"`tl.track`, {make.__name__}, {numbers:,} parameters, {count} statistics a step"
        for name in ("tracked", "shown", "in the hook"):
            yield Row(f"{what}, {name}", "step", seconds[name], floor=seconds["bare"],
                      note="floor: the bare loop")  # fmt: skip
        del loop
        tidy(options)


# --- ensemble --------------------------------------------------------------------------------


def tidy(options: Options) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if options.device != "cpu":
        torch.cuda.empty_cache()


def per_call(options: Options, work: Callable[[], object], least: float = 0.02) -> float:
    """Seconds per call, of enough calls in a row to take `least`; in a graph on CUDA."""
    call, times = work, 1
    if options.device != "cpu":
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        call = graph.replay
    once = timed(call)
    times = max(1, min(1000, math.ceil(least / max(once, 1e-7))))
    return timed(lambda: [call() for _ in range(times)], times)


def ways_on(options: Options) -> list[str]:
    """The ways to train that the device has."""
    return [way for way in WAYS if options.device != "cpu" or way == "captured"]


def copy_speed(options: Options) -> float:
    """Bytes per second that a large copy reads and writes."""
    size = 2**20 if options.smoke else 2**31
    source = torch.randint(255, (size,), dtype=torch.uint8, device=options.device)
    target = torch.empty_like(source)
    return 2 * size / min(per_call(options, lambda: target.copy_(source)) for _ in range(3))


class Stepping:
    """The steps of `tl.train`, taken in one of the ways, without its start and end."""

    def __init__(self, way: str, problem: Any, runs: int, options: Options) -> None:
        ensemble = Ensemble(problem, 1, 0, _checks.device(options.device), None)
        ensemble.on_cpu = False  # on the CPU, for rehearsal, what CUDA does
        ensemble.lanes = 1
        model = ensemble.model(range(runs))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=1 / problem.dim, weight_decay=problem.ridge, fused=True
        )
        tracker = tl.track(model, optimizer, problem.statistics.of_runs(runs), every=10**9)
        self.training = ensemble.training(
            model,
            optimizer,
            tracker,
            range(runs),
            WAYS[way],
            ensemble.data(range(runs)) if ensemble.on_cpu else None,
        )
        self.model = model
        self.unit = 64 if way == "kernel" else 1
        self.take(max(self.unit, 8))

    def take(self, steps: int) -> None:
        """Take this many steps."""
        for _ in itertools.islice(self.training, steps):
            pass

    def timed(self, least: float) -> float:
        """Seconds per step, of enough steps to take `least`."""
        once = timed(lambda: self.take(self.unit), self.unit)
        units = max(1, min(2000, math.ceil(least / (once * self.unit))))
        steps = units * self.unit
        return timed(lambda: self.take(steps), steps)

    def close(self) -> None:
        """Let go of the graph and the memory."""
        self.training.close()


def eager(problem: Any, runs: int, options: Options, least: float) -> Callable[[], float]:
    """A plain loop over replicas in one module."""
    training = Training(problem, (runs,), options.device)
    list(training.steps(5))

    def measured() -> float:
        once = timed(lambda: list(training.steps(1)))
        steps = max(1, min(2000, math.ceil(least / once)))
        return timed(lambda: list(training.steps(steps)), steps)

    return measured


def sizes(options: Options) -> Iterator[tuple[int, int]]:
    """N and R, the most useful first."""
    if options.smoke:
        yield 20, 3
        return
    first = [(1000, 1000), (1000, 10_000), (1000, 100_000), (1000, 1), (1000, 100), (1000, 10)]
    yield from first
    yield from itertools.product((250, 10_000), (1000, 10_000, 1, 100, 100_000))


def ensemble(options: Options, report: Report) -> Iterator[Finding]:
    """A step of all runs, in every way, beside the larger floor."""
    speed = copy_speed(options)
    yield Note("copy of 2 GiB", f"{speed / 1e12:.2f} TB/s read and written")
    for dim, runs in sizes(options):
        if report.late:
            return
        normals = per_call(options, torch.empty(runs, dim, device=options.device).normal_)
        # parameters and data, read and written
        traffic = 4 * 2 * runs * (4 * dim + 4 + dim) / speed
        ways = ["eager", *ways_on(options)]
        # the largest do not fit beside each other
        together = [[way] for way in ways] if runs * dim >= 10**9 else [ways]
        seconds: dict[str, list[float]] = {}
        for some in together:
            try:
                seconds |= side_by_side(some, dim, runs, options)
            except Exception:
                report.failed(f"{', '.join(some)}, N = {dim}, R = {runs}")
            tidy(options)
        plain = seconds.pop("eager", None)
        for way, own in seconds.items():
            floor = [max(normals, traffic)] * len(own)
            rate = runs / sorted(own)[len(own) // 2]
            note = (
                f"plain: eager loop over replicas; floors: normals {normals * 1e6:.2f} us, traffic "
                f"{traffic * 1e6:.2f} us; {rate:.3g} replica-steps/s"
            )
            yield Row(f"`tl.train`, {way}, N = {dim}, R = {runs}", "step", own, plain, floor, note)
    yield from whole_training(options)
    if options.device != "cpu":
        yield from tuned(options, report)


def side_by_side(ways: list[str], dim: int, runs: int, options: Options) -> dict[str, list[float]]:
    """Seconds per step in each of the ways, in interleaved rounds."""
    problem = tl.GaussianMixture.xor(dim, 4, snr=4.0, ridge=0.05, device=options.device)
    least = 0.01 if options.smoke else 0.05
    with ExitStack() as stack:
        contenders: dict[str, Callable[[], float]] = {}
        for way in ways:
            if way == "eager":
                contenders[way] = eager(problem, runs, options, least)
            else:
                stepping = stack.enter_context(closing(Stepping(way, problem, runs, options)))
                contenders[way] = partial(stepping.timed, least)
        return interleaved(contenders, 1 if options.smoke else 3)


def tuned(options: Options, report: Report) -> Iterator[Finding]:
    """The kernel with more and fewer warps than it takes by itself."""
    from torchlimits.problems.mixture.kernel import MixtureSGD

    warps = {250: (1, 2), 1000: (2, 4, 8), 10_000: (8, 16, 32)}
    for dim, runs in ((1000, 10_000), (250, 10_000), (10_000, 1000), (10_000, 10_000)):
        if report.late:
            return
        problem = tl.GaussianMixture.xor(dim, 4, snr=4.0, ridge=0.05, device=options.device)
        model = problem.model(replicas=(runs,))
        optimizer = torch.optim.SGD(model.parameters(), lr=1 / dim)
        texts: list[str] = []
        for count in warps[dim]:
            kernel = MixtureSGD(
                problem.components, model, optimizer, batch_size=1, seed=1, warps=count
            )
            kernel.advance(64)
            took = sorted(timed(partial(kernel.advance, 64), 64) for _ in range(3))[1]
            texts.append(f"{count}: {took * 1e6:.2f}")
        yield Note(f"kernel, N = {dim}, R = {runs}, us a step by warps", "; ".join(texts))
        tidy(options)


def whole_training(options: Options) -> Iterator[Finding]:
    """`tl.train` from start to end, everything recorded, in every way."""
    dim, runs = (20, 3) if options.smoke else (1000, 1000)
    problem = tl.GaussianMixture.xor(dim, 4, snr=4.0, ridge=0.05)
    limit = 0.5 if options.smoke else 20.0

    def train(way: str) -> Callable[[], float]:
        def work() -> float:
            return timed(lambda: tl.train(
                problem, step_size=1.0, time=limit, runs=runs, device=options.device,
                progress=False, compiled=WAYS[way],
            ), limit * dim)  # fmt: skip

        return work

    seconds = interleaved({way: train(way) for way in ways_on(options)}, 1 if options.smoke else 3)
    for way, own in seconds.items():
        yield Row(f"whole `tl.train`, {way}, N = {dim}, R = {runs}", "step", own,
                  note=f"recorded every {max(1, int(limit * dim) // 1000)} steps")  # fmt: skip


# --- theory ----------------------------------------------------------------------------------


def theory(options: Options, report: Report) -> Iterator[Finding]:
    """Chain, solver, basins and estimates beside the CPU: times, and what differs."""
    for part in (chain, solved, followed, estimated):
        if report.late:
            return
        try:
            yield part(options)
        except Exception:
            report.failed(part.__name__)
        tidy(options)


def beside_cpu(
    what: str, unit: str, work: Callable[[str, int], Tensor], sizes: dict[str, int],
    options: Options, difference: Callable[[Tensor, Tensor], str],
) -> Row:  # fmt: skip
    """The same work on both, in sizes that each takes in a second."""
    kept: dict[str, Tensor] = {}

    def on(device: str) -> Callable[[], float]:
        def run() -> float:
            def keep() -> None:
                kept[device] = work(device, sizes[device]).cpu()

            return timed(keep, sizes[device])

        return run

    seconds = interleaved(
        {"ours": on(options.device), "plain": on("cpu")} if options.device != "cpu"
        else {"ours": on("cpu")}, 1,
    )  # fmt: skip
    note = difference(kept[options.device], kept["cpu"])
    return Row(what, unit, seconds["ours"], seconds.get("plain"),
               note=f"plain: the CPU, {sizes['cpu']:,}; {note}")  # fmt: skip


def chain(options: Options) -> Row:
    """Paths of the reduced chain."""
    problem = tl.GaussianMixture.xor(100 if options.smoke else 1000, 4, snr=4.0, ridge=0.05)
    reduced = problem.reduced_chain(step_size=1.0)
    u0 = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    steps = 4 if options.smoke else 200

    def work(device: str, runs: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(1)
        return reduced.run(
            u0.to(device), steps, runs=runs, every=steps, generator=generator
        ).values[:, -1]

    def difference(a: Tensor, b: Tensor) -> str:
        a, b = a.double(), b.double()
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        return (
            f"means differ by at most {float(((a.mean(0) - b.mean(0)) / error).abs().max()):.1f} sd"
        )

    few, many = (10, 10) if options.smoke else (2000, 10**5)
    sizes = {"cpu": few, options.device: many}
    return beside_cpu(
        f"`reduced_chain`, {many:,} runs, {steps} steps", "run", work, sizes, options, difference
    )


def largest(a: Tensor, b: Tensor) -> str:
    """Compare the entries that both computed."""
    both = min(len(a), len(b))
    return f"results differ by at most {float((a[:both] - b[:both]).abs().max()):.1e}"


def solved(options: Options) -> Row:
    """The ODE from many starts."""
    problem = tl.GaussianMixture.binary(1000, snr=100.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0)
    few, many = (3, 3) if options.smoke else (1000, 10**5)
    u0 = problem.starts(many, generator=torch.Generator().manual_seed(0))

    def work(device: str, count: int) -> Tensor:
        return dynamics.solve(u0[:count].to(device), [0.0, 0.5 if options.smoke else 5.0]).final

    sizes = {"cpu": few, options.device: many}
    return beside_cpu(
        f"`dynamics.solve`, binary, {many:,} starts", "start", work, sizes, options, largest
    )


def followed(options: Options) -> Row:
    """Basins of XOR."""
    problem = tl.GaussianMixture.xor(1000, snr=100.0, ridge=0.1)
    dynamics = problem.dynamics(step_size=1.0, level=-3)
    few, many = (2, 2) if options.smoke else (32, 4096)
    u0 = problem.starts(many, generator=torch.Generator().manual_seed(0))

    def work(device: str, count: int) -> Tensor:
        limit = 0.1 if options.smoke else 100.0
        return tl.basins(dynamics, u0[:count].to(device), time=limit).classes

    def difference(a: Tensor, b: Tensor) -> str:
        both = min(len(a), len(b))
        return f"{int((a[:both] == b[:both]).all(-1).sum())} of {both} starts in the same class"

    sizes = {"cpu": few, options.device: many}
    return beside_cpu(
        f"`tl.basins`, XOR, K = 4, {many:,} starts", "start", work, sizes, options, difference
    )


def estimated(options: Options) -> Row:
    """Drift, corrector and diffusion from the same samples."""
    dim = 60 if options.smoke else 1000
    few, many = (64, 64) if options.smoke else (4096, 4096)
    problem = tl.GaussianMixture.xor(dim, 4, snr=4.0, ridge=0.05)
    model = problem.model(generator=torch.Generator().manual_seed(0))
    x, y = problem.sample(many, generator=torch.Generator().manual_seed(1))

    def work(device: str, count: int) -> Tensor:
        own = problem.model(device=device)
        own.load_state_dict(model.state_dict())
        data, position = (x.to(device), y.to(device)), 0

        def sampler(batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
            nonlocal position
            here = slice(position, position := position + batch)
            return data[0][here], data[1][here]

        found = tl.estimate(
            own, problem.loss, sampler, problem.statistics, step_size=1 / dim, samples=count,
            weight_decay=problem.ridge,
        )  # fmt: skip
        return torch.stack([found.drift.value, found.corrector.value])

    sizes = {"cpu": few, options.device: many}
    return beside_cpu(
        f"`tl.estimate`, N = {dim}, {many} samples", "sample", work, sizes, options, largest
    )


# --- memory ----------------------------------------------------------------------------------


def memory(options: Options, report: Report) -> Iterator[Finding]:
    """Peak memory of `tl.train` beside what must be held: parameters, gradients, data, ring."""
    dim, runs = (20, 3) if options.smoke else (1000, 10_000)
    problem = tl.GaussianMixture.xor(dim, 4, snr=4.0, ridge=0.05)
    for way in ways_on(options):
        tidy(options)
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        tl.train(problem, step_size=1.0, time=20 / dim, runs=runs, device=options.device, every=10,
                 progress=False, compiled=WAYS[way])  # fmt: skip
        needed = 4 * runs * ((8 * dim + 8) + dim)
        peak = 0 if options.device == "cpu" else torch.cuda.max_memory_allocated()
        yield Note(
            f"peak memory, {way}, N = {dim}, R = {runs}",
            f"{peak / 2**20:.0f} MiB; parameters, gradients and data: {needed / 2**20:.0f} MiB",
        )


def main(options: Options) -> int:
    """Everything asked for; 1 if something failed."""
    report = Report(options)
    work: dict[str, Any] = dict(
        zip(PARTS, (correctness, tracking, ensemble, theory, memory), strict=True)
    )
    part: Any
    for part in options.parts:
        begin = time.monotonic()
        if report.late:
            report.add(part, Note(part, "left out: no time"))
            continue
        try:
            for finding in work[part](options, report):
                report.add(part, finding)
        except Exception:
            report.failed(part)
        tidy(options)
        report.add(part, Note(part, f"all in {time.monotonic() - begin:.0f} s"))
    return 1 if report.failures else 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))

"""What tl.estimate costs, beside a loop of backward calls and one forward + backward.

    python scripts/bench_estimate.py

XOR mixture, N=1000, K=4, 22 statistics, 4096 samples, on the CPU: f, g, Sigma, the mean and the
covariance of whole steps. Same data for all; the loop computes the same sums (of fewer samples, and
its time is scaled up), and the largest difference to it is shown in float64. Contenders are
interleaved and each ratio is taken within one round; the table shows medians and quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import torchlimits as tl


@dataclass
class Options:
    """How much to measure."""

    samples: int = 4096
    looped: int = 64
    """samples of the loops, which are slow"""
    rounds: int = 15
    dim: int = 1000
    width: int = 4
    threads: int | None = None
    """torch threads; by default torch's choice"""


class Data:
    """The same samples in every call, in order."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.position = x, y, 0

    def __call__(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next ones."""
        here = slice(self.position, self.position + batch)
        self.position += batch
        return self.x[here], self.y[here]


def estimated(
    problem: tl.GaussianMixture, model: torch.nn.Module, data: Data, samples: int, *, ready: bool
) -> tl.Estimate:
    """By the package; with statistics that know their derivatives, or plain functions."""
    chosen = problem.statistics
    if not ready:
        functions = {n: (lambda p, f=f: f(p)) for n, f in chosen.functions.items()}
        chosen = tl.SummaryStatistics(functions, symmetric=["R"])
    data.position = 0
    return tl.estimate(
        model, problem.loss, data, chosen, step_size=1 / problem.dim, samples=samples,
        weight_decay=problem.ridge,
    )  # fmt: skip


def loop(
    problem: tl.GaussianMixture, model: torch.nn.Module, data: Data, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """-f, g and Sigma by backward calls, one sample at a time, and Hessian-vector products."""
    delta = 1 / problem.dim
    parameters = dict(model.named_parameters())
    leaves: list[Tensor] = list(parameters.values())
    u = problem.statistics(parameters)
    jacobian = [torch.autograd.grad(x, leaves, retain_graph=True, create_graph=True) for x in u]
    rows = [torch.cat([g.flatten() for g in row]) for row in jacobian]
    gradients, forms = [], []
    for s in range(samples):
        loss = problem.loss(model(data.x[s : s + 1]), data.y[s : s + 1])
        g = torch.cat([x.flatten() for x in torch.autograd.grad(loss, leaves)])
        gradients.append(g)
        forms.append(quadratic_forms(rows, leaves, g))
    G = torch.stack(gradients).double()
    mean = G.mean(0)
    excess = quadratic_forms(rows, leaves, mean.to(rows[0])).double()
    corrector = delta / 2 * (torch.stack(forms).double().sum(0) - samples * excess) / (samples - 1)
    J = torch.stack(rows).detach().double()
    x = torch.cat([p.detach().flatten() for p in leaves]).double()
    return -(J @ (mean + problem.ridge * x)), corrector, delta * torch.cov(J @ G.mT)


def backward_calls(
    problem: tl.GaussianMixture, model: torch.nn.Module, data: Data, samples: int
) -> None:
    """The loop's backward calls alone: gradients, and nothing made of them."""
    for s in range(samples):
        model.zero_grad()
        problem.loss(model(data.x[s : s + 1]), data.y[s : s + 1]).backward()


def quadratic_forms(rows: list[Tensor], leaves: list[Tensor], g: Tensor) -> Tensor:
    """g^T (grad^2 u_i) g for every i: derivatives of <grad u_i, g>."""
    forms = []
    for row in rows:
        if not row.requires_grad:
            forms.append(torch.zeros_like(g[0]))
            continue
        parts = torch.autograd.grad(
            row @ g, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        forms.append(torch.cat([p.flatten() for p in parts]) @ g)
    return torch.stack(forms)


def differences(options: Options) -> float:
    """The largest difference to the loop, relative to the largest value, in float64."""
    problem, model, data = setting(options, torch.float64)
    ours = estimated(problem, model, data, options.looped, ready=True)
    theirs = loop(problem, model, data, options.looped)
    pairs = zip((ours.drift, ours.corrector, ours.diffusion), theirs, strict=True)
    return max(float((a.value - b).abs().max() / b.abs().max()) for a, b in pairs)


def setting(
    options: Options, dtype: torch.dtype
) -> tuple[tl.GaussianMixture, torch.nn.Module, Data]:
    """The problem, a network, and data."""
    problem = tl.GaussianMixture.xor(options.dim, options.width, snr=4.0, ridge=0.05, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    model = problem.model(generator=generator)
    return problem, model, Data(*problem.sample(options.samples, generator=generator))


def main(options: Options) -> None:
    """Measure and print."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    problem, model, data = setting(options, torch.float32)

    def forward_backward() -> None:
        model.zero_grad()
        problem.loss(model(data.x), data.y).backward()

    contenders: dict[str, tuple[Callable[[], object], float]] = {
        "forward + backward of the batch": (forward_backward, 1.0),
        "tl.estimate": (
            lambda: estimated(problem, model, data, options.samples, ready=True),
            1.0,
        ),
        "the same, statistics as plain functions": (
            lambda: estimated(problem, model, data, options.samples, ready=False),
            1.0,
        ),
        "backward calls of the loop alone": (
            lambda: backward_calls(problem, model, data, options.looped),
            options.samples / options.looped,
        ),
        "loop of backward calls": (
            lambda: loop(problem, model, data, options.looped),
            options.samples / options.looped,
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(options.rounds + 1):
        for name, (run, factor) in contenders.items():
            begin = time.perf_counter()
            run()
            if round_:  # the first round warms up
                seconds[name].append(factor * (time.perf_counter() - begin))
    first, second, *_ = seconds
    table = Table(title=f"{options.samples} samples, {len(problem.names)} statistics")
    for column in ("", "ms", "over fwd + bwd", "quartiles", "over estimate"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, times in seconds.items():
        over = [a / b for a, b in zip(times, seconds[first], strict=True)]
        ours = [a / b for a, b in zip(times, seconds[second], strict=True)]
        low, middle, high = statistics.quantiles(over, n=4)
        table.add_row(
            name, f"{1e3 * statistics.median(times):.1f}", f"{middle:.2f}",
            f"{low:.2f} ... {high:.2f}", f"{statistics.median(ours):.1f}",
        )  # fmt: skip
    console = Console(width=120)
    console.print(table)
    console.print(f"largest relative difference to the loop, float64: {differences(options):.1e}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))

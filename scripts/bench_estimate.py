"""What tl.estimate costs, beside a loop of backward calls and one forward + backward.

    python scripts/bench_estimate.py

XOR mixture, all statistics: f, g, Sigma, the mean and the covariance of whole steps, on the same
data for all. Plain is a loop over the samples that computes the same sums, Hessian-vector products
included (on fewer samples, its time scaled up), and then its backward calls alone. The floor is one
forward + backward of the batch. The largest difference from the loop is shown in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, interleaved, main, timed
from torch import Tensor

import torchlimits as tl


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    samples: int = 4096
    looped: int = 64
    """samples of the loops, which are slow"""
    dim: int = 1000
    width: int = 4


SMOKE = Options(samples=64, looped=2, dim=60, rounds=2)


class Case:
    """A problem, a network, and the same samples for everyone."""

    def __init__(self, options: Options, dtype: torch.dtype) -> None:
        self.problem = tl.GaussianMixture.xor(
            options.dim, options.width, snr=4.0, ridge=0.05, dtype=dtype
        )
        generator = torch.Generator().manual_seed(0)
        self.model = self.problem.model(generator=generator)
        self.x, self.y = self.problem.sample(options.samples, generator=generator)

    def loss(self, first: int, end: int) -> Tensor:
        """The mean over some samples."""
        return self.problem.loss(self.model(self.x[first:end]), self.y[first:end])

    def estimate(self, samples: int, *, ready: bool) -> tl.Estimate:
        """Estimate by the package; statistics know their derivatives or are plain functions."""
        chosen, position = self.problem.statistics, 0
        if not ready:
            functions = {n: (lambda p, f=f: f(p)) for n, f in chosen.functions.items()}
            chosen = tl.SummaryStatistics(functions, symmetric=["R"])

        def sampler(batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
            nonlocal position
            here = slice(position, position := position + batch)
            return self.x[here], self.y[here]

        return tl.estimate(
            self.model, self.problem.loss, sampler, chosen, step_size=1 / self.problem.dim,
            samples=samples, weight_decay=self.problem.ridge,
        )  # fmt: skip

    def loop(self, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """-f, g and Sigma by backward calls, a sample at a time, and Hessian-vector products."""
        delta = 1 / self.problem.dim
        parameters = dict(self.model.named_parameters())
        leaves: list[Tensor] = list(parameters.values())
        u = self.problem.statistics(parameters)
        jacobian = [torch.autograd.grad(x, leaves, retain_graph=True, create_graph=True) for x in u]
        rows = [flat(row) for row in jacobian]
        gradients, forms = [], []
        for s in range(samples):
            g = flat(torch.autograd.grad(self.loss(s, s + 1), leaves))
            gradients.append(g)
            forms.append(quadratic_forms(rows, leaves, g))
        G = torch.stack(gradients).double()
        mean = G.mean(0)
        excess = quadratic_forms(rows, leaves, mean.to(rows[0])).double()
        total = torch.stack(forms).double().sum(0) - samples * excess
        J = torch.stack(rows).detach().double()
        x = flat(leaves).detach().double()
        drift = -(J @ (mean + self.problem.ridge * x))
        return drift, delta / 2 * total / (samples - 1), delta * torch.cov(J @ G.mT)

    def backward_calls(self, samples: int) -> None:
        """The loop's backward calls alone: gradients, and nothing made of them."""
        for s in range(samples):
            self.model.zero_grad()
            self.loss(s, s + 1).backward()

    def forward_backward(self) -> None:
        """Gradients of the whole batch."""
        self.model.zero_grad()
        self.loss(0, len(self.x)).backward()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors in one vector."""
    return torch.cat([x.flatten() for x in tensors])


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
        forms.append(flat(parts) @ g)
    return torch.stack(forms)


def difference(options: Options) -> float:
    """The largest difference from the loop, relative to the largest value, in float64."""
    case = Case(options, torch.float64)
    ours, theirs = case.estimate(options.looped, ready=True), case.loop(options.looped)
    pairs = zip((ours.drift, ours.corrector, ours.diffusion), theirs, strict=True)
    return max(float((a.value - b).abs().max() / b.abs().max()) for a, b in pairs)


def measure(options: Options) -> list[Row]:
    """Statistics that know their derivatives beside both loops, and plain functions."""
    case, looped = Case(options, torch.float32), options.looped
    part = looped / options.samples
    contenders = {
        "ours": lambda: timed(lambda: case.estimate(options.samples, ready=True)),
        "functions": lambda: timed(lambda: case.estimate(options.samples, ready=False)),
        "loop": lambda: timed(lambda: case.loop(looped), part),
        "backward calls": lambda: timed(lambda: case.backward_calls(looped), part),
        "floor": lambda: timed(case.forward_backward),
    }
    seconds = interleaved(contenders, options.rounds)
    what = f"`tl.estimate`, N = {options.dim}, {options.samples} samples"
    loop = "loop over samples, Hessian-vector products"
    rows = (
        (what, "ours", "loop", f"{loop} (differs by {difference(options):.0e} in float64)"),
        (what, "ours", "backward calls", "backward calls of that loop alone"),
        (f"{what}, statistics plain functions", "functions", "loop", loop),
    )
    return [
        Row(label, "estimate", seconds[ours], seconds[plain], seconds["floor"],
            f"plain: {note}; floor: forward + backward of the batch")
        for label, ours, plain, note in rows
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure, Options, __doc__)

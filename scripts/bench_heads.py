"""What the effective dynamics of a network with any head cost.

    python scripts/bench_heads.py

K = 4, a head of GELU, Linear(4, 5), tanh, Linear(5, 3), 2^12 nodes for each component. Plain is the
right-hand side by the gradients of single samples (vmap of torch.func.grad), the obvious way. The
floor is one forward and backward pass of the head at the same nodes, without the integrals. A
solution goes to t = 10 at 50 times, without and with its band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, alone, interleaved, main
from torch import nn

import torchlimits as tl
from torchlimits.problems.network.dynamics import NetworkDynamics


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    nodes: int = 2**12
    time: float = 10.0
    repeats: int = 20
    """right-hand sides in one round"""


SMOKE = Options(rounds=1, nodes=64, time=0.1, repeats=1)


def problem_of(components: int) -> tl.NetworkProblem:
    """A problem with a class for each component, or one class of three."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.GELU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return tl.NetworkProblem(
        dim=1000, width=4, head=head, loss=nn.functional.cross_entropy,
        means=torch.eye(3, 1000)[:components], labels=torch.arange(components), snr=4.0,
    )  # fmt: skip


def naive(dynamics: NetworkDynamics, u: torch.Tensor) -> Callable[[], object]:
    """The averages by the gradients of single samples."""
    field = dynamics.network
    theta, b, m, R = (x[None] for x in dynamics.split(u))
    F = field.law(b, m, R).loadings[0]
    psi, weight = field.integrals.nodes(u)
    targets, _ = field.integrals.targets(u)

    def averages() -> object:
        h = psi @ F.mT
        by_theta, g = field.setting.sample_gradients(theta[0], h, targets[:, 0])
        weighted = weight[:, None] * g
        return weight @ by_theta, weighted.mT @ psi, weighted.mT @ g

    return averages


def one_pass(dynamics: NetworkDynamics, u: torch.Tensor) -> Callable[[], object]:
    """Forward and backward of the head at the nodes."""
    field = dynamics.network
    _, b, m, R = (x[None] for x in dynamics.split(u))
    psi, _ = field.integrals.nodes(u)
    h = (psi @ field.law(b, m, R).loadings[0].mT).requires_grad_()
    network = problem_of(1).template
    head, (targets, _) = network.get_submodule("head").double(), field.integrals.targets(u)

    def run() -> object:
        loss = nn.functional.cross_entropy(head(h), targets[:, 0])
        return torch.autograd.grad(loss, (h, *head.parameters()))

    return run


def measure(options: Options) -> list[Row]:
    """Right-hand sides, and solutions."""
    rows: list[Row] = []
    for components in (1, 3):
        problem = problem_of(components)
        dynamics = problem.dynamics(step_size=1.0, nodes=options.nodes)
        u = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
        times = torch.linspace(0, options.time, 50)
        works: dict[str, tuple[Callable[[], object], int]] = {
            "ours": (lambda d=dynamics, u=u: d(0.0, u), options.repeats),
            "naive": (naive(dynamics, u), options.repeats),
            "pass": (one_pass(dynamics, u), options.repeats),
        }
        if components == 3:
            works |= {
                "solution": (lambda d=dynamics, u=u, t=times: d.solve(u, t), 1),
                "band": (lambda d=dynamics, u=u, t=times: d.solve(u, t, band=True), 1),
            }
        seconds = interleaved(
            {name: lambda w=work, n=n: alone(w, n) for name, (work, n) in works.items()},
            options.rounds,
        )
        size = f"K = 4, {options.nodes} nodes, {components} component{'s'[: components - 1]}"
        rows.append(
            Row(f"any head, {size}", "right-hand side", seconds["ours"], seconds["naive"],
                seconds["pass"], "plain: gradients of single samples; floor: one pass of the head")
        )  # fmt: skip
        rows += [
            Row(f"any head, {what}, 69 statistics", "solution", seconds[name], None, None,
                f"{size}, t = {options.time:g}, 50 times")
            for name, what in (("solution", "solve"), ("band", "solve(band=True)"))
            if name in seconds
        ]  # fmt: skip
    return rows


if __name__ == "__main__":
    main(measure, Options, __doc__)

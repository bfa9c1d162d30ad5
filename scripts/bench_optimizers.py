"""What second moments cost: the right-hand side of Adam beside that of SGD.

    python scripts/bench_optimizers.py

Three heads, one start and 16 at once. Plain is Adam's right-hand side with the squared gradients
of the head by the gradients of single samples (vmap of torch.func.grad), in a pass of their own, as
it is for heads that have parameters outside linear layers. The floor is the right-hand side of
plain SGD at the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import benchmark
import torch
from benchmark import Row, alone, interleaved, main
from torch import nn

import torchlimits as tl


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    nodes: int = 2**12
    starts: tuple[int, ...] = (1, 16)
    repeats: int = 10
    """right-hand sides in one round, of one start; fewer of many"""


SMOKE = Options(rounds=1, nodes=64, starts=(1, 2), repeats=1)


def regression() -> tl.NetworkProblem:
    """Two neurons, tanh, one output."""
    head = nn.Sequential(nn.Tanh(), nn.Linear(2, 1))
    return tl.NetworkProblem(
        dim=1000, width=2, head=head, loss=nn.functional.mse_loss, snr=4.0,
        means=torch.linalg.qr(torch.randn(1000, 2).sign())[0].mT, labels=torch.tensor([1.0, -1.0]),
    )  # fmt: skip


def classes(width: int, head: nn.Module) -> tl.NetworkProblem:
    """A class for each of three components."""
    return tl.NetworkProblem(
        dim=1000, width=width, head=head, loss=nn.functional.cross_entropy, snr=4.0,
        means=torch.linalg.qr(torch.randn(1000, 3).sign())[0].mT, labels=torch.arange(3),
    )  # fmt: skip


def problems() -> dict[str, tl.NetworkProblem]:
    """The networks, by what the table calls them."""
    torch.manual_seed(0)
    deep = nn.Sequential(nn.GELU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return {
        "tanh, Linear(2, 1), K = 2": regression(),
        "GELU, Linear(3, 3), K = 3": classes(3, nn.Sequential(nn.GELU(), nn.Linear(3, 3))),
        "GELU, Linear(4, 5), tanh, Linear(5, 3), K = 4": classes(4, deep),
    }


def measure(options: Options) -> list[Row]:
    """A row for each network and number of starts."""
    rows: list[Row] = []
    for name, problem in problems().items():
        parameters = list(problem.model().parameters())
        sgd, adam, plain = (
            problem.dynamics(make(parameters, lr=1e-3), nodes=options.nodes)
            for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adam)
        )
        vars(plain.network.integrals.layers)["complete"] = False  # as if it had other layers
        for starts in options.starts:
            u = problem.starts(starts, generator=torch.Generator().manual_seed(0))
            whole = adam.started(u)
            repeats = max(1, options.repeats // starts)
            works: dict[str, Callable[[], object]] = {
                "ours": lambda d=adam, u=whole: d(0.0, u),
                "plain": lambda d=plain, u=whole: d(0.0, u),
                "floor": lambda d=sgd, u=u: d(0.0, u),
            }
            seconds = interleaved(
                {key: lambda w=work, n=repeats: alone(w, n) for key, work in works.items()},
                options.rounds,
            )
            what = f"Adam, {name}, {starts} start{'s'[: starts - 1]}"
            note = "plain: single samples; floor: SGD"
            rows.append(Row(what, "right-hand side", **seconds, note=note))
    return rows


if __name__ == "__main__":
    main(measure, Options, __doc__)

"""Train a small convolution, and see what drift and corrector leave unexplained.

    python scripts/reach_probe.py --out scripts/reach_probe.json

Runs of plain SGD, of SGD with momentum and of Adam are each decomposed by `tl.Probe`: the change
of the squared norm of the filters, and the mean over runs of what neither drift nor corrector
explains, beside its error. It has to be within 3 of them. What must fail: the corrector left out;
with momentum, the statistic at the parameters in place of the slow variable; with Adam, also
steps that all have the weight of a late one. The script ends with an error if a residual is not
within 3 of its errors, or one that must fail is within 4.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import reach
import torch
from torch import Tensor, nn

import torchlimits as tl

#: parameters -> optimizer, and the steps of a run
PARTS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int]] = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.03), 30),
    "momentum 0.9": (lambda p: torch.optim.SGD(p, lr=0.003, momentum=0.9), 30),
    "Adam": (lambda p: torch.optim.Adam(p, lr=1e-3), 100),
    "Adam, beta1 = 0.97": (lambda p: torch.optim.Adam(p, lr=5e-4, betas=(0.97, 0.999)), 120),
    "AdamW": (lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1), 100),
}
LOSS = nn.functional.cross_entropy


def convolution(seed: int) -> nn.Module:
    """Eight filters, and a linear layer on all that they see."""
    torch.manual_seed(seed)
    filters = nn.Conv2d(3, 8, 5)
    with torch.no_grad():
        filters.weight.mul_(0.2)
    return nn.Sequential(filters, nn.Tanh(), nn.Flatten(), nn.Linear(128, 2))


def images(count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Noise around the mean of one of two classes."""
    label = torch.randint(2, (count,), generator=generator)
    means = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return 0.3 * means[label] + torch.randn(count, 3, 8, 8, generator=generator), label


def explained(make: Callable[[Any], torch.optim.Optimizer], steps: int, run: int) -> Tensor:
    """Change, corrector, residual and the residual's standard deviation in one run."""
    model, data = convolution(run), torch.Generator().manual_seed(100 + run)
    optimizer = make(model.parameters())
    statistics = {"filters": lambda p: p["0.weight"].square().sum()}
    probe = tl.Probe(LOSS, images, every=max(5, steps // 12), samples=48, seed=1000 * run)
    with tl.track(model, optimizer, statistics, probe=probe) as tracker:
        for _ in range(steps):
            x, y = images(1, data)
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
    parts = tracker.explanation()
    assert parts.residual.std is not None
    found = (parts.change.final, parts.corrector.final, parts.residual.final)
    return torch.stack([*(x[0] for x in found), parts.residual.std[-1, 0]])


def left(make: Callable[[Any], torch.optim.Optimizer], steps: int, runs: int) -> dict[str, float]:
    """What is left unexplained on average, in itself and over its error."""
    found = torch.stack([explained(make, steps, run) for run in range(runs)])
    change, corrector, residual, _ = found.mean(0).tolist()
    error = float(found[:, 3].square().sum().sqrt()) / runs
    return {
        "change": round(change, 4), "corrector": round(corrector, 4),
        "residual": round(residual, 4), "error": round(error, 4),
        "residual over error": round(residual / error, 2),
        "the same without corrector": round((residual + corrector) / error, 2),
    }  # fmt: skip


def figures_of(name: str, runs: int) -> dict[str, Any]:
    """What a part reports."""
    make, steps = PARTS[name]
    began = time.perf_counter()
    figures: dict[str, Any] = {"runs": runs, "steps": steps, **left(make, steps, runs)}
    if name != "SGD":
        place = "torchlimits.estimation.probe.slow_value"
        with patch(place, lambda p, group, state: p.detach()):
            figures["at the parameters"] = left(make, steps, runs)["residual over error"]
    if name.startswith("Adam"):
        with patch("torchlimits.estimation.moves.mean_weight", lambda beta, start, stop: 1.0):
            figures["all steps of weight 1"] = left(make, steps, runs)["residual over error"]
    figures["seconds"] = round(time.perf_counter() - began, 1)
    return figures


def holds(figures: dict[str, Any]) -> bool:
    """Whether what has to be small is, and what must fail fails."""
    wrong = ("the same without corrector", "at the parameters", "all steps of weight 1")
    fails = all(abs(figures[key]) > 4 for key in wrong if key in figures)
    return abs(figures["residual over error"]) < 3 and fails


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--runs", type=int, default=32)
    options = parser.parse_args()
    parts = {name: figures_of(name, options.runs) for name in PARTS}
    reach.keep(parts, options)
    failed = [name for name, figures in parts.items() if not holds(figures)]
    if failed:
        sys.exit(f"not as they have to be: {', '.join(failed)}")


if __name__ == "__main__":
    main()

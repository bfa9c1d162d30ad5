"""Train a network with two hidden layers behind its first one, and hold theory against it.

    python scripts/reach_heads.py --out scripts/reach_heads.json

Three classes of a Gaussian mixture with input-dependent label noise, N = 1000, biases, a head of
GELU, Linear(4, 5), tanh, Linear(5, 3): 100 runs of torch.optim.SGD from one start, with weight
decay and twice the learning rate on W. Beside them are the effective dynamics with their band, and
without the corrector, which must fail. z is the mean over runs less the prediction, over the
standard error; ratios are the runs' standard deviations over the band's. Statistics that fluctuate
by less than a tenth of the median one have no ratio. The script ends with an error if rms z is
above 1.5, the rms ratio outside 0.95 to 1.05, or rms z of R without the corrector, which acts on R,
below 10.
"""

from __future__ import annotations

import argparse
import sys
import time

import reach
import torch
from torch import Tensor, nn

import torchlimits as tl


class Flips:
    """Labels of the component, replaced by the next class with a probability that x sets."""

    def law(self, x_parallel: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
        """Both classes, with their probabilities."""
        flip = 0.3 * torch.sigmoid(2 * x_parallel[:, 0] - 1)
        targets = torch.stack([component, (component + 1) % 3], -1)
        return targets, torch.stack([1 - flip, flip], -1)

    def sample(
        self, x_parallel: Tensor, component: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """One of the two classes for each sample."""
        targets, shares = self.law(x_parallel, component)
        uniform = torch.rand(
            len(shares), generator=generator, device=shares.device, dtype=shares.dtype
        )
        return torch.where(uniform < shares[:, 1], targets[:, 1], targets[:, 0])


def problem_of(dim: int) -> tl.NetworkProblem:
    """Three classes, three directions."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.GELU(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return tl.NetworkProblem(
        dim=dim, width=4, head=head, loss=nn.functional.cross_entropy, means=torch.eye(3, dim),
        labels=Flips(), snr=1.0, dtype=torch.float64,
    )  # fmt: skip


def optimizer_of(model: nn.Module, lr: float) -> torch.optim.SGD:
    """Twice the learning rate, and decay, on W; the clock is that of the other parameters."""
    named = dict(model.named_parameters())
    weight = named.pop("first.weight")
    groups = [
        {"params": list(named.values())},
        {"params": [weight], "lr": 2 * lr, "weight_decay": 0.02},
    ]
    return torch.optim.SGD(groups, lr=lr)


def runs_of(
    problem: tl.NetworkProblem, lr: float, steps: int, runs: int, every: int, seed: int
) -> tuple[tl.Trajectory, tl.EffectiveDynamics]:
    """Runs of torch.optim.SGD from one start, and what theory says of that optimizer."""
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(replicas=(runs,), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    optimizer = optimizer_of(model, lr)
    with tl.track(model, optimizer, problem.statistics, every=every) as tracker:
        for _ in range(steps):
            x, y = problem.sample(1, replicas=(runs,), generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
    return tracker.trajectory(), problem.dynamics(optimizer, model=model, nodes=2**13)


def z_of(measured: tl.Trajectory, predicted: tl.Trajectory) -> Tensor:
    """z of the means, at all recorded times after the start."""
    difference = (measured.values - predicted.values)[:, 1:]
    return difference.mean(0) / (difference.std(0) / len(difference) ** 0.5)


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return float(x.square().mean().sqrt())


def measured_against(options: argparse.Namespace) -> dict[str, object]:
    """The figures."""
    problem = problem_of(options.dim)
    lr = options.step_size / options.dim
    steps = round(options.time / lr)
    began = time.perf_counter()
    measured, dynamics = runs_of(problem, lr, steps, options.runs, steps // 20, seed=1)
    trained = time.perf_counter() - began
    start = measured.initial[0]
    began = time.perf_counter()
    predicted = dynamics.solve(start, measured.times, band=True)
    solved = time.perf_counter() - began
    without = dynamics.solve(start, measured.times, corrector=False)
    assert predicted.std is not None
    band = predicted.std[1:]
    wide = band > 0.1 * band.median()
    ratios = (measured.values[:, 1:].std(0) / band)[wide]
    grams = [i for i, name in enumerate(measured.names) if name.startswith("R")]
    return {
        "N": options.dim, "runs": options.runs, "c": options.step_size, "time": options.time,
        "statistics": len(measured.names),
        "largest difference of means": float(
            (measured.values.mean(0) - predicted.values).abs().max()
        ),
        "rms z": rms(z_of(measured, predicted)),
        "rms z of R": rms(z_of(measured, predicted)[:, grams]),
        "rms sd ratio": float(ratios.square().mean().sqrt()),
        "rms z without corrector": rms(z_of(measured, without)),
        "rms z of R without corrector": rms(z_of(measured, without)[:, grams]),
        "error of the nodes": dynamics.error,
        "seconds of training": round(trained, 1), "seconds of theory": round(solved, 1),
    }  # fmt: skip


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--dim", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--step-size", type=float, default=2.0)
    parser.add_argument("--time", type=float, default=6.0)
    options = parser.parse_args()
    figures = measured_against(options)
    reach.keep(figures, options)
    held = (
        float(str(figures["rms z"])) < 1.5
        and float(str(figures["rms z of R without corrector"])) > 10
    )
    held = held and abs(float(str(figures["rms sd ratio"])) - 1) < 0.05
    if not held:
        sys.exit("the prediction does not hold as it should")


if __name__ == "__main__":
    main()

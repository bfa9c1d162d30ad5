"""A user's program: what they write is type-checked in strict mode, and runs."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import torchlimits as tl


def norm(p: Mapping[str, Tensor]) -> Tensor:
    """Return the squared length of the weights."""
    return p["weight"].square().sum()


def main() -> None:
    """Track a short training, predict another one, and put the two side by side."""
    model = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tl.track(model, optimizer, {"r2": norm}) as tracker:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
    measured: tl.Trajectory = tracker.trajectory()
    values: Tensor = measured["r2"]
    assert len(measured) == 6, measured
    assert values.isfinite().all()
    problem = tl.GaussianMixture.binary(dim=50, width=2, snr=2.0)
    run: tl.Trajectory = tl.train(problem, step_size=1.0, time=0.1, runs=1, progress=False)
    dynamics: tl.EffectiveDynamics = problem.dynamics(step_size=1.0)
    predicted: tl.Trajectory = dynamics.solve(run.initial, run.times, band=True)
    table: str = str(tl.compare(run, predicted))
    assert "R[0,0]" in table
    place = Path(tl.__file__).resolve()
    assert place.is_relative_to(Path(sys.argv[1]).resolve()), f"expected the installed one: {place}"
    assert (place.parent / "py.typed").exists()


if __name__ == "__main__":
    main()

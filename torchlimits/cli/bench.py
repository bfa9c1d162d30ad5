"""``torchlimits bench``: what recording costs on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(kw_only=True)
class Bench:
    """Measure what tracking costs on this machine: a bare training loop beside a tracked one.

    Both train the XOR mixture at batch size 1 with one thread, and record 22 statistics at every
    step. They take turns, so that a machine that is slow for a while slows both.
    """

    dim: int = 1000
    """The dimension N of the data."""
    width: int = 4
    """The number of hidden units."""
    steps: int = 1000
    """The number of steps of each loop."""
    rounds: int = 9
    """The number of rounds, in each of which both loops run once."""

    def main(self) -> None:
        """Measure, and print one sentence for each number."""
        import numpy as np

        from torchlimits import _checks
        from torchlimits._threads import threads
        from torchlimits.cli.timing import interleaved

        for name in ("dim", "width", "steps", "rounds"):
            _checks.positive_int(name, getattr(self, name))
        with threads(1):
            seconds = interleaved({"bare": self._loop(False), "tracked": self._loop(True)},
                                  self.rounds)  # fmt: skip
        bare, tracked = (1e6 * float(np.median(seconds[name])) for name in ("bare", "tracked"))
        ratios = np.divide(seconds["tracked"], seconds["bare"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(
            f"A bare step takes {bare:.0f} µs and a tracked one {tracked:.0f} µs "
            f"(medians of {self.rounds} interleaved rounds of {self.steps} steps, one thread).\n"
            f"Tracking makes this loop {middle:.2f} times as long (median of the rounds' ratios; "
            f"half of them are between {low:.2f} and {high:.2f}).\n"
            "A loop whose own steps take longer pays a smaller share."
        )

    def _loop(self, tracked: bool) -> Callable[[], float]:
        """A loop that returns its seconds per step, the tracker's last flush included."""
        import torch

        from torchlimits.cli.timing import timed
        from torchlimits.problems.mixture.problem import GaussianMixture
        from torchlimits.record.track import track

        problem = GaussianMixture.xor(self.dim, self.width, snr=100.0, ridge=0.1)

        def run() -> float:
            model = problem.model()
            optimizer = torch.optim.SGD(
                model.parameters(), lr=1 / self.dim, weight_decay=problem.ridge
            )
            tracker = track(model, optimizer, problem.statistics) if tracked else None

            def work() -> None:
                for _ in range(self.steps):
                    x, y = problem.sample(1)
                    optimizer.zero_grad()
                    problem.loss(model(x), y).backward()
                    optimizer.step()
                if tracker is not None:
                    tracker.close()

            return timed(work, self.steps)

        return run

"""`Explanation`: what drift and corrector explain of the statistics' change along a run."""

from __future__ import annotations

from dataclasses import dataclass

from torchlimits._text import Table, Tabular
from torchlimits.trajectory import Trajectory

#: the parts of an `Explanation`, and what they are called in TensorBoard
PARTS = {
    "change": "measured change",
    "drift": "gradient flow",
    "corrector": "corrector",
    "residual": "residual",
}


@dataclass(frozen=True, eq=False)
class Explanation(Tabular):
    r"""The change of the statistics since step 0, and what explains it.

    .. math:: u(t) - u(0) = \int_0^t (-f)\, ds + \int_0^t g\, ds + residual

    with f and g estimated along the run, at the parameters themselves, and integrated by the
    trapezoidal rule. With momentum, Adam's included, u is that of the slow variable,
    `tl.statistics.slow_variable`, which differs from that of the parameters by O(1/n). The residual
    holds the noise of SGD, which is a martingale, what happens between two probes, and, where steps
    are large, orders of the step size beyond Theorem 2.2. Each part is a `Trajectory` of T probes
    and k statistics. Its ``std`` is the standard error of the integrals; the residual's includes
    the standard deviation of the martingale, from the estimated covariance of single steps: a
    residual of several times its ``std`` is not noise.

    Attributes:
        change: the measured change u(t) - u(0).
        drift: the part that the population drift (gradient flow), -f, explains.
        corrector: the part that the population corrector, g, explains.
        residual: the part that neither explains.
        skipped: the parameters whose moves were not known at some of the probes: what they did is
            in the residual.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=20, order=2, snr=2.0)
        >>> model = problem.model()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 20)
        >>> probe = tl.Probe(problem.loss, problem.sample, every=5)
        >>> with tl.track(model, optimizer, problem.statistics, probe=probe) as tracker:
        ...     for _ in range(10):
        ...         optimizer.zero_grad()
        ...         features, target = problem.sample(1)
        ...         problem.loss(model(features), target).backward()
        ...         optimizer.step()
        >>> parts = tracker.explanation().parts()
        >>> explained = sum(parts[name].values for name in ("drift", "corrector", "residual"))
        >>> bool(torch.allclose(explained, parts["change"].values))
        True
    """

    change: Trajectory
    drift: Trajectory
    corrector: Trajectory
    residual: Trajectory
    skipped: tuple[str, ...] = ()

    def parts(self) -> dict[str, Trajectory]:
        """The four parts by name, in the order of `PARTS`."""
        return {name: getattr(self, name) for name in PARTS}

    def __repr__(self) -> str:
        times = self.change.times
        return (
            f"Explanation({len(self.change.names)} statistics, {len(times)} probes, "
            f"t = {times[0]:g} ... {times[-1]:g})"
        )

    def _table(self) -> Table:
        error = self.residual.std
        assert error is not None
        rows = [["statistic", *PARTS.values()]]
        for i, name in enumerate(self.change.names):
            values = [f"{path.final[i]:.4f}" for path in self.parts().values()]
            values[-1] += f" ± {error[-1, i]:.4f}"
            rows.append([name, *values])
        notes = {
            PARTS["change"]: "u(t) - u(0), from step 0 to the last probe",
            PARTS["drift"]: "what the population drift -f, gradient flow, adds to u",
            PARTS["corrector"]: "what the population corrector g adds",
            PARTS["residual"]: "what neither explains ± its standard deviation from noise alone",
        }
        if self.skipped:
            notes[PARTS["residual"]] += (
                f"; what moves {', '.join(self.skipped)} is in it, as their gradients had been 0 "
                "for long"
            )
        return Table(rows, notes)

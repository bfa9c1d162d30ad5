"""`Story`: what ``torchlimits run`` does and says, from the start to the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from rich.console import Console

from torchlimits import figures, tensorboard
from torchlimits.cli.browser import how_to_open
from torchlimits.cli.folders import Folder, Stage
from torchlimits.cli.options import Options
from torchlimits.cli.performance import performance_text, with_performance
from torchlimits.cli.starts import start_of
from torchlimits.comparison import compare
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.ensemble.processes import rank_in
from torchlimits.ensemble.train import train
from torchlimits.problems.problem import Problem
from torchlimits.record.non_finite import NonFiniteStatistic
from torchlimits.trajectory import Trajectory

#: rows of the picture: runs with different starts have one each
_DRAWN = 4


@dataclass(frozen=True)
class Story:
    """One run of the command.

    Args:
        options: what was asked for.
        problem: the problem that they make.
        device: where it is trained.
        group: the process group whose ranks share the runs, or None.
    """

    options: Options
    problem: Problem
    device: str
    group: Any = None

    def tell(self, folder: Folder, stage: Stage) -> None:
        """Train, predict, compare, draw; of several processes the first does all but training.

        Args:
            folder: where everything goes.
            stage: how far it has come already.
        """
        told = self.options.described()
        first = rank_in(self.group) == 0
        start, about = start_of(self.options, self.problem)
        if first:
            runs = f"{self.options.runs} run{'s' * (self.options.runs > 1)}"
            size = f"c_delta = {self.options.step_size:g}"
            print(f"{self.problem}, {size}, {runs} on {self.device}\n{about}")
            print(f"Folder: {folder.path}", flush=True)
        if stage == "begun":
            if first:
                folder.write(told, "begun")
            self._train(folder, start)
            if first:
                folder.write(told, "trained")
        if not first:
            return
        measured = self._named(Trajectory.load(folder.measured))
        dynamics = self._dynamics()
        predicted = self._predicted(dynamics, measured)
        predicted.save(folder.predicted)
        print(compare(measured, predicted))
        self._draw(folder, measured, predicted, dynamics)
        folder.write(told, "finished")
        print(how_to_open(folder.path), flush=True)

    def _dynamics(self) -> EffectiveDynamics:
        """The effective dynamics of the optimizer that trains."""
        make = self.options.optimizer()
        if make is None:
            return self.problem.dynamics(step_size=self.options.step_size)
        return self.problem.dynamics(make(self.problem.model().parameters()))

    def _train(self, folder: Folder, start: torch.nn.Module | None) -> None:
        """Leave measured.npz in the folder."""
        options, make = self.options, self.options.optimizer()
        console = Console()
        try:
            train(
                self.problem,
                step_size=options.step_size if make is None else None,
                optimizer=make,
                # the state of the optimizer, too
                statistics=getattr(self._dynamics(), "statistics", None),
                time=options.time,
                runs=options.runs,
                seed=options.seed,
                device=self.device,
                start=start,
                progress=console.is_terminal,
                logdir=folder.path,
                path=folder.measured,
                max_runs=options.shown,
                group=self.group,
                checkpoint=folder.checkpoint if self.device == "cpu" else None,
            )
        except NonFiniteStatistic as error:
            if error.trajectory is not None and rank_in(self.group) == 0:
                tensorboard.write(
                    folder.path, measured=self._named(error.trajectory), max_runs=options.shown
                )
            raise RuntimeError(f"{error}. Saved up to there: {folder.measured}") from error

    def _named(self, measured: Trajectory) -> Trajectory:
        """The trajectory with the problem's name among its parameters, for titles."""
        parameters = measured.metadata.get("parameters") or {}
        named = {"problem": self.options.title, **parameters}
        return replace(measured, metadata={**measured.metadata, "parameters": named})

    def _predicted(self, dynamics: EffectiveDynamics, measured: Trajectory) -> Trajectory:
        """The effective dynamics from the measured starts; one start that all share is one run."""
        options, starts = self.options, measured.initial
        if bool((starts == starts[:1]).all()):
            starts = starts[:1]
        band = self._band(len(starts))
        doing = "drawing the law of runs" if band == "law" else "integrating the effective dynamics"
        with Console(stderr=True).status(doing):
            return dynamics.solve(starts, measured.times, corrector=options.corrector, band=band)

    def _band(self, starts: int) -> bool | Literal["law"]:
        """What `EffectiveDynamics.solve` is asked for."""
        asked = self.options.band
        if asked == "none" or not self.options.corrector:
            return False
        if asked == "law" and starts > _DRAWN:
            print(
                f"The band is the linear approximation: {starts} different starts would have as "
                f"many laws; --runs {_DRAWN} or fewer shows them."
            )
            return True
        return "law" if asked == "law" else True

    def _draw(
        self, folder: Folder, measured: Trajectory, predicted: Trajectory,
        dynamics: EffectiveDynamics,
    ) -> None:  # fmt: skip
        """The picture, and TensorBoard's files."""
        shown, runs = self.options.shown, measured.runs
        with Console(stderr=True).status("drawing"):
            functions = self.options.performance(dynamics)
            seen, expected = (with_performance(path, functions) for path in (measured, predicted))
            print(performance_text(seen, expected, list(functions)), end="")
            figures.save(figures.overlay(seen, expected), folder.picture, dpi=120)
            tensorboard.write(folder.path, measured=measured, predicted=predicted, max_runs=shown)
        drawn = ""
        if runs > 1:
            drawn = f" (the mean of all {runs} runs, which share their start)"
        if predicted.runs > 1:
            drawn = f" ({min(_DRAWN, runs)} of {runs} runs, a row each)"
        print(f"Picture: {folder.picture}{drawn}")
        if runs > shown:
            print(f"TensorBoard shows {shown} of {runs} runs; --shown asks for more.")

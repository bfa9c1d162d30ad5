"""``torchlimits run``: train one problem, predict it, and draw both."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import subcommand

from torchlimits.cli.browser import check_browser
from torchlimits.cli.folders import Folder, Stage, given_folder, new_folder
from torchlimits.cli.networks import Network, TeacherStudent
from torchlimits.cli.options import Options
from torchlimits.cli.problems import Binary, Matrix, Tensor, Xor
from torchlimits.cli.programs import program

_Problem = (
    Annotated[Xor, subcommand("xor")]
    | Annotated[Binary, subcommand("binary")]
    | Annotated[Matrix, subcommand("matrix")]
    | Annotated[Tensor, subcommand("tensor")]
    | Annotated[Network, subcommand("network")]
    | Annotated[TeacherStudent, subcommand("teacher-student")]
)


@dataclass
class Run:
    """Train a problem, predict its summary statistics, and draw both.

    Everything goes into a new folder, runs/xor/0001-snr8-lr2 for instance: measured.npz and
    predicted.npz, the picture overlay.png, and event files for TensorBoard. An interrupted run is
    continued by `torchlimits run --resume FOLDER`.
    """

    problem: _Problem
    """What to train."""

    def main(self) -> None:
        """Train, predict and draw."""
        options = self.problem
        options.check()

        def made() -> Folder:
            if options.logdir is not None:
                return given_folder(options.logdir)
            return new_folder(Path("runs") / options.name, options.label)

        execute(options, made, "begun")


def execute(options: Options, folder_of: Callable[[], Folder], stage: Stage) -> None:
    """Do what a run has not done yet.

    Args:
        options: the run's options.
        folder_of: makes, or finds, the run's folder.
        stage: how far the run has come.

    Raises:
        KeyboardInterrupt: after an interrupt; its text says what was saved.
    """
    import torch

    from torchlimits.cli.story import Story
    from torchlimits.ensemble.kept import ProcessGone
    from torchlimits.ensemble.processes import process_group, rank_in

    if options.open:
        check_browser()
    device = options.device
    if device == "auto":
        captured = torch.cuda.is_available() and options.optimizer() is None
        device = "cuda" if captured else "cpu"
    with process_group(device) as group:
        story = Story(options, options.problem(device), device, group)
        folder = _agreed(folder_of, group)
        try:
            story.tell(folder, stage)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or saved(folder)) from None
        except (ProcessGone, SystemExit) as stop:
            # of a process that torchrun has started, or told to end
            again = f"here that is {_resume(folder)}, started by torchrun as before"
            raise type(stop)(f"{stop}; {again}") from stop.__cause__
        if options.open and rank_in(group) == 0:
            from torchlimits.cli.browser import show_in_browser

            show_in_browser(folder.path)


def _agreed(folder_of: Callable[[], Folder], group: Any) -> Folder:
    """The folder that the first of all processes has made."""
    if group is None:
        return folder_of()
    from torch import distributed

    found: list[Any] = [None]
    if distributed.get_rank(group) == 0:
        try:
            found = [folder_of()]
        except (OSError, ValueError) as error:
            found = [error]
    distributed.broadcast_object_list(found, src=0, group=group)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _resume(folder: Folder) -> str:
    """The command that goes on with a run."""
    return f"`{program('torchlimits')} run --resume {os.path.relpath(folder.path)}`"


def saved(folder: Folder) -> str:
    """Say what an interrupted run has saved, and how to go on.

    Args:
        folder: the run's folder.

    Example:
        >>> saved(Folder(Path("nowhere"))).split(";")[0]
        'nothing had been recorded yet'
    """
    from torchlimits.trajectory import Trajectory

    command, file = _resume(folder), folder.recorded()
    if file is None:
        return f"nothing had been recorded yet; {command} begins again"
    path = Trajectory.load(file)
    last = int(path.steps[-1]) if len(path) else 0
    return f"{file} holds all steps up to {last:,}; {command} goes on"

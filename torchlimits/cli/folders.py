"""`Folder`: where a run of the command keeps what belongs to it, and what it was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchlimits.files.place import unfinished
from torchlimits.files.whole import replacing

#: how far a run has come: it is training, its measured.npz is complete, or all is there
Stage = Literal["begun", "trained", "finished"]


@dataclass(frozen=True)
class Folder:
    """The folder of one run.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def measured(self) -> Path:
        """The recorded trajectory."""
        return self.path / "measured.npz"

    @property
    def predicted(self) -> Path:
        """The predicted trajectory."""
        return self.path / "predicted.npz"

    @property
    def picture(self) -> Path:
        """The picture of both."""
        return self.path / "overlay.png"

    @property
    def checkpoint(self) -> Path:
        """The file from which a training that was stopped goes on."""
        return self.path / "checkpoint.pt"

    @property
    def about(self) -> Path:
        """What the run was asked for, and how far it has come."""
        return self.path / "run.json"

    def recorded(self) -> Path | None:
        """Return the file of the recorded rows, finished or not; None if there is none."""
        files = (self.measured, unfinished(self.measured))
        return next((file for file in files if file.exists()), None)

    def write(self, options: Mapping[str, Any], stage: Stage) -> None:
        """Write run.json.

        Args:
            options: the run's options, in types that JSON has.
            stage: how far it has come.
        """
        text = json.dumps({"stage": stage, "options": dict(options)}, indent=1)
        with replacing(self.about) as partial:
            partial.write_text(text + "\n", encoding="utf-8")

    def read(self) -> tuple[dict[str, Any], Stage]:
        """Return the options and the stage of run.json.

        Raises:
            ValueError: if there is no run.json, or it is damaged.
        """
        try:
            found = json.loads(self.about.read_text(encoding="utf-8"))
            stage, options = found["stage"], dict(found["options"])
        except FileNotFoundError:
            raise ValueError(
                f"expected the folder of a run, got {self.path}, which has no {self.about.name}: "
                "`torchlimits show` lists the runs below a folder"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"expected what a run was asked for, but {self.about} cannot be read: {error}"
            ) from error
        return options, stage


def new_folder(parent: Path, name: str) -> Folder:
    """Make ``<parent>/<number>-<name>``, whose number no other folder has.

    Two programs that ask at once are given two numbers: whoever makes the folder that has the
    number alone as its name has the number, and then renames it.

    Args:
        parent: the folder of all runs of a problem.
        name: the rest of the folder's name, after the number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     [new_folder(Path(parent), name).path.name for name in ("snr8-lr2", "snr4-lr2")]
        ['0001-snr8-lr2', '0002-snr4-lr2']
    """
    parent.mkdir(parents=True, exist_ok=True)
    number = max(_numbers(parent), default=0) + 1
    while True:
        claimed = parent / f"{number:04d}"
        try:
            claimed.mkdir()
        except FileExistsError:
            number += 1
            continue
        if _numbers(parent).count(number) == 1:
            return Folder(claimed.rename(parent / f"{claimed.name}-{name}"))
        # another program has taken it, and renamed its own, since they were counted
        claimed.rmdir()
        number += 1


def _numbers(parent: Path) -> list[int]:
    found = [re.match(r"(\d+)(?:-|$)", path.name) for path in parent.iterdir()]
    return [int(match[1]) for match in found if match]


def given_folder(path: Path) -> Folder:
    """Return the folder that the user asked for, which must not hold a run.

    Args:
        path: the folder; made if it is not there.

    Raises:
        ValueError: if there is a run in it.
        OSError: if the folder cannot be made.
    """
    folder = Folder(path)
    if folder.recorded() is not None or folder.about.exists():
        raise ValueError(
            f"expected a folder without a run, got {path}, which has one: give another --logdir, "
            f"or go on with that run by --resume {path}"
        )
    from torchlimits.tensorboard.tags import log_folder

    log_folder(path)
    return folder

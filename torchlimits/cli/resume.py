"""``torchlimits run --resume``: go on with a run that was interrupted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from torchlimits.cli.folders import Folder
from torchlimits.cli.problems import options_of
from torchlimits.cli.run import execute


@dataclass(kw_only=True)
class Resume:
    """Go on with a run that was interrupted, with the options that it was begun with.

    The result is that of a run that was never interrupted, bit for bit. (On CUDA, where a training
    cannot be continued, it begins again.)
    """

    resume: Annotated[Path, arg(metavar="FOLDER")]
    """The folder of the run, runs/xor/0001-snr8-lr2 for instance."""
    open: Annotated[bool, FlagCreatePairsOff] = False
    """Start TensorBoard at the end, and open it in the browser."""

    def main(self) -> None:
        """Do what is left to do."""
        folder = Folder(self.resume)
        described, stage = folder.read()
        if stage == "finished":
            raise ValueError(
                f"expected a run that was interrupted, got {self.resume}, which is finished: "
                f"`torchlimits show {self.resume}` prints it"
            )
        options = replace(options_of(described), open=self.open)
        options.check()
        execute(options, lambda: folder, stage)

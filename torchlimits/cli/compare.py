"""``torchlimits compare``: how far a measured trajectory is from a predicted one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional


@dataclass
class Compare:
    """Print how far a measured trajectory is from a predicted one, statistic by statistic.

    The statistics are matched by name, and both files must have the same times.
    """

    measured: Annotated[Path, Positional]
    """The file that was recorded, measured.npz for instance."""
    predicted: Annotated[Path, Positional]
    """The file that was predicted, predicted.npz for instance."""

    def main(self) -> None:
        """Print the table."""
        from torchlimits.comparison import compare
        from torchlimits.trajectory import Trajectory

        print(compare(Trajectory.load(self.measured), Trajectory.load(self.predicted)))

"""Record summary statistics of PyTorch training beside what high-dimensional theory predicts."""

from typing import TYPE_CHECKING, Any

from torchlimits.comparison import Comparison, compare
from torchlimits.dynamics import EffectiveDynamics
from torchlimits.ensemble import train
from torchlimits.problems import GaussianMixture
from torchlimits.statistics import SummaryStatistics
from torchlimits.tracking import NonFiniteStatistic, Tracker, track
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    from torchlimits import figures, tensorboard

__all__ = [
    "Comparison",
    "EffectiveDynamics",
    "GaussianMixture",
    "NonFiniteStatistic",
    "SummaryStatistics",
    "Tracker",
    "Trajectory",
    "compare",
    "figures",
    "tensorboard",
    "track",
    "train",
]


def __getattr__(name: str) -> Any:
    # on first use only: matplotlib and tensorboard take a second to import
    if name in ("figures", "tensorboard"):
        import importlib

        return importlib.import_module(f"torchlimits.{name}")
    raise AttributeError(f"module 'torchlimits' has no attribute {name!r}")

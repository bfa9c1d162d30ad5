"""Record summary statistics of PyTorch training beside what high-dimensional theory predicts."""

from torchlimits.comparison import Comparison, compare
from torchlimits.dynamics import EffectiveDynamics
from torchlimits.ensemble import train
from torchlimits.problems import GaussianMixture
from torchlimits.statistics import SummaryStatistics
from torchlimits.tracking import NonFiniteStatistic, Tracker, track
from torchlimits.trajectory import Trajectory

__all__ = [
    "Comparison",
    "EffectiveDynamics",
    "GaussianMixture",
    "NonFiniteStatistic",
    "SummaryStatistics",
    "Tracker",
    "Trajectory",
    "compare",
    "track",
    "train",
]

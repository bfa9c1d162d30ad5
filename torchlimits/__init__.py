"""Record summary statistics of PyTorch training beside what high-dimensional theory predicts."""

from typing import TYPE_CHECKING, Any

from torchlimits import statistics, success
from torchlimits.comparison import Comparison, compare
from torchlimits.dynamics import EffectiveDynamics
from torchlimits.empirical import EmpiricalDynamics
from torchlimits.ensemble import train
from torchlimits.estimation import Estimate, estimate
from torchlimits.fixed_points import FixedPoint
from torchlimits.lifting import Lift
from torchlimits.phase_diagram import PhaseDiagram, phase_diagram
from torchlimits.probe import Explanation, Probe
from torchlimits.problems import GaussianMixture, SpikedTensor
from torchlimits.regimes import Regime, regime
from torchlimits.statistics import SummaryStatistics
from torchlimits.tracking import NonFiniteStatistic, Tracker, track
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    from torchlimits import figures, tensorboard

__all__ = [
    "Comparison",
    "EffectiveDynamics",
    "EmpiricalDynamics",
    "Estimate",
    "Explanation",
    "FixedPoint",
    "GaussianMixture",
    "Lift",
    "NonFiniteStatistic",
    "PhaseDiagram",
    "Probe",
    "Regime",
    "SpikedTensor",
    "SummaryStatistics",
    "Tracker",
    "Trajectory",
    "compare",
    "estimate",
    "figures",
    "phase_diagram",
    "regime",
    "statistics",
    "success",
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

"""Record summary statistics of PyTorch training beside what high-dimensional theory predicts."""

from typing import TYPE_CHECKING, Any

from torchlimits import statistics
from torchlimits.comparison import Comparison, compare
from torchlimits.contracts.explanation import Explanation
from torchlimits.contracts.geometry import Geometry
from torchlimits.contracts.vector_field import VectorField
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.fixed_points import FixedPoint
from torchlimits.ensemble.train import train
from torchlimits.estimation.conditions.closability import closability
from torchlimits.estimation.conditions.localizability import localizability
from torchlimits.estimation.conditions.power_law import ConditionReport
from torchlimits.estimation.conditions.sized_problem import SizedProblem
from torchlimits.estimation.conditions.step_size import (
    CriticalStepSize,
    Regime,
    critical_step_size,
    regime,
)
from torchlimits.estimation.empirical_dynamics import EmpiricalDynamics
from torchlimits.estimation.estimate import Estimate, estimate
from torchlimits.estimation.lift import Lift
from torchlimits.estimation.probe import Probe
from torchlimits.experiments import success
from torchlimits.experiments.basins import Basins, basins
from torchlimits.experiments.phase_diagram import PhaseDiagram, phase_diagram
from torchlimits.optim.normalized_sgd import NormalizedSGD
from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.spiked.problem import SpikedTensor
from torchlimits.record.non_finite import NonFiniteStatistic
from torchlimits.record.replicas import replicate
from torchlimits.record.sinks.csv import CSV
from torchlimits.record.track import track
from torchlimits.record.tracker import Tracker
from torchlimits.statistics.summary import StatisticError, SummaryStatistics
from torchlimits.trajectory import Trajectory

if TYPE_CHECKING:
    from torchlimits import figures, integrations, tensorboard

__all__ = [
    "CSV",
    "Basins",
    "Comparison",
    "ConditionReport",
    "CriticalStepSize",
    "EffectiveDynamics",
    "EmpiricalDynamics",
    "Estimate",
    "Explanation",
    "FixedPoint",
    "GaussianMixture",
    "Geometry",
    "Lift",
    "NonFiniteStatistic",
    "NormalizedSGD",
    "PhaseDiagram",
    "Probe",
    "Regime",
    "SizedProblem",
    "SpikedTensor",
    "StatisticError",
    "SummaryStatistics",
    "Tracker",
    "Trajectory",
    "VectorField",
    "basins",
    "closability",
    "compare",
    "critical_step_size",
    "estimate",
    "figures",
    "integrations",
    "localizability",
    "phase_diagram",
    "regime",
    "replicate",
    "statistics",
    "success",
    "tensorboard",
    "track",
    "train",
]


def __getattr__(name: str) -> Any:
    # on first use only: matplotlib and tensorboard take a second to import
    if name in ("figures", "integrations", "tensorboard"):
        import importlib

        return importlib.import_module(f"torchlimits.{name}")
    raise AttributeError(f"module 'torchlimits' has no attribute {name!r}")

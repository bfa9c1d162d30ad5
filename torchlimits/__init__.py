"""Record summary statistics of PyTorch training beside what high-dimensional theory predicts.

Recording, of any training loop, by a hook on its optimizer:

    track, Tracker                   statistics at every step: tracker.trajectory()
    SummaryStatistics, statistics    what to record; ready-made ones: statistics.overlaps ...
    Trajectory                       recorded or predicted values, with their names and times
    CSV, Sink, tensorboard.Writer    where rows are shown while the training goes on
    Probe, Explanation, Observer     what drift and corrector explain of a change
    replicate                        many copies of a module in one

Predicting, for a problem:

    GaussianMixture, SpikedTensor    problem.model(), .sample(), .loss(), .dynamics(optimizer)
    NetworkProblem, LabelLaw         any head on a linear first layer, any loss and labels
    TeacherStudent                   a two-layer network that learns another, in closed form
    LinearModel                      one-pass least squares with inputs of any covariance
    Covariance                       of inputs with a spectrum, given or from data
    EffectiveDynamics, FixedPoint    dynamics.solve(...), .fixed_points(), .diffusion(u) ...
    optimal_schedule                 the learning rates that make the most of so many steps
    VectorField, Geometry, Problem   what to write for a problem of your own
    AdaGradNorm, SignSGD             optimizers whose limits are known besides those of torch:
                                     NormalizedSGD
    estimate, EmpiricalDynamics      the same from data, for any model: estimate, Lift ...
    closability, localizability      are the theorem's conditions met? SizedProblem, regime,
                                     critical_step_size, explain_rate

Beside each other:

    compare, figures, tensorboard    tables, figures.overlay, tensorboard.write
    train                            many runs of online SGD on a problem
    basins, success, phase_diagram   where starts go, how often they succeed, over two parameters
    sweep                            any function over a grid, by many processes and machines
    integrations                     callbacks for Lightning and transformers

Each of these names has a page of its own, with an example that runs: help(torchlimits.track),
help(torchlimits.GaussianMixture), help(torchlimits.EffectiveDynamics.solve),
help(torchlimits.Trajectory.plot), help(torchlimits.statistics) ...; dir(torchlimits) lists them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchlimits import figures, integrations, statistics, tensorboard
    from torchlimits.comparison import Comparison, compare
    from torchlimits.contracts.explanation import Explanation
    from torchlimits.contracts.geometry import Geometry
    from torchlimits.contracts.observer import Observer, Watcher
    from torchlimits.contracts.sink import Sink
    from torchlimits.contracts.vector_field import VectorField
    from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
    from torchlimits.dynamics.fixed_points import FixedPoint
    from torchlimits.dynamics.optimal import OptimalSchedule, optimal_schedule
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
    from torchlimits.estimation.explain_rate import RateExplanation, explain_rate
    from torchlimits.estimation.lift import Lift
    from torchlimits.estimation.probe import Probe
    from torchlimits.experiments import success
    from torchlimits.experiments.basins import Basins, basins
    from torchlimits.experiments.phase_diagram import PhaseDiagram, phase_diagram
    from torchlimits.experiments.sweep import Sweep, sweep
    from torchlimits.optim.adagrad_norm import AdaGradNorm
    from torchlimits.optim.limit import OptimizerLimit
    from torchlimits.optim.normalized_sgd import NormalizedSGD
    from torchlimits.optim.sign_sgd import SignSGD
    from torchlimits.problems.data.covariance import Covariance, DataCovariance
    from torchlimits.problems.data.report import DataReport
    from torchlimits.problems.linear.problem import LinearModel
    from torchlimits.problems.mixture.problem import GaussianMixture
    from torchlimits.problems.network.labels import LabelLaw
    from torchlimits.problems.network.next_order import NextOrder
    from torchlimits.problems.network.problem import NetworkProblem
    from torchlimits.problems.network.teacher_student import TeacherStudent
    from torchlimits.problems.problem import Problem
    from torchlimits.problems.spiked.problem import SpikedTensor
    from torchlimits.record.non_finite import NonFiniteStatistic
    from torchlimits.record.replicas import replicate
    from torchlimits.record.sinks.csv import CSV
    from torchlimits.record.track import track
    from torchlimits.record.tracker import Tracker
    from torchlimits.statistics.statistic_error import StatisticError
    from torchlimits.statistics.summary import SummaryStatistics
    from torchlimits.trajectory import Trajectory

    # for type checkers, which read the names here
    __all__ = [
        "CSV",
        "AdaGradNorm",
        "Basins",
        "Comparison",
        "ConditionReport",
        "Covariance",
        "CriticalStepSize",
        "DataCovariance",
        "DataReport",
        "EffectiveDynamics",
        "EmpiricalDynamics",
        "Estimate",
        "Explanation",
        "FixedPoint",
        "GaussianMixture",
        "Geometry",
        "LabelLaw",
        "Lift",
        "LinearModel",
        "NetworkProblem",
        "NextOrder",
        "NonFiniteStatistic",
        "NormalizedSGD",
        "Observer",
        "OptimalSchedule",
        "OptimizerLimit",
        "PhaseDiagram",
        "Probe",
        "Problem",
        "RateExplanation",
        "Regime",
        "SignSGD",
        "Sink",
        "SizedProblem",
        "SpikedTensor",
        "StatisticError",
        "SummaryStatistics",
        "Sweep",
        "TeacherStudent",
        "Tracker",
        "Trajectory",
        "VectorField",
        "Watcher",
        "basins",
        "closability",
        "compare",
        "critical_step_size",
        "estimate",
        "explain_rate",
        "figures",
        "integrations",
        "localizability",
        "optimal_schedule",
        "phase_diagram",
        "regime",
        "replicate",
        "statistics",
        "success",
        "sweep",
        "tensorboard",
        "track",
        "train",
    ]

#: the public names of each module, which is loaded when one of them is first asked for
_PUBLIC = {
    # recording
    "record.track": "track",
    "record.tracker": "Tracker",
    "record.non_finite": "NonFiniteStatistic",
    "record.replicas": "replicate",
    "record.sinks.csv": "CSV",
    "statistics.summary": "SummaryStatistics",
    "statistics.statistic_error": "StatisticError",
    "trajectory": "Trajectory",
    "contracts.sink": "Sink",
    "contracts.observer": "Observer Watcher",
    "contracts.explanation": "Explanation",
    "estimation.probe": "Probe",
    # predicting
    "problems.mixture.problem": "GaussianMixture",
    "problems.spiked.problem": "SpikedTensor",
    "problems.network.problem": "NetworkProblem",
    "problems.network.labels": "LabelLaw",
    "problems.network.next_order": "NextOrder",
    "problems.network.teacher_student": "TeacherStudent",
    "problems.linear.problem": "LinearModel",
    "problems.data.covariance": "Covariance DataCovariance",
    "problems.data.report": "DataReport",
    "problems.problem": "Problem",
    "contracts.vector_field": "VectorField",
    "contracts.geometry": "Geometry",
    "optim.adagrad_norm": "AdaGradNorm",
    "optim.limit": "OptimizerLimit",
    "optim.normalized_sgd": "NormalizedSGD",
    "optim.sign_sgd": "SignSGD",
    "dynamics.effective_dynamics": "EffectiveDynamics",
    "dynamics.fixed_points": "FixedPoint",
    "dynamics.optimal": "OptimalSchedule optimal_schedule",
    "estimation.estimate": "Estimate estimate",
    "estimation.explain_rate": "RateExplanation explain_rate",
    "estimation.lift": "Lift",
    "estimation.empirical_dynamics": "EmpiricalDynamics",
    "estimation.conditions.sized_problem": "SizedProblem",
    "estimation.conditions.power_law": "ConditionReport",
    "estimation.conditions.closability": "closability",
    "estimation.conditions.localizability": "localizability",
    "estimation.conditions.step_size": "CriticalStepSize Regime critical_step_size regime",
    # both beside each other
    "comparison": "Comparison compare",
    "ensemble.train": "train",
    "experiments.basins": "Basins basins",
    "experiments.phase_diagram": "PhaseDiagram phase_diagram",
    "experiments.sweep": "Sweep sweep",
}
_HOMES = {name: home for home, names in _PUBLIC.items() for name in names.split()}
#: the public names that are modules
_MODULES = {
    "figures": "figures",
    "integrations": "integrations",
    "statistics": "statistics",
    "success": "experiments.success",
    "tensorboard": "tensorboard",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = importlib.import_module(f"torchlimits.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"torchlimits.{_HOMES[name]}"), name)
    elif name == "__all__":
        # `import *` asks for it, finds none, and takes what has been loaded by then: all names.
        # With a list of names, help(torchlimits) would print every class in full, 7,800 lines.
        for public in __dir__():
            __getattr__(public)
        raise AttributeError("module 'torchlimits' has no attribute '__all__'")
    else:
        raise AttributeError(f"module 'torchlimits' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, *_MODULES])

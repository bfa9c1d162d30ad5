"""`Findings`: what a comparison of measured and predicted trajectories found, as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison.humps import TwoHumps
from torchlimits.comparison.momentum_lag import MomentumLag
from torchlimits.comparison.worst_runs import WorstRuns


@dataclass(frozen=True, eq=False)
class Findings:
    """The numbers of a comparison, which `Comparison` explains one by one."""

    names: list[str]
    measured: Float[Tensor, " k"]
    predicted: Float[Tensor, " k"]
    standard_error: Float[Tensor, " k"]
    sup_difference: Float[Tensor, " k"]
    sup_time: Float[Tensor, " k"]
    sup_standard_error: Float[Tensor, " k"]
    sup_in_std: Float[Tensor, " k"] | None
    inside: Float[Tensor, " k"] | None
    runs: int
    unmatched: dict[str, list[str]]
    worst_runs: WorstRuns | None = None
    predicted_error: Float[Tensor, " k"] | None = None
    level: float = 0.95
    law_distance: Float[Tensor, " k"] | None = None
    usual_distance: Float[Tensor, " k"] | None = None
    humps: Sequence[TwoHumps] = ()
    momentum_lag: MomentumLag | None = None

"""Summary statistics: functions of a model's parameters, or of the model, gathered into one u."""

from torchlimits.statistics.accuracy import accuracy
from torchlimits.statistics.activations import activations
from torchlimits.statistics.gradient_norm import gradient_norm
from torchlimits.statistics.held_out import held_out
from torchlimits.statistics.of_model import of_model
from torchlimits.statistics.ready_made import Entries as entries
from torchlimits.statistics.ready_made import Gram as gram
from torchlimits.statistics.ready_made import Overlaps as overlaps
from torchlimits.statistics.ready_made import SecondLayer as second_layer
from torchlimits.statistics.ready_made import SquaredLengths as squared_lengths
from torchlimits.statistics.ready_made import norms, row_norms
from torchlimits.statistics.sharpness import sharpness
from torchlimits.statistics.slow_variable import slow_variable

__all__ = [
    "accuracy",
    "activations",
    "entries",
    "gradient_norm",
    "gram",
    "held_out",
    "norms",
    "of_model",
    "overlaps",
    "row_norms",
    "second_layer",
    "sharpness",
    "slow_variable",
    "squared_lengths",
]

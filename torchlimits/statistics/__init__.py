"""Summary statistics: functions of a model's parameters, gathered into one vector u."""

from torchlimits.statistics.ready_made import Entries as entries
from torchlimits.statistics.ready_made import Gram as gram
from torchlimits.statistics.ready_made import Overlaps as overlaps
from torchlimits.statistics.ready_made import SecondLayer as second_layer
from torchlimits.statistics.ready_made import SquaredLengths as squared_lengths
from torchlimits.statistics.ready_made import row_norms

__all__ = ["entries", "gram", "overlaps", "row_norms", "second_layer", "squared_lengths"]

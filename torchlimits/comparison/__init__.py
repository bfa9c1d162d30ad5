"""Measured against predicted."""

from torchlimits.comparison.comparison import Comparison as Comparison
from torchlimits.comparison.comparison import compare as compare

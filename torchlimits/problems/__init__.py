"""The problems: triples of statistics, loss and data, with their effective dynamics."""

from torchlimits.problems.gaussian_mixture import GaussianMixture
from torchlimits.problems.spiked_tensor import SpikedTensor

__all__ = ["GaussianMixture", "SpikedTensor"]

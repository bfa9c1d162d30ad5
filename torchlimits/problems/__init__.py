"""The problems: triples of statistics, loss and data, with their effective dynamics."""

from torchlimits.problems.gaussian_mixture import GaussianMixture

__all__ = ["GaussianMixture"]

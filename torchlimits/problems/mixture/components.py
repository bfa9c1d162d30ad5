"""`Components`: the means, labels and probabilities of a mixture, and fresh data from it."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.problems.network.components import GaussianComponents


class Components(GaussianComponents):
    r"""The law of :math:`X = c_a + Z/\sqrt\lambda` with label y_a; a is drawn by its probability.

    Args:
        means, labels, snr, weights: as in `GaussianMixture`.

    Raises:
        ValueError: if labels are not 0 or 1, and as `GaussianComponents`.

    Example:
        >>> components = Components(torch.eye(2, 5), [0, 1], snr=4.0, weights=[0.0, 1.0])
        >>> place = {"device": torch.device("cpu"), "dtype": torch.float32}
        >>> x, y = components.sample((3,), generator=None, **place)
        >>> x.shape, y
        (torch.Size([3, 5]), tensor([1., 1., 1.]))
    """

    def __init__(self, means: object, labels: object, snr: float, weights: object = None) -> None:
        super().__init__(means, snr, weights)
        self.labels = labels = _checks.float64("labels", labels)
        if labels.shape != self.means.shape[:1]:
            raise ValueError(
                f"expected one label a mean, shape ({len(self.means)},), got {tuple(labels.shape)}"
            )
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError(
                f"expected labels 0 or 1, got {labels.unique().tolist()}: relabel them"
            )
        self._labels_beside: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def sample(
        self, shape: tuple[int, ...], *, dtype: torch.dtype, **source: Any
    ) -> tuple[Float[Tensor, "*shape N"], Float[Tensor, "*shape"]]:
        """Fresh data (x, y) with leading dimensions ``shape``.

        Args:
            shape: the leading dimensions.
            dtype: of the data.
            source: generator and device, as for torch.randn.
        """
        x, component = self.inputs(shape, dtype=dtype, **source)
        key = (x.device, x.dtype)
        if key not in self._labels_beside:
            self._labels_beside[key] = self.labels.to(x)
        return x, self._labels_beside[key][component]

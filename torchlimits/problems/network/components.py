"""`GaussianComponents`: inputs of a Gaussian mixture, and which component each is from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from torchlimits import _checks
from torchlimits.problems.data.covariance import Covariance

#: the sum of the probabilities may differ from 1 by this much, as with float32 numbers
_TOLERANCE = 1e-6


class GaussianComponents:
    r"""The law of :math:`X = c_a + \Lambda^{1/2} Z/\sqrt\lambda`, a drawn by its probability.

    Args:
        means: the c_a as rows, shape ``(A, N)``.
        snr: lambda in (0, inf].
        weights: the probabilities of the components, ``(A,)``; None if all are the same.
        covariance: Lambda; None stands for the identity.

    Raises:
        ValueError: if shapes do not fit, weights are not probabilities, or numbers are not finite.

    Example:
        >>> data = GaussianComponents(torch.eye(2, 5), snr=4.0, weights=[0.0, 1.0])
        >>> place = {"device": torch.device("cpu"), "dtype": torch.float32}
        >>> x, component = data.inputs((3,), generator=None, **place)
        >>> x.shape, component
        (torch.Size([3, 5]), tensor([1, 1, 1]))
    """

    def __init__(
        self, means: object, snr: float, weights: object = None,
        covariance: Covariance | None = None,
    ) -> None:  # fmt: skip
        self.covariance = covariance
        self.means = means = _checks.float64("means", means)
        self.snr = math.inf if snr == math.inf else _checks.positive("snr", snr)
        if means.ndim != 2 or len(means) == 0 or not bool(means.isfinite().all()):
            raise ValueError(
                f"expected means as finite rows of shape (A, N), got shape {tuple(means.shape)}"
            )
        self.weights = None if weights is None else _probabilities(weights, len(means))
        self._moved: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    def inputs(
        self, shape: tuple[int, ...], *, dtype: torch.dtype, **source: Any
    ) -> tuple[Float[Tensor, "*shape N"], Int[Tensor, "*shape"]]:
        """Fresh inputs with leading dimensions ``shape``, and the numbers of their components.

        Args:
            shape: the leading dimensions.
            dtype: the dtype of the inputs.
            source: generator and device, as for torch.randn.
        """
        count, dim = self.means.shape
        means, shares = self._beside(torch.empty((), device=source["device"], dtype=dtype))
        component = drawn_components(count, shares, shape, **source)
        x = torch.randn(*shape, dim, dtype=dtype, **source)
        if self.covariance is not None:
            x = self.covariance.spread(x, component)
        # rows by their number: a product of indicators and means takes three times as long
        return F.embedding(component, means).add_(x, alpha=self.snr**-0.5), component

    def _beside(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Means and cumulative probabilities, copied to each device once."""
        key = (x.device, x.dtype)
        if key not in self._moved:
            self._moved[key] = (self.means.to(x), cumulative(self.weights, x.device))
        return self._moved[key]


def cumulative(
    weights: Float[Tensor, " A"] | None, device: torch.device
) -> Float[Tensor, " A"] | None:
    """The cumulative probabilities for `drawn_components`; None if all are the same."""
    if weights is None:
        return None
    total = weights.double().cumsum(0)
    return (total / total[-1]).to(device)


def drawn_components(
    count: int, cumulative: Float[Tensor, " A"] | None, shape: Sequence[int], *,
    generator: torch.Generator | None, device: torch.device,
) -> Int[Tensor, "*shape"]:  # fmt: skip
    """Draw independent components, numbers from 0 to ``count`` - 1.

    Args:
        count: A.
        cumulative: their cumulative probabilities, on the device; None if all are the same.
        shape: the shape of the result.
        generator: the source of randomness.
        device: the device of the result.
    """
    if cumulative is None:
        return torch.randint(count, tuple(shape), generator=generator, device=device)
    uniform = torch.rand(*shape, generator=generator, device=device, dtype=torch.float64)
    # below the first number it is component 0, and so on: one of probability 0 is never drawn
    return torch.searchsorted(cumulative, uniform, right=True)


def _probabilities(weights: object, count: int) -> Float[Tensor, " A"] | None:
    """The probabilities of ``count`` components as float64; None if all are the same."""
    given = _checks.float64("weights", weights)
    if given.shape != (count,):
        raise ValueError(
            f"expected weights as the probabilities of the {count} components, shape ({count},), "
            f"got shape {tuple(given.shape)}"
        )
    total = float(given.sum())
    if not (bool((given >= 0).all()) and abs(total - 1) < _TOLERANCE):
        raise ValueError(
            "expected weights as probabilities, numbers >= 0 with the sum 1, got "
            f"{given.tolist()} with the sum {total:g}: divide them by their sum"
        )
    # a sum of 1 up to rounding stays, so copies and pickles have the same numbers to the last bit
    normalised = given if abs(total - 1) < 1e-12 else given / total
    equal = torch.full_like(normalised, 1 / count)
    return None if torch.allclose(normalised, equal, rtol=1e-12, atol=0.0) else normalised

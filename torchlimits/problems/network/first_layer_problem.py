"""`FirstLayerProblem`: what theory needs of all networks with a linear first layer alike."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.adaptive_limit import AdaptiveLimit
from torchlimits.optim.chosen_limit import NetworkLimit, chosen_limit
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.training import Training
from torchlimits.problems.network.layout import Layout
from torchlimits.problems.problem import Trainable

#: the number of models drawn together by `starts`
_AT_ONCE = 256


class FirstLayerProblem(Trainable):
    """Starts and limits for any head, shared by `NetworkProblem` and `GaussianMixture`."""

    ridge: float
    #: the ridge with its graph, if it is a tensor that requires a gradient
    _ridge: float | Tensor
    #: the orthonormal e_j
    directions: Float[Tensor, "d N"]

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The order and names of the statistics."""

    def starts(
        self, count: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "S k"]:
        """Statistics at the start of ``count`` models made by `model`, ``(count, k)``, on the CPU.

        Args:
            count: the number of models.
            generator: draws the starts, on the CPU.
        """
        _checks.positive_int("count", count)
        found: list[Tensor] = []
        # weights are N/K times as many numbers as statistics: not all models at once
        for done in range(0, count, _AT_ONCE):
            some = (min(_AT_ONCE, count - done),)
            model = self.model(replicas=some, generator=generator, device="cpu")
            with torch.no_grad():
                found.append(self.statistics(dict(model.named_parameters())).double())
        return torch.cat(found)

    def _limit(self, training: Training) -> NetworkLimit:
        """The limit of an optimizer, parameter by parameter, or of SGD with the given numbers.

        Args:
            training: how the network is trained.
        """
        return chosen_limit(
            training, ridge=self._ridge, parameters=self.layout.shapes,
            dims={self.dim, training.dim}, directions=self.directions,
        )  # fmt: skip

    def _limit_of_chain(self, training: Training) -> SGDLimit:
        """The same for steps of an exact chain.

        Args:
            training: how the network is trained.

        Raises:
            NotImplementedError: if none is known for the optimizer.
        """
        limit = self._limit(training)
        if isinstance(limit, AdaptiveLimit):
            raise NotImplementedError(
                f"no exact chain is known for {limit.name}, whose steps do not stay in the span of "
                "weights and batch: take dynamics(optimizer), or run it itself"
            )
        return limit.at_finite_n()

"""The exact reduced chain of a two-layer network on a Gaussian mixture."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.mixture.gradients import of_one_sample
from torchlimits.problems.network.first_layer_chain import FirstLayerChain, over_batch


class MixtureChain(FirstLayerChain):
    r"""SGD's statistics (v, m, R) on a Gaussian mixture at dimension N, exact in law.

    The chain of any network, with its gradients in closed form.

    Args:
        field: the field of the same problem, which gives the mixture's constants.
        limit: what the optimizer does.
        schedule: c_delta(t).
    """

    def __init__(
        self, field: MixtureField, limit: SGDLimit, schedule: Schedule | None = None
    ) -> None:
        super().__init__(
            field.layout,
            coordinates=field.coordinates, weights=field.weights, snr=_checks.plain(field.snr),
            dim=field.dim, limit=limit, schedule=schedule,
        )  # fmt: skip
        self.field = field

    def _gradients(
        self, theta: Float[Tensor, "K S"], h: Float[Tensor, "B K S"], target: Float[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "K S"], Float[Tensor, "B K S"]]:
        by_second, pull = of_one_sample(theta, h, target)
        return over_batch(by_second), pull

    def _labels(
        self, x_parallel: Float[Tensor, "steps B d S"], component: Int[Tensor, "steps B S"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "steps B S"]:  # fmt: skip
        return self.field.labels.to(x_parallel)[component]

"""`NetworkChain`: the exact chain of a network with any head behind a linear first layer."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.schedule import Schedule
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.network.first_layer_chain import FirstLayerChain
from torchlimits.problems.network.replayed import Replayed
from torchlimits.problems.network.setting import Setting


class NetworkChain(FirstLayerChain):
    """SGD's statistics (theta, b, m, R) at dimension N, exact in law; see `FirstLayerChain`.

    Gradients of head and loss come from autograd, by one backward pass a step for all chains.

    Args:
        setting: the network, its data and its loss.
        dim: N, at least d + K + B.
        limit: what the optimizer does.
        schedule: c_delta(t).

    Raises:
        ValueError: if N is too small.
    """

    def __init__(
        self, setting: Setting, *, dim: int, limit: SGDLimit, schedule: Schedule | None = None
    ) -> None:
        self.setting = setting
        self._fast = Replayed(self._summed)
        super().__init__(
            setting.layout, coordinates=setting.coordinates, weights=setting.shares,
            snr=_checks.plain(setting.snr), dim=dim, limit=limit, schedule=schedule,
        )  # fmt: skip

    def _check_room(self) -> None:
        d, K, B = self.layout.directions, self.layout.width, self.batch_size
        if self.dim < d + K + B:
            raise ValueError(
                "expected dim >= directions + width + batch_size = "
                f"{d} + {K} + {B} = {d + K + B} for the reduced chain, got {self.dim}: run SGD "
                "itself in so few dimensions (tl.train)"
            )

    def _gradients(
        self, theta: Float[Tensor, "P S"], h: Float[Tensor, "B K S"], target: Tensor
    ) -> tuple[Float[Tensor, "P S"], Float[Tensor, "B K S"]]:
        theta, h = theta.mT.contiguous(), h.permute(2, 0, 1).contiguous()
        by_theta, by_h = self._fast(theta, h, target)
        return by_theta.mT / self.batch_size, by_h.permute(1, 2, 0).contiguous()

    def _summed(
        self, theta: Float[Tensor, "S P"], h: Float[Tensor, "S B K"], target: Tensor
    ) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S B K"]]:
        """Gradients of the sum of the losses of all samples."""
        inputs = theta.detach().requires_grad_(), h.detach().requires_grad_()
        with torch.enable_grad():
            output = self.setting.head(*inputs)
            mean = self.setting.losses.loss(output.flatten(0, 1), target.flatten(0, 1))
            count = mean.new_full((), target.shape[0] * target.shape[1])
            by_theta, by_h = torch.autograd.grad(mean, inputs, count, materialize_grads=True)
        return by_theta, by_h

    def _labels(
        self, x_parallel: Float[Tensor, "steps B d S"], component: Int[Tensor, "steps B S"],
        generator: torch.Generator | None,
    ) -> Tensor:  # fmt: skip
        """Labels ``(steps, S, B, ...)``."""
        x = x_parallel.permute(0, 3, 1, 2)
        component = component.transpose(1, 2)
        # threads do not inherit this setting
        with torch.no_grad():
            y = self.setting.labels.sample(x.flatten(0, 2), component.flatten(), generator)
        y = y.reshape(*component.shape, *y.shape[1:])
        return y.to(x.dtype) if y.is_floating_point() else y

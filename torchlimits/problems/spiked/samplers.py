"""The two samplers of spiked PCA, dense and implicit: fresh data, and the loss on them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.spiked.spike import Spike


def sampler_of(
    kind: str, spike: Spike, device: torch.device, dtype: torch.dtype
) -> DenseTensors | ImplicitNoise:
    """The sampler called ``"dense"`` or ``"implicit"``; other arguments as in `DenseTensors`."""
    if kind == "dense":
        return DenseTensors(spike, device, dtype)
    if kind == "implicit":
        return ImplicitNoise(spike)
    raise ValueError(f"expected sampler 'dense' or 'implicit', got {kind!r}")


def check_shapes(output: Tensor, target: Tensor, dim: int, entries: tuple[int, ...]) -> None:
    """Raise ValueError unless output, ``(*replicas, n)``, fits target, ``(..., *entries)``."""
    dims = output.ndim  # replicas and batch, in front of a target's entries
    if (
        output.shape[-1:] != (dim,)
        or target.shape[: dims - 1] != output.shape[:-1]
        or target.shape[dims:] != entries
    ):
        expected = (*output.shape[:-1], "batch", *entries)
        raise ValueError(
            f"expected the output x, shape (*replicas, {dim}), and data of shape "
            f"{expected} from this problem's sample(), got {tuple(output.shape)} and "
            f"{tuple(target.shape)}"
        )


class DenseTensors:
    """Tensors Y = lambda v^k + W, all n^k entries of them.

    Args:
        spike: lambda v^k.
        device, dtype: those of the data; one tensor has to fit in memory there.

    Raises:
        ValueError: if one tensor does not fit there.
    """

    def __init__(self, spike: Spike, device: torch.device, dtype: torch.dtype) -> None:
        self.spike = spike
        self.entries = (spike.dim,) * spike.order
        # for every device and dtype: lambda v^k, and how many tensors fit
        self._spikes: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._fitting: dict[tuple[torch.device, torch.dtype], int] = {}
        self._check_memory(1, device, dtype)

    def sample(self, shape: tuple[int, ...], **normal: Any) -> Float[Tensor, "*shape ..."]:
        """Fresh tensors; ValueError if they do not fit in memory.

        Args:
            shape: the leading dimensions.
            normal: generator, device and dtype, as for torch.randn.
        """
        self._check_memory(math.prod(shape), normal["device"], normal["dtype"])
        return self._add_spike(torch.randn(*shape, *self.entries, **normal))

    def loss(
        self, x: Float[Tensor, "*replicas n"], target: Float[Tensor, "*replicas batch ..."]
    ) -> Float[Tensor, ""]:
        """||Y - x^k||^2, without ever making x^k."""
        batch_dims = x.ndim  # replicas and batch, in front of the tensor
        order, dim = len(self.entries), self.entries[0]
        fit = target.flatten(batch_dims)
        for _ in range(order):  # <Y, x^k>, one index after the other
            fit = (fit.unflatten(-1, (-1, dim)) @ x[..., None, :, None]).squeeze(-1)
        size = x.square().sum(-1) ** order
        data = target.square().sum()
        return (data - 2 * fit.sum()) / target.shape[batch_dims - 1] + size.sum()

    def _add_spike(self, noise: Tensor) -> Tensor:
        """W + lambda v^k, in place."""
        if self.spike.on_axis:  # one entry
            noise[(..., *(0,) * self.spike.order)] += self.spike.snr
            return noise
        key = (noise.device, noise.dtype)
        if key not in self._spikes:
            self._spikes[key] = self.spike.tensor(noise)
        return noise.add_(self._spikes[key])

    def _check_memory(self, tensors: int, device: torch.device, dtype: torch.dtype) -> None:
        """Raise ValueError if so many tensors and the spike do not fit; done once for each size."""
        if tensors <= self._fitting.get((device, dtype), 0):
            return
        dim, order = self.entries[0], len(self.entries)
        entries = dim**order * (tensors + (not self.spike.on_axis))
        needed, free = entries * dtype.itemsize, _free_memory(device)
        if needed > 0.9 * free:
            raise ValueError(
                f"expected dense tensors that fit in the {free / 2**30:.1f} GiB free on {device}, "
                f"got dim={dim}, order={order}: {tensors} of {dim}^{order} "
                f"entries need {needed / 2**30:.1f} GiB. Use sampler='implicit', which draws "
                f"{dim} normals a step and has the same law"
            )
        self._fitting[device, dtype] = tensors


class ImplicitNoise:
    """n normals for each sample, from which the loss makes the gradient noise at x.

    Value and gradient of the loss have the law of the dense ones jointly, less the ||Y||^2 that x
    has no influence on.

    Args:
        spike: lambda v^k.
    """

    def __init__(self, spike: Spike) -> None:
        self.spike = spike
        self.entries = (spike.dim,)

    def sample(self, shape: tuple[int, ...], **normal: Any) -> Float[Tensor, "*shape n"]:
        """Fresh normals; arguments as in `DenseTensors.sample`."""
        return torch.randn(*shape, *self.entries, **normal)

    def loss(
        self, x: Float[Tensor, "*replicas n"], target: Float[Tensor, "*replicas batch n"]
    ) -> Float[Tensor, ""]:
        """Phi(x) + <x, G>, its value corrected to Phi(x) + H(x)."""
        batch = target.shape[-2]
        with torch.no_grad():
            noise = self._gradient_noise(x[..., None, :], target)
            # H is homogeneous of degree k: <x, grad H> = k H, and the loss has H, not k H
            excess = (1 - 1 / self.spike.order) * (noise @ x[..., None]).sum()
        linear = (noise * x[..., None, :]).sum()
        return (batch * self._population_loss(x).sum() + linear - excess) / batch

    def _population_loss(self, x: Tensor) -> Tensor:
        """Phi less its constant: R^{2k} - 2 lambda m^k."""
        k = self.spike.order
        m = x @ self.spike.beside(x)
        return x.square().sum(-1) ** k - 2 * self.spike.snr * m**k

    def _gradient_noise(self, x: Tensor, normal: Tensor) -> Tensor:
        """grad H at x: 2 k R^{k-1} times a normal along x, 2 sqrt(k) R^{k-1} across."""
        k = self.spike.order
        radius = x.norm(dim=-1, keepdim=True)
        unit = x / radius.clamp_min(torch.finfo(x.dtype).tiny)
        along = (normal * unit).sum(-1, keepdim=True) * unit
        return 2 * k**0.5 * radius ** (k - 1) * (normal + (k**0.5 - 1) * along)


def _free_memory(device: torch.device) -> int:
    """Bytes that an allocation may take; all of the machine's if the system does not say."""
    if device.type == "cuda":
        # memory that torch holds and does not use is free to us as well
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

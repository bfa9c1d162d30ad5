"""`Spike`: the direction v that spiked PCA looks for, on the devices of its estimates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks


class Spike:
    r"""The rank-one tensor :math:`\lambda v^{\otimes k}`.

    Args:
        dim, order, snr: n, k, lambda.
        direction: v: ``"axis"`` (the first), ``"random"`` or a unit vector ``(n,)``.
        generator: of a random direction.

    Raises:
        ValueError: if a number is out of its range, or the direction is not a unit vector.
    """

    def __init__(
        self, dim: int, order: int, snr: float | Tensor, direction: str | Tensor,
        generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        self.dim = _checks.positive_int("dim", dim)
        self.order = _checks.positive_int("order", order)
        if order < 2:
            raise ValueError(f"expected order >= 2 (2 is matrix PCA), got {order}")
        if dim < 2:
            raise ValueError(f"expected dim >= 2, got {dim}: r2 needs a direction besides v")
        self.snr = _checks.positive("snr", _checks.plain(snr))
        self.direction = _unit_vector(direction, dim, generator)
        # v on every device, and in every dtype, that a model has
        self.kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    @property
    def on_axis(self) -> bool:
        """Whether v is the first axis."""
        return float(self.direction[0]) == 1.0

    def keep_beside(self, x: Tensor) -> None:
        """Keep a copy of v on the device and in the dtype of x.

        A loss must not do so: a CUDA graph cannot hold a copy from the host, and what torch.func or
        torch.compile makes inside must not be kept.
        """
        self.kept[x.device, x.dtype] = self.direction.to(x)

    def beside(self, x: Tensor) -> Float[Tensor, " n"]:
        """v on the device and in the dtype of x; a kept copy is used again."""
        v = self.kept.get((x.device, x.dtype))
        return self.direction.to(x) if v is None else v

    def tensor(self, like: Tensor) -> Tensor:
        """lambda v^k, all n^k entries, on the device and in the dtype of another tensor."""
        v = self.direction.to(like)
        spike = self.snr * v
        for _ in range(self.order - 1):
            spike = spike[..., None] * v
        return spike

    def placed(self, x: Float[Tensor, "*batch n"], m: float, r2: float) -> Tensor:
        """The vectors with statistics (m, r2) whose part across v has the direction of x's.

        Raises:
            ValueError: if m is not finite, or r2 not a finite number >= 0.
        """
        _checks.non_negative("r2", r2, "at is (m, r2), and r2 a squared length")
        if not isinstance(m, (int, float)) or not math.isfinite(m):
            raise ValueError(f"expected at=(m, r2) with a finite m, got m={m!r}")
        v = self.direction.to(x)
        across = x - (x @ v)[..., None] * v
        return m * v + r2**0.5 * across / across.norm(dim=-1, keepdim=True)


def _unit_vector(
    direction: str | Tensor, dim: int, generator: torch.Generator | None
) -> Float[Tensor, " n"]:
    """A unit vector: the first axis, a random one, or what the user gave, which is checked."""
    if isinstance(direction, str):
        if direction == "axis":
            return torch.eye(1, dim, dtype=torch.float64, device="cpu")[0]
        if direction == "random":
            v = torch.randn(dim, generator=generator, dtype=torch.float64, device="cpu")
            return v / v.norm()
        raise ValueError(f"expected direction 'axis', 'random' or a vector, got {direction!r}")
    v = _checks.float64("direction", direction)
    if v.shape != (dim,) or not abs(float(v.norm()) - 1) < 1e-6:
        raise ValueError(
            f"expected direction as a unit vector of shape ({dim},), got shape {tuple(v.shape)} "
            f"and length {float(v.norm()):.6g}: divide it by its norm"
        )
    return v

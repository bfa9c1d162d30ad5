"""`Normals`: standard normal variables in float64, many at once, and lengths of vectors of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Normals:
    """Independent standard normal variables, and chi variables, in float64.

    On a CPU they come from NumPy: the generator SFC64, normals by the ziggurat method, chi-squares
    by that of Marsaglia and Tsang. torch.randn makes float64 one by one and takes four times as
    long, its Mersenne Twister with `box_muller` on whole arrays twice as long. On other devices it
    is `box_muller`.

    Args:
        generator: the source of randomness: of a key of NumPy's stream, drawn here, on a CPU.
        device: the device of the numbers, the generator's.

    Example:
        >>> seed = torch.Generator().manual_seed(0)
        >>> normals = Normals(seed, torch.device("cpu"))
        >>> z, length = normals.draw((2, 3)), normals.lengths(1e12, (4,))
        >>> z.shape, z.dtype, bool(((length - 1e6).abs() < 10).all())
        (torch.Size([2, 3]), torch.float64, True)
    """

    def __init__(self, generator: torch.Generator | None, device: torch.device) -> None:
        self.generator, self.device = generator, device
        self._fast: np.random.Generator | None = None
        if device.type == "cpu":
            words = torch.randint(2**62, (2,), generator=generator, device=device)
            self._fast = np.random.Generator(np.random.SFC64(words.tolist()))

    def draw(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Standard normal variables.

        Args:
            shape: the shape of the result.
        """
        if self._fast is None:
            return box_muller(shape, generator=self.generator, device=self.device)
        return torch.from_numpy(self._fast.standard_normal(tuple(shape)))

    def lengths(
        self, freedom: float | Float[Tensor, "*given"], shape: Sequence[int]
    ) -> Float[Tensor, "*shape"]:
        """Lengths of vectors of so many standard normal variables, to full relative precision.

        Args:
            freedom: the number of variables, above 0 and up to 10^15; it is broadcast to the shape.
            shape: the shape of the result.
        """
        half = torch.as_tensor(freedom, dtype=torch.float64, device=self.device) / 2
        if self._fast is None:
            half = half.expand(tuple(shape)).contiguous()
            # torch.distributions takes no generator
            gamma = torch._standard_gamma(half, generator=self.generator)  # pyright: ignore
        else:
            gamma = torch.from_numpy(self._fast.standard_gamma(half.numpy(), tuple(shape)))
        return gamma.mul_(2).sqrt_()


def box_muller(
    shape: Sequence[int], *, generator: torch.Generator | None, device: torch.device
) -> Float[Tensor, "*shape"]:
    """Independent standard normal variables, by Box and Muller, in float64.

    Args:
        shape: the shape of the result.
        generator: the source of randomness.
        device: the device of the result, the generator's.

    Example:
        >>> box_muller((2, 3), generator=None, device=torch.device("cpu")).shape
        torch.Size([2, 3])
    """
    count = math.prod(shape)
    uniform = torch.rand(
        2, (count + 1) // 2, generator=generator, dtype=torch.float64, device=device
    )
    # 1 - u is in (0, 1], whose logarithm is finite
    radius = uniform[0].neg_().add_(1).log_().mul_(-2).sqrt_()
    angle = uniform[1].mul_(2 * math.pi)
    pairs = torch.stack([angle.cos(), angle.sin_()]).mul_(radius)
    return pairs.flatten()[:count].reshape(tuple(shape))

"""`MixtureFigure`: what differs between figures 2 and 3, `BINARY` and `XOR`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchlimits.problems.mixture.problem import GaussianMixture


@dataclass(frozen=True)
class MixtureFigure:
    """What differs between figures 2 and 3."""

    number: str
    cost: float
    """about how many seconds one core takes for the runs from random starts"""
    make: Callable[..., GaussianMixture]
    width: int
    snr: float
    time: float
    classes: tuple[int, ...]
    """which mean each neuron serves on the rings around which the diffusion is looked at"""
    planes: tuple[tuple[str, str], ...]
    """statistics whose rescaled values are drawn against each other"""
    endpoints: tuple[str, str]

    @property
    def name(self) -> str:
        """The name of the picture and of the folder."""
        return f"figure{self.number}"


BINARY = MixtureFigure(
    number="2",
    cost=20.0,
    make=GaussianMixture.binary,
    width=2,
    snr=100.0,
    time=60.0,
    classes=(0, 0),
    planes=(("v[0]", "v[1]"), ("v[0]", "m[0,0]")),
    endpoints=("m[0,0]", "m[1,0]"),
)
XOR = MixtureFigure(
    number="3",
    cost=70.0,
    make=GaussianMixture.xor,
    width=4,
    snr=1000.0,
    time=120.0,
    classes=(0, 0, 2, 2),
    planes=(("v[0]", "v[1]"), ("v[0]", "v[2]")),
    endpoints=("m[0,0]", "m[1,0]"),
)

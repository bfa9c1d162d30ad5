"""The problems that ``torchlimits run`` knows, with their options: `Xor`, `Binary` ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torchlimits.cli.networks import Network, TeacherStudent
from torchlimits.cli.options import Options

if TYPE_CHECKING:
    from torchlimits.problems.mixture.problem import GaussianMixture
    from torchlimits.problems.spiked.problem import SpikedTensor


@dataclass(kw_only=True)
class _Mixture(Options):
    step_size: float = 2.0
    time: float = 10.0
    ridge: float = 0.05
    """The ridge alpha, which is the weight decay of SGD."""
    directions: Literal["axis", "random"] = "axis"
    """Whether the means lie on coordinate axes or in random directions."""

    def problem(self, device: str) -> GaussianMixture:
        import torch

        from torchlimits.problems.mixture.problem import GaussianMixture

        options: Any = {key: getattr(self, key) for key in ("snr", "ridge", "directions")}
        width: int = getattr(self, "width")  # noqa: B009
        make = GaussianMixture.xor if isinstance(self, Xor) else GaussianMixture.binary
        generator = torch.Generator().manual_seed(self.seed)
        return make(self.dim, width, generator=generator, device=device, **options)


@dataclass(kw_only=True)
class Xor(_Mixture):
    """Train a two-layer network on the XOR mixture: means +mu, -mu (label 1), +nu, -nu (label 0).

    This is the problem of section 5 of arXiv 2206.04030.
    """

    snr: float = 8.0
    """The signal-to-noise ratio lambda."""
    width: int = 4
    """The number K of hidden units."""


@dataclass(kw_only=True)
class Binary(_Mixture):
    """Train a two-layer network on the binary mixture: means +mu (label 1), -mu (label 0).

    This is the problem of section 4 of arXiv 2206.04030.
    """

    snr: float = 2.0
    """The signal-to-noise ratio lambda."""
    width: int = 2
    """The number K of hidden units."""


@dataclass(kw_only=True)
class _Spiked(Options):
    def problem(self, device: str) -> SpikedTensor:
        from torchlimits.problems.spiked.problem import SpikedTensor

        order: int = getattr(self, "order", 2)
        snr: float = getattr(self, "snr")  # noqa: B009
        return SpikedTensor(self.dim, order, snr=snr, device=device)


@dataclass(kw_only=True)
class Matrix(_Spiked):
    """Recover the spike of a noisy matrix (matrix PCA).

    This is the problem of section 3 of arXiv 2206.04030 at order 2.
    """

    snr: float = 2.0
    """The signal-to-noise ratio lambda. The critical snr is step_size."""


@dataclass(kw_only=True)
class Tensor(_Spiked):
    """Recover the spike of a noisy tensor (tensor PCA).

    This is the problem of section 3 of arXiv 2206.04030 at order 3 or more.
    """

    step_size: float = 0.5
    time: float = 1.0
    snr: float = 6.0
    """The signal-to-noise ratio lambda."""
    order: int = 3
    """The order k of the tensor."""


#: the problems, by their names on the command line
PROBLEMS = {kind().name: kind for kind in (Xor, Binary, Matrix, Tensor, Network, TeacherStudent)}


def options_of(described: dict[str, Any]) -> Options:
    """Return the options that `Options.described` has described.

    Raises:
        ValueError: if they are not the options of a run.

    Example:
        >>> options_of(Matrix(snr=3.0).described()).label
        'snr3-lr1'
    """
    rest = dict(described)
    if isinstance(rest.get("band"), bool):  # as earlier versions wrote it
        rest["band"] = "linear" if rest["band"] else "none"
    try:
        return PROBLEMS[rest.pop("problem")](**rest)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected the options of a run, got {described}: another version wrote them"
        ) from error

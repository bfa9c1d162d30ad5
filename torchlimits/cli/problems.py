"""The problems that ``torchlimits run`` knows, with their options: `Xor`, `Binary` ..."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

if TYPE_CHECKING:
    from torchlimits.problems.mixture.problem import GaussianMixture
    from torchlimits.problems.spiked.problem import SpikedTensor


@dataclass(kw_only=True)
class Options:
    """What all problems have in common."""

    dim: int = 1000
    """The dimension N of the data."""
    step_size: float = 1.0
    """The constant c_delta of the learning rate, which is c_delta / dim."""
    time: float = 2.0
    """The limit time to train for: the number of steps times the learning rate."""
    start: Literal["informed", "random"] = "informed"
    """Start off the saddle, where theory holds from the first step on, or at random, near it."""
    runs: int = 1
    """The number of independent runs. Random starts differ from run to run."""
    seed: int = 0
    """The seed of starts and data."""
    corrector: bool = True
    """Predict with the population corrector; --no-corrector predicts gradient flow instead."""
    band: bool = True
    """Shade where 95 % of runs at this dimension are. For xor this takes seconds for each start."""
    device: str = "auto"
    """The device to train on; auto takes CUDA where there is one."""
    shown: int = 3
    """The largest number of runs that TensorBoard shows."""
    logdir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder to write to; by default a new one such as runs/xor/0001-snr8-lr2."""
    open: Annotated[bool, FlagCreatePairsOff] = False
    """Start TensorBoard at the end, and open it in the browser."""

    @property
    def name(self) -> str:
        """What the command line calls the problem."""
        return type(self).__name__.lower()

    @property
    def label(self) -> str:
        """What tells the run from others, for the name of its folder."""
        told = {"snr": "snr", "step_size": "lr"}
        parts = [f"{short}{_short(getattr(self, key))}" for key, short in told.items()]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in {*told, *_NOT_TOLD} and value != field.default:
                parts.append(_part(field.name, value))
        return "-".join(parts)

    def described(self) -> dict[str, Any]:
        """Return the options that make the numbers what they are, for run.json."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("logdir", "open")}
        return {"problem": self.name, **kept}

    def check(self) -> None:
        """Raise ValueError for numbers that no training has, before a folder is made."""
        from torchlimits import _checks

        for name in ("dim", "runs", "shown"):
            _checks.positive_int(name, getattr(self, name))
        _checks.positive("step_size", self.step_size, "the learning rate is step_size / dim")
        _checks.positive("time", self.time, "limit time is steps * lr")
        if self.seed < 0:
            raise ValueError(f"expected seed as an int >= 0, got {self.seed}")
        if round(self.time * self.dim / self.step_size) < 1:
            raise ValueError(
                f"expected time for at least one step, {self.step_size / self.dim:g}, got "
                f"{self.time:g}: give a longer --time"
            )

    def problem(self, device: str) -> GaussianMixture | SpikedTensor:
        """Make the problem.

        Args:
            device: where its data and models are.
        """
        raise NotImplementedError


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

    The problem of section 5 of arXiv 2206.04030.
    """

    snr: float = 8.0
    """The signal-to-noise ratio lambda."""
    width: int = 4
    """The number K of hidden units."""


@dataclass(kw_only=True)
class Binary(_Mixture):
    """Train a two-layer network on the binary mixture: means +mu (label 1), -mu (label 0).

    The problem of section 4 of arXiv 2206.04030.
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

    The problem of section 3 of arXiv 2206.04030 at order 2.
    """

    snr: float = 2.0
    """The signal-to-noise ratio lambda. The critical one is step_size."""


@dataclass(kw_only=True)
class Tensor(_Spiked):
    """Recover the spike of a noisy tensor (tensor PCA).

    The problem of section 3 of arXiv 2206.04030 at order 3 or more.
    """

    step_size: float = 0.5
    time: float = 1.0
    snr: float = 6.0
    """The signal-to-noise ratio lambda."""
    order: int = 3
    """The order k of the tensor."""


#: by what the command line calls them
PROBLEMS = {kind.__name__.lower(): kind for kind in (Xor, Binary, Matrix, Tensor)}

#: they change no number
_NOT_TOLD = {"logdir", "open", "device", "shown", "band"}


def options_of(described: dict[str, Any]) -> Options:
    """Return the options that `Options.described` told of.

    Raises:
        ValueError: if they are not such.

    Example:
        >>> options_of(Matrix(snr=3.0).described()).label
        'snr3-lr1'
    """
    rest = dict(described)
    try:
        return PROBLEMS[rest.pop("problem")](**rest)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"expected the options of a run, got {described}: another version wrote them"
        ) from error


def _part(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{value}" if name == "start" else f"{name}{_short(value)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""`Options`: what all problems of ``torchlimits run`` have in common."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

if TYPE_CHECKING:
    from torch import Tensor

    from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
    from torchlimits.problems.problem import Problem

#: options that change no number
_NOT_TOLD = {"logdir", "open", "device", "shown", "band"}
#: characters of a text in a folder's name, at most
_LONG = 40


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
    """Start away from the saddle, where theory holds from the first step, or at random, near it."""
    runs: int = 1
    """The number of independent runs. Random starts differ from run to run."""
    seed: int = 0
    """The seed of starts and data."""
    corrector: bool = True
    """Predict with the population corrector; --no-corrector predicts gradient flow instead."""
    band: Literal["law", "linear", "none"] = "law"
    """What tells where 95 % of runs at this dimension are: their law, by 2000 paths of the exact
    chain, which is right near saddles too (seconds; of at most 4 different starts); or the linear
    approximation."""
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
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()

    @property
    def title(self) -> str:
        """The title of pictures."""
        return self.name

    @property
    def label(self) -> str:
        """What distinguishes the run from others, for the name of its folder."""
        told = {"head": "", "snr": "snr", "step_size": "lr"}
        parts = [
            f"{short}{_short(getattr(self, key))}" for key, short in told.items()
            if hasattr(self, key)
        ]  # fmt: skip
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
        """Raise ValueError for numbers that no training can have, before a folder is made."""
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

    def problem(self, device: str) -> Problem:
        """Make the problem.

        Args:
            device: where its data and models are.
        """
        raise NotImplementedError

    def optimizer(self) -> Callable[[Any], Any] | None:
        """What makes the optimizer of parameters; None stands for SGD."""
        return None

    def performance(self, dynamics: EffectiveDynamics) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return functions of u that tell how good a model is, by name; they are drawn too.

        Args:
            dynamics: the problem's dynamics.
        """
        return {}


def _part(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no{name}"
    return f"{value}" if name == "start" else f"{name}{_short(value)}"


def _short(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"[^\w.+]+", "_", Path(str(value)).name)[:_LONG]

"""`AdaptiveSettings`: what the options of an optimizer with second moments do to the dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torchlimits import _checks

#: 1/(1 - beta_2), the number of steps that a second moment remembers, at least
SHORTEST = 50


@dataclass(frozen=True)
class AdaptiveSettings:
    r"""The constants of one parameter group of Adam, AdamW, RMSprop or Adagrad.

    Args:
        kind: one of `SECOND_MOMENTS`.
        step_size: c_delta = lr * N.
        memory: beta_2, or RMSprop's alpha; 1 where squares are summed.
        eps: what is added to the root.
        weight_decay: lambda, coupled: a part of the gradient.
        decay: omega, decoupled.
        momentum: RMSprop's, behind the division.
        initial: the second moment of a fresh optimizer.
        batch_size: B.
        maximize: ascend the loss.

    Raises:
        ValueError: if an option has no limit, or a number is out of range.

    Example:
        >>> AdaptiveSettings("Adam", step_size=1.0, memory=0.999, eps=1e-8).speed
        1.0
        >>> AdaptiveSettings("Adam", step_size=1.0, memory=0.9, eps=1e-8)
        Traceback (most recent call last):
        ValueError: expected second moments that remember at least 50 steps, 1/(1 - 0.9) ...
    """

    kind: str
    step_size: float
    memory: float
    eps: float
    weight_decay: float = 0.0
    decay: float = 0.0
    momentum: float = 0.0
    initial: float = 0.0
    batch_size: int = 1
    maximize: bool = False

    def __post_init__(self) -> None:
        for name in ("step_size", "eps", "weight_decay", "decay", "momentum", "initial"):
            _checks.non_negative(name, getattr(self, name))
        if self.momentum >= 1:
            raise ValueError(
                f"expected momentum < 1 in {self.kind}, got {self.momentum:g}: moves would add up "
                "without end"
            )
        if self.kind != "Adagrad" and SHORTEST * (1 - self.memory) > 1 + 1e-9:
            raise ValueError(
                f"expected second moments that remember at least {SHORTEST} steps, "
                f"1/(1 - {self.memory:g}) is {1 / (1 - self.memory):.3g}: with fewer, what a step "
                "divides by is as random as its gradient, and the dynamics are not known "
                "(recording works: tl.track)"
            )
        if self.kind == "Adagrad" and self.initial == 0:
            raise ValueError(
                "expected initial_accumulator_value > 0 in Adagrad, of the order of N, got 0: the "
                "first steps then have a size of their own and R grows like log N, so that there "
                "is no limit (recording works: tl.track)"
            )

    @classmethod
    def of_group(
        cls, group: Mapping[str, Any], kind: str, dim: int, batch_size: int = 1
    ) -> AdaptiveSettings:
        """The settings of one parameter group.

        Args:
            group: of ``optimizer.param_groups``.
            kind: one of `SECOND_MOMENTS`.
            dim: N.
            batch_size: B.

        Raises:
            ValueError: if an option has no known limit.
        """
        for option, why in (
            ("amsgrad", "the largest second moment so far has no known limit here"),
            ("centered", "the variance of gradients has no known limit here"),
            ("lr_decay", "give the decay as a schedule"),
        ):
            if group.get(option):
                raise ValueError(
                    f"expected {option}={type(group[option])()} for a prediction, got "
                    f"{group[option]}: {why} (recording works: tl.track)"
                )
        decoupled = bool(group.get("decoupled_weight_decay"))
        ridge = float(group["weight_decay"])
        memory = group["betas"][1] if kind == "Adam" else group.get("alpha", 1.0)
        return cls(
            kind=kind,
            step_size=float(group["lr"]) * dim,
            memory=float(memory),
            eps=float(group["eps"]),
            weight_decay=0.0 if decoupled else ridge,
            decay=ridge if decoupled else 0.0,
            momentum=float(group.get("momentum", 0.0)),
            initial=float(group.get("initial_accumulator_value", 0.0)),
            batch_size=batch_size,
            maximize=bool(group["maximize"]),
        )

    @property
    def ridge(self) -> float:
        """The weight decay, coupled or not."""
        return self.weight_decay + self.decay

    @property
    def speed(self) -> float:
        """1/(1 - momentum), the factor of moves behind the division."""
        return 1 / (1 - self.momentum)

    @property
    def sign(self) -> float:
        """1 where the loss is minimised, -1 where it is maximised."""
        return -1.0 if self.maximize else 1.0

    def describe(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold."""
        return asdict(self)

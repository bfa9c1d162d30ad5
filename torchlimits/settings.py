"""`SGDSettings`: what the options of torch.optim.SGD do to the effective dynamics."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from torchlimits import checks


@dataclass(frozen=True)
class SGDSettings:
    r"""The constants of one SGD run, in the limit n -> infinity.

    With momentum beta, dampening tau and batches of B fresh samples, put q = (1 - tau)/(1 - beta):
    the drift becomes :math:`-q f` and the corrector :math:`c_\delta q^2 g / B`.

    Source: sections 1 to 5 of arXiv 2206.04030 for plain SGD; for momentum, after its buffer has
    settled (in O(1) steps) the parameters move by q times the gradients' sum, so one effective
    step has size q delta: q steps of drift and q^2 of quadratic variation a step.

    Args:
        step_size: c_delta = lr * n; 0 is the subcritical limit, gradient flow.
        momentum: beta in [0, 1), plain or Nesterov.
        dampening: tau in [0, 1).
        weight_decay: alpha, the ridge.
        batch_size: B, samples averaged in one step.

    Raises:
        ValueError: if one is out of range.

    Example:
        >>> SGDSettings(step_size=1.0, momentum=0.5).corrector_factor
        4.0
    """

    step_size: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 1

    def __post_init__(self) -> None:
        checks.non_negative("step_size", self.step_size, "it is c_delta = lr * dim")
        checks.non_negative("weight_decay", self.weight_decay)
        checks.positive_int("batch_size", self.batch_size)
        for name in ("momentum", "dampening"):
            if not checks.non_negative(name, getattr(self, name)) < 1:
                raise ValueError(f"expected {name} in [0, 1), got {getattr(self, name)}")

    @classmethod
    def of(cls, optimizer: object, dim: int, batch_size: int = 1) -> SGDSettings:
        """Read them from a `torch.optim.SGD`.

        Raises:
            TypeError: if it is another optimizer.
            ValueError: if its options have no limit in this package.
        """
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(
                f"expected a torch.optim.SGD, got {type(optimizer).__name__}: its effective "
                "dynamics are not known to this package (recording works with any optimizer)"
            )
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        options = ("lr", "momentum", "dampening", "weight_decay", "maximize")
        for option in options:
            values = {float(group[option]) for group in groups}
            if len(values) > 1:
                raise ValueError(
                    f"expected one {option} for all parameter groups, got {sorted(values)}: "
                    "the dynamics of layers with their own settings are not in this package yet"
                )
        group = groups[0]
        if group["maximize"]:
            raise ValueError("expected SGD that minimises, got maximize=True: negate the loss")
        return cls(
            step_size=float(group["lr"]) * dim,
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]) if group["momentum"] else 0.0,
            weight_decay=float(group["weight_decay"]),
            batch_size=batch_size,
        )

    @classmethod
    def chosen(
        cls,
        optimizer: object | None,
        *,
        dim: int,
        ridge: float,
        step_size: float | None,
        momentum: float = 0.0,
        batch_size: int = 1,
    ) -> SGDSettings:
        """Those of an optimizer, or those given by numbers, for a problem's ``dynamics(...)``.

        An optimizer whose weight decay is not the problem's ridge draws a warning; its own counts.

        Raises:
            ValueError: if not exactly one of optimizer and step_size is given, or their values
                are out of range.
            TypeError: if the optimizer is not SGD.
        """
        if (optimizer is None) == (step_size is None):
            raise ValueError("expected either an optimizer or step_size=c_delta, got both or none")
        if optimizer is None:
            assert step_size is not None
            return cls(step_size, momentum, weight_decay=ridge, batch_size=batch_size)
        settings = cls.of(optimizer, dim, batch_size)
        if abs(settings.weight_decay - ridge) > 1e-12 + 1e-6 * ridge:
            warnings.warn(
                f"the optimizer's weight_decay={settings.weight_decay:g} is not the problem's "
                f"ridge={ridge:g}: the prediction takes the optimizer's, which is what trains",
                stacklevel=3,
            )
        if momentum not in (0.0, settings.momentum):
            raise ValueError(
                f"expected momentum from the optimizer ({settings.momentum}), got {momentum} "
                "beside it: leave it out"
            )
        return settings

    @property
    def drift_factor(self) -> float:
        """q = (1 - tau)/(1 - beta)."""
        return (1 - self.dampening) / (1 - self.momentum)

    @property
    def corrector_factor(self) -> float:
        """c_delta q^2 / B."""
        return self.step_size * self.drift_factor**2 / self.batch_size

    @property
    def effective_step_size(self) -> float:
        """c_delta q / B: plain SGD with this c_delta has the same orbits, run q times slower."""
        return self.step_size * self.drift_factor / self.batch_size

    def describe(self) -> dict[str, Any]:
        """The settings as a dict."""
        return asdict(self)

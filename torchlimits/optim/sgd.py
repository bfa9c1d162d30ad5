"""`SGDSettings`: what the options of torch.optim.SGD do to the effective dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.listed import groups_of, listed
from torchlimits.optim.normalized_sgd import NormalizedSGD
from torchlimits.optim.sign_sgd import SignSGD

#: options in which parameter groups may differ
_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "maximize")


@dataclass(frozen=True)
class SGDSettings:
    r"""The constants of one SGD run, in the limit n -> infinity.

    With momentum beta, dampening tau and batches of B fresh samples, put q = (1 - tau)/(1 - beta):
    the drift becomes :math:`-q f` and the corrector :math:`c_\delta q^2 g / B`. ``maximize``
    reverses the loss's part of the drift, not the ridge's, and not the corrector, which is
    quadratic in the gradient.

    Source: sections 1 to 5 of arXiv 2206.04030 for plain SGD; for momentum, after its buffer has
    settled (in O(1) steps) the parameters move by q times the gradients' sum, so one effective
    step has size q delta: q steps of drift and q^2 of quadratic variation a step. Nesterov's
    momentum moves them by the same sum, so it has the same limit.

    The numbers may be tensors of shape () that require a gradient; predictions then have one.

    Args:
        step_size: c_delta = lr * n; 0 is the subcritical limit, gradient flow.
        momentum: beta in [0, 1), plain or Nesterov.
        dampening: tau in [0, 1).
        weight_decay: alpha, the ridge.
        batch_size: B, samples averaged in one step.
        maximize: ascend the loss.
        normalized: gradients are scaled to the length sqrt(n), `NormalizedSGD`.
        nesterov: momentum is Nesterov's; only steps at a finite n depend on it.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> SGDSettings(step_size=1.0, momentum=0.5).corrector_factor
        4.0
    """

    step_size: float | Tensor
    momentum: float | Tensor = 0.0
    dampening: float | Tensor = 0.0
    weight_decay: float | Tensor = 0.0
    batch_size: int = 1
    maximize: bool = False
    normalized: bool = False
    nesterov: bool = False

    def __post_init__(self) -> None:
        hints = {"step_size": "it is c_delta = lr * dim"}
        for name in ("step_size", "weight_decay", "momentum", "dampening"):
            given = getattr(self, name)
            number = _checks.graph_or_non_negative(name, given, hints.get(name, ""))
            if name in ("momentum", "dampening") and not number < 1:
                raise ValueError(f"expected {name} in [0, 1), got {given}")
            if _checks.requires_grad(given):
                object.__setattr__(self, name, number)
        _checks.positive_int("batch_size", self.batch_size)

    @classmethod
    def of(cls, optimizer: object, dim: int, batch_size: int = 1) -> SGDSettings:
        """Read them from a `torch.optim.SGD` or a `NormalizedSGD`.

        Raises:
            TypeError: if it is another optimizer.
            ValueError: if its parameter groups differ, or an option has no limit.
        """
        groups = parameter_groups(optimizer)
        for option in _OPTIONS:
            values = {float(group[option]) for group in groups}
            if len(values) > 1:
                raise ValueError(
                    f"expected one {option} for all parameter groups, got {sorted(values)}: "
                    "parameters with their own settings are known for networks, that is for "
                    "GaussianMixture.dynamics and NetworkProblem.dynamics"
                )
        return cls.of_group(
            groups[0], dim, batch_size, normalized=isinstance(listed(optimizer)[0], NormalizedSGD)
        )

    @classmethod
    def of_group(
        cls, group: Mapping[str, Any], dim: int, batch_size: int = 1, *, normalized: bool = False
    ) -> SGDSettings:
        """The settings of one parameter group of a `torch.optim.SGD`.

        Raises:
            ValueError: if an option has no limit.
        """
        return cls(
            step_size=_number(group["lr"]) * dim,
            momentum=_number(group["momentum"]),
            dampening=_number(group["dampening"]) if group["momentum"] else 0.0,
            weight_decay=_number(group["weight_decay"]),
            batch_size=batch_size,
            maximize=bool(group["maximize"]),
            normalized=normalized,
            nesterov=bool(group["momentum"]) and bool(group["nesterov"]),
        )

    @classmethod
    def chosen(
        cls, optimizer: object | None, dim: int, ridge: float | Tensor,
        step_size: float | Tensor | None, momentum: float | Tensor = 0.0, batch_size: int = 1,
    ) -> SGDSettings:  # fmt: skip
        """Settings of an optimizer, or those given by numbers, for a problem's ``dynamics(...)``.

        An optimizer's weight decay counts, with a warning if it is not the problem's ridge.

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
        settings.check_beside(ridge=ridge, momentum=momentum)
        return settings

    def check_beside(
        self, *, ridge: float | Tensor, momentum: float | Tensor, layer: str = ""
    ) -> None:
        """Compare what was read from an optimizer with the problem's ridge and a given momentum.

        Warns if the ridge differs.

        Raises:
            ValueError: if the momentum differs, or a number requires a gradient.
        """
        for name, value in (("ridge", ridge), ("momentum", momentum)):
            if _checks.requires_grad(value):
                raise ValueError(
                    f"expected {name} as a number beside an optimizer, whose own option counts, "
                    "got a tensor that requires a gradient, which would be lost: give step_size= "
                    "in place of the optimizer, or x.detach()"
                )
        if abs(self.weight_decay - ridge) > 1e-12 + 1e-6 * ridge:
            _checks.warn_user(
                f"the optimizer's weight_decay={self.weight_decay:g}{layer} is not the problem's "
                f"ridge={ridge:g}: the prediction takes the optimizer's, which is what trains"
            )
        if momentum not in (0.0, _checks.plain(self.momentum)):
            raise ValueError(
                f"expected momentum from the optimizer ({self.momentum}{layer}), got {momentum} "
                "beside it: leave it out"
            )

    def check_plain(self, what: str) -> None:
        """Raise ValueError if the gradient is not the loss's own, but maximised or normalised."""
        for option in ("maximize", "normalized"):
            if getattr(self, option):
                raise ValueError(
                    f"expected plain SGD for {what}, got {option}=True: "
                    + ("negate the loss" if option == "maximize" else "use problem.dynamics(...)")
                )

    @property
    def sign(self) -> float:
        """1 where the loss is minimised, -1 where it is maximised."""
        return -1.0 if self.maximize else 1.0

    @property
    def drift_factor(self) -> float | Tensor:
        """q = (1 - tau)/(1 - beta)."""
        return (1 - self.dampening) / (1 - self.momentum)

    @property
    def corrector_factor(self) -> float | Tensor:
        """c_delta q^2 / B."""
        return self.step_size * self.drift_factor**2 / self.batch_size

    @property
    def effective_step_size(self) -> float | Tensor:
        """c_delta q / B: plain SGD with this c_delta has the same orbits, q times as slow."""
        return self.step_size * self.drift_factor / self.batch_size

    def describe(self) -> dict[str, Any]:
        """The settings that the limit depends on, as a dict that JSON can hold."""
        names = [one.name for one in fields(self) if one.name != "nesterov"]
        return {name: _checks.plain(getattr(self, name)) for name in names}

    def plain(self) -> SGDSettings:
        """The same settings as numbers, without the graph of any tensor."""
        return replace(
            self, **{one.name: _checks.plain(getattr(self, one.name)) for one in fields(self)}
        )


def _number(value: Any) -> float | Tensor:
    """An option of an optimizer, with its graph if it has one."""
    return value if _checks.requires_grad(value) else float(value)


def clock(groups: Sequence[Mapping[str, Any]]) -> int:
    """The number of the parameter group whose learning rates limit time adds up.

    It is the first whose learning rate is not 0 and whose parameters require gradients, the same
    that `tl.track` takes for a model with just these groups.

    Example:
        >>> weight, bias = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        >>> clock([{"params": [weight], "lr": 0.0}, {"params": [bias], "lr": 0.1}])
        1
    """

    def trained(group: Mapping[str, Any], key: str) -> bool:
        rate = group.get(key)
        return any(p.requires_grad for p in group["params"]) and rate is not None and rate > 0

    now = [i for i, group in enumerate(groups) if trained(group, "lr")]
    later = [i for i, group in enumerate(groups) if trained(group, "initial_lr")]
    return [*now, *later, 0][0]


def parameter_groups(optimizer: object, *, sign: bool = False) -> list[dict[str, Any]]:
    """The parameter groups of an SGD.

    Args:
        optimizer: any, or several in a list.
        sign: whether `SignSGD` is one.

    Raises:
        TypeError: if it is another optimizer.
    """
    for one in listed(optimizer):
        if not isinstance(one, torch.optim.SGD) or (isinstance(one, SignSGD) and not sign):
            raise TypeError(
                "expected torch.optim.SGD (with any of its options and a schedule) or "
                f"tl.NormalizedSGD, got {type(one).__name__}: its effective dynamics are not "
                "known here (Adam, AdamW, RMSprop, Adagrad, Muon and tl.SignSGD are known for "
                "NetworkProblem; recording works with any optimizer: tl.track)"
            )
    kinds = {type(one) for one in listed(optimizer)}
    if len(kinds) > 1 and kinds & {SignSGD, NormalizedSGD}:
        raise TypeError(
            "expected all parameters under torch.optim.SGD, or under one tl.SignSGD or "
            f"tl.NormalizedSGD, got {' and '.join(sorted(kind.__name__ for kind in kinds))}: what "
            "they do beside each other is not known here (recording works: tl.track)"
        )
    return groups_of(optimizer)

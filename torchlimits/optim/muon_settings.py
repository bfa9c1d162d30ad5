"""`MuonSettings`: what the options of torch.optim.Muon do to the dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, log, sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.newton_schulz import NewtonSchulz

#: weights of the buffer beyond are left out
_TAIL = 1e-8
#: torch's
_DEFAULT = NewtonSchulz((3.4445, -4.7750, 2.0315), 5)


@dataclass(frozen=True)
class MuonSettings:
    r"""The constants of one parameter group of `torch.optim.Muon`.

    What a step orthogonalises is :math:`\sum_l w_l G_{s-l}` with weights that add up to 1:
    :math:`w_l = (1 - \beta) \beta^l`, and with Nesterov's momentum :math:`w_0 = 1 - \beta^2`,
    :math:`w_l = (1-\beta) \beta^{l+1}`.

    Args:
        step_size: c_delta = lr * N.
        momentum: beta.
        nesterov: whether momentum is Nesterov's.
        decay: decoupled weight decay, of the learning rate before it is adjusted.
        iteration: what orthogonalises.
        adjust: "match_rms_adamw", or "original", torch's default.
        batch_size: B.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> muon = MuonSettings(step_size=1.0, momentum=0.5, nesterov=False)
        >>> muon.energy  # (1 - beta)/(1 + beta)
        0.3333333333333333
        >>> muon.weights()[:3]
        tensor([0.5000, 0.2500, 0.1250], dtype=torch.float64)
    """

    step_size: float
    momentum: float = 0.95
    nesterov: bool = True
    decay: float = 0.0
    iteration: NewtonSchulz = _DEFAULT
    adjust: str = "original"
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("step_size", "momentum", "decay"):
            _checks.non_negative(name, getattr(self, name))
        if self.momentum >= 1:
            raise ValueError(f"expected momentum < 1 in Muon, got {self.momentum:g}")
        if self.adjust not in ("original", "match_rms_adamw"):
            raise ValueError(
                'expected adjust_lr_fn "original" or "match_rms_adamw" in Muon, got '
                f"{self.adjust!r}: what else it does to learning rates is not known here"
            )

    @classmethod
    def of_group(cls, group: Mapping[str, Any], dim: int, batch_size: int = 1) -> MuonSettings:
        """The settings of one parameter group.

        Args:
            group: of ``optimizer.param_groups``.
            dim: N.
            batch_size: B.

        Raises:
            ValueError: if an option has no known limit.
        """
        coefficients = tuple(float(x) for x in group["ns_coefficients"])
        return cls(
            step_size=float(group["lr"]) * dim,
            momentum=float(group["momentum"]),
            nesterov=bool(group["nesterov"]),
            decay=float(group["weight_decay"]),
            iteration=NewtonSchulz(coefficients, int(group["ns_steps"])),  # type: ignore[arg-type]
            adjust=group["adjust_lr_fn"] or "original",
            batch_size=batch_size,
        )

    @property
    def ridge(self) -> float:
        """The weight decay."""
        return self.decay

    @property
    def energy(self) -> float:
        """kappa_w, the sum of the squares of weights."""
        beta = self.momentum
        plain = (1 - beta) / (1 + beta)
        return (1 - beta**2) ** 2 + beta**4 * plain if self.nesterov else plain

    @property
    def window(self) -> float:
        """B / kappa_w, the number of samples whose gradients a step's buffer has."""
        return self.batch_size / self.energy

    def weights(self) -> Float[Tensor, " L"]:
        """w_l, as many as matter."""
        beta = self.momentum
        count = 1 + ceil(log(_TAIL) / log(beta)) if beta > 0 else 1
        powers = torch.arange(count, dtype=torch.float64, device="cpu")
        weights = (1 - beta) * torch.tensor(beta, dtype=torch.float64).pow(powers)
        if self.nesterov:
            weights = beta * weights
            weights[0] = 1 - beta**2
        return weights

    def adjusted(self, width: int, dim: int) -> float:
        """By what torch multiplies learning rates of a matrix.

        Args:
            width, dim: its shape.
        """
        if self.adjust == "original":
            return sqrt(max(1, width / dim))
        return 0.2 * sqrt(max(width, dim))

    def describe(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold."""
        facts = asdict(self)
        iteration = facts.pop("iteration")
        return {"kind": "Muon", **facts, "ns_steps": iteration["steps"]}

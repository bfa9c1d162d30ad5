"""`OwnSettings`: what each of several optimizers does to its parameter groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchlimits import _checks
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.listed import Optimizers, listed
from torchlimits.optim.moment_layout import Settings
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.second_moment import second_moment_of
from torchlimits.optim.sgd import SGDSettings, clock


def scales_gradients(optimizer: Optimizers | None) -> bool:
    """Whether one of the optimizers keeps second moments or orthogonalises gradients.

    Args:
        optimizer: one, or several in a list.

    Example:
        >>> import torch
        >>> weight, bias = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
        >>> scales_gradients([torch.optim.SGD([bias]), torch.optim.Muon([weight])])
        True
    """
    return any(second_moment_of(one) or _is_muon(one) for one in listed(optimizer))


def _is_muon(optimizer: object) -> bool:
    # exactly this, where torch has it: what derives from it may do something else
    return type(optimizer) is getattr(torch.optim, "Muon", None)


@dataclass(frozen=True)
class OwnSettings:
    """The settings of the parameter groups of all optimizers.

    Args:
        groups: the parameter groups.
        settings: those of each.
        kind: the key in `SECOND_MOMENTS` of those that keep second moments; "" if none does.
        name: the optimizers, for sentences.

    Example:
        >>> import torch
        >>> weight, bias = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(2))
        >>> optimizers = [torch.optim.Muon([weight]), torch.optim.AdamW([bias])]
        >>> OwnSettings.of(optimizers, dim=3).name
        'Muon and AdamW'
    """

    groups: list[dict[str, Any]]
    settings: list[Settings]
    kind: str
    name: str

    @classmethod
    def of(cls, optimizer: Optimizers, dim: int, batch_size: int = 1) -> OwnSettings:
        """Read them.

        Args:
            optimizer: one, or several in a list.
            dim: N.
            batch_size: B.

        Raises:
            TypeError: if one of them has no known limit.
            ValueError: if an option has none, or two keep second moments in different ways.
            NotImplementedError: if an option requires a gradient.
        """
        optimizers = listed(optimizer)
        name = " and ".join(dict.fromkeys(type(one).__name__ for one in optimizers))
        kinds = {kind for one in optimizers if (kind := second_moment_of(one))}
        if len(kinds) > 1:
            raise ValueError(
                f"expected second moments of one kind, got {name}: two kinds together are not "
                "known here (recording works: tl.track)"
            )
        groups: list[dict[str, Any]] = []
        settings: list[Settings] = []
        for one in optimizers:
            for group in one.param_groups:
                groups.append(group)
                settings.append(_of_group(one, group, dim, batch_size))
        return cls(groups, settings, next(iter(kinds), ""), name)

    @property
    def reference(self) -> Settings:
        """The settings of the group whose learning rates add up to the limit time.

        Raises:
            ValueError: if its learning rate is 0.
        """
        reference = self.settings[clock(self.groups)]
        if reference.step_size == 0:
            raise ValueError(
                f"expected a learning rate > 0 in {self.name}, got 0: limit time, the sum of "
                "learning rates, would stand still"
            )
        return reference


def _of_group(optimizer: Any, group: dict[str, Any], dim: int, batch_size: int) -> Settings:
    if any(_checks.requires_grad(value) for value in group.values()):
        raise NotImplementedError(
            "expected an optimizer's options as numbers, got a tensor that requires a gradient: "
            "derivatives by them are known for SGD alone; give float(...)"
        )
    kind = second_moment_of(optimizer)
    if kind:
        return AdaptiveSettings.of_group(group, kind, dim, batch_size)
    if _is_muon(optimizer):
        return MuonSettings.of_group(group, dim, batch_size)
    if type(optimizer) is not torch.optim.SGD:
        raise TypeError(
            "expected torch.optim.SGD, Adam, AdamW, RMSprop, Adagrad or Muon beside each other, "
            f"got {type(optimizer).__name__}: its effective dynamics are not known together with "
            "theirs (recording works: tl.track)"
        )
    return SGDSettings.of_group(group, dim, batch_size)

"""`chosen_limit`: the limit for a network's problem, chosen by an optimizer or by numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.optim.adaptive_limit import AdaptiveLimit
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.gradient_map import ClipNorm, ClipValue, ElementwiseMap, GradientMap, Sign
from torchlimits.optim.held_parameters import Shape
from torchlimits.optim.leverage import axes_in
from torchlimits.optim.listed import Optimizers, listed
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.moment_layout import Settings
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.own_settings import OwnSettings, scales_gradients
from torchlimits.optim.parameter_groups import Layers, settings_of
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.sign_sgd import SignSGD


def chosen_limit(
    optimizer: Optimizers | None, *, step_size: float | Tensor | None,
    momentum: float | Tensor, batch_size: int, ridge: float | Tensor, dim: int,
    parameters: Mapping[str, Shape], dims: Iterable[int], model: nn.Module | None = None,
    directions: Float[Tensor, "d N"] | None = None, clip_norm: float | None = None,
    clip_value: float | None = None,
) -> SGDLimit | AdaptiveLimit:  # fmt: skip
    """The limit of an optimizer, parameter by parameter, or of SGD with the given numbers.

    An optimizer whose weight decay is not the problem's ridge draws a warning.

    Args:
        optimizer, step_size, momentum, batch_size, dim: as in a problem's ``dynamics``.
        ridge: the problem's ridge.
        parameters, dims, model: as in `Layers.of`.
        directions: orthonormal rows, which optimizers with second moments look at; None if these
            are not known for the problem.
        clip_norm, clip_value: what torch.nn.utils clips a batch's gradient to, or None.

    Raises:
        ValueError: if not exactly one of optimizer and step_size is given, their values are out
            of range, or the optimizer is not that of the network.
        TypeError: if the optimizer has no known limit.

    Example:
        >>> options = {"batch_size": 1, "ridge": 0.0, "dim": 5}
        >>> shapes = {"parameters": {"weight": (2, None), "bias": (2,)}, "dims": {5}}
        >>> chosen_limit(None, step_size=2.0, momentum=0.5, **options, **shapes).speed
        2.0
    """
    changed = _map(optimizer, dim, clip_norm, clip_value)
    if changed is not None and directions is None:
        raise ValueError(
            f"expected plain gradients for this problem, got {changed.describe()}: their limit is "
            "known for NetworkProblem and TeacherStudent (recording works: tl.track)"
        )
    if optimizer is None or step_size is not None:
        return _sgd(
            SGDSettings.chosen(optimizer, dim, ridge, step_size, momentum, batch_size), None,
            changed, directions,
        )  # fmt: skip
    if scales_gradients(optimizer) and directions is not None:
        own = OwnSettings.of(optimizer, dim, batch_size)
        if changed is not None:
            raise NotImplementedError(
                f"expected unclipped gradients with {own.name}, got {changed.describe()}: the two "
                "together are not known here (recording works: tl.track)"
            )
        shapes = {"parameters": parameters, "dims": dims, "model": model}
        return _adaptive(own, ridge, momentum, directions, shapes)
    found = Layers.of(
        optimizer, parameters=parameters, dims=dims, dim=dim, batch_size=batch_size, model=model
    )
    found.check_beside(ridge=ridge, momentum=momentum)
    if isinstance(found, Layers):
        return _sgd(found.reference, found, changed, directions)
    return _sgd(found, None, changed, directions)


def _map(
    optimizer: Optimizers | None, dim: int, clip_norm: float | None, clip_value: float | None
) -> GradientMap | None:
    """What is done to a batch's gradient; None if nothing."""
    maps: list[GradientMap] = [
        *([Sign()] if isinstance(listed(optimizer)[0], SignSGD) else []),
        *([ClipNorm(clip_norm, dim)] if clip_norm is not None else []),
        *([ClipValue(clip_value)] if clip_value is not None else []),
    ]
    if len(maps) > 1:
        raise ValueError(
            "expected one of clip_norm=, clip_value= and tl.SignSGD, got "
            f"{' and '.join(str(one.describe()) for one in maps)}: one after the other is not "
            "known here"
        )
    return maps[0] if maps else None


def _sgd(
    settings: SGDSettings, layers: Layers | None, changed: GradientMap | None,
    directions: Float[Tensor, "d N"] | None,
) -> SGDLimit:  # fmt: skip
    """The limit of SGD, with a map of gradients if there is one."""
    if changed is None or directions is None:
        return SGDLimit.of(settings, layers)
    elementwise = isinstance(changed, ElementwiseMap)
    axes = axes_in(directions)[1] if elementwise else directions[:, :0]
    return MappedLimit(settings, layers, map=changed, axes=axes.double())


def _adaptive(
    own: OwnSettings, ridge: float | Tensor, momentum: float | Tensor,
    directions: Float[Tensor, "d N"], shapes: Mapping[str, Any],
) -> AdaptiveLimit:  # fmt: skip
    """The limit of optimizers with second moments, and of Muon."""
    reference, found = own.reference, settings_of(own.groups, own.settings, **shapes)
    if momentum:
        raise ValueError(
            f"expected no momentum= beside {own.name}, got {momentum}: its own options count, and "
            "Adam's beta_1 does not enter the limit"
        )
    for name, settings in found.items():
        decay = 0.0 if settings is None else _decay(settings)
        if settings is not None and abs(decay - ridge) > 1e-12 + 1e-6 * ridge:
            _checks.warn_user(
                f"the optimizer's weight_decay={decay:g} of {name} is not the problem's "
                f"ridge={_checks.plain(ridge):g}: the prediction takes the optimizer's, which is "
                "what trains"
            )
            break
    weight = next(iter(shapes["parameters"]))
    _check_muon(found, weight)
    places, axes = torch.zeros(0, dtype=torch.long), directions[:, :0]
    if isinstance(found[weight], AdaptiveSettings):
        places, axes = axes_in(directions)
    return AdaptiveLimit(
        own.kind, own.name, reference, found, axes.double(), tuple(places.tolist())
    )


def _decay(settings: Settings) -> float:
    """The weight decay, coupled or not."""
    return float(settings.weight_decay if isinstance(settings, SGDSettings) else settings.ridge)


def _check_muon(found: Mapping[str, Settings | None], weight: str) -> None:
    """Raise ValueError if Muon trains more than the first layer."""
    others = [n for n, s in found.items() if isinstance(s, MuonSettings) and n != weight]
    if others:
        raise ValueError(
            f"expected Muon on the first layer ({weight}) alone, got {', '.join(others)} with it: "
            "a matrix whose size does not grow has no limit under it; give the head to SGD or "
            "AdamW (recording works: tl.track)"
        )

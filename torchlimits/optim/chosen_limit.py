"""`chosen_limit`: the limit for a network's problem, chosen by an optimizer or by numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.adagrad_norm_limit import AdaGradNormLimit, is_adagrad_norm
from torchlimits.optim.adaptive_limit import AdaptiveLimit
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.counted_gradients import counted_gradients
from torchlimits.optim.gradient_map import ClipNorm, ClipValue, ElementwiseMap, GradientMap, Sign
from torchlimits.optim.held_parameters import Shape
from torchlimits.optim.leverage import axes_in
from torchlimits.optim.listed import listed
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.moment_layout import Settings
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.own_settings import OwnSettings, scales_gradients
from torchlimits.optim.parameter_groups import Layers, settings_of
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.sign_sgd import SignSGD
from torchlimits.optim.training import Training

#: what trains networks
NetworkLimit = SGDLimit | AdaptiveLimit | AdaGradNormLimit


def chosen_limit(
    training: Training, *, ridge: float | Tensor, parameters: Mapping[str, Shape],
    dims: Iterable[int], directions: Float[Tensor, "d N"],
) -> NetworkLimit:  # fmt: skip
    """The limit of an optimizer, parameter by parameter, or of SGD with the given numbers.

    An optimizer whose weight decay is not the problem's ridge draws a warning.

    Args:
        training: the optimizer or the numbers, and what is done to gradients before the step.
        ridge: the problem's ridge.
        parameters, dims: as in `Layers.of`.
        directions: the orthonormal e_j, which optimizers look at that treat coordinates one by one.

    Raises:
        ValueError: if not exactly one of optimizer and step_size is given, their values are out
            of range, or the optimizer is not that of the network.
        TypeError: if the optimizer has no known limit.

    Example:
        >>> network = {"parameters": {"weight": (2, None), "bias": (2,)}, "dims": {5}}
        >>> network["directions"] = torch.eye(1, 5)
        >>> chosen_limit(Training(dim=5, step_size=2.0, momentum=0.5), ridge=0.0, **network).speed
        2.0
    """
    optimizer, dim, batch_size = training.optimizer, training.dim, training.batch_size
    changed = _map(training, parameters, dims)
    if optimizer is None or training.step_size is not None:
        settings = SGDSettings.chosen(
            optimizer, dim, ridge, training.step_size, training.momentum, batch_size
        )
        return _sgd(settings, None, changed, directions)
    shapes: dict[str, Any] = {"parameters": parameters, "dims": dims, "model": training.model}
    if is_adagrad_norm(optimizer):
        return _adagrad_norm(training, ridge, shapes, changed)
    if scales_gradients(optimizer):
        own = OwnSettings.of(optimizer, dim, batch_size)
        return _adaptive(own, ridge, training.momentum, directions, shapes, changed)
    layers = Layers.of(optimizer, dim=dim, batch_size=batch_size, **shapes)
    layers.check_beside(ridge=ridge, momentum=training.momentum)
    if isinstance(layers, Layers):
        return _sgd(layers.reference, layers, changed, directions)
    return _sgd(layers, None, changed, directions)


def _adagrad_norm(
    training: Training, ridge: float | Tensor, shapes: Mapping[str, Any],
    changed: GradientMap | None,
) -> AdaGradNormLimit:  # fmt: skip
    """The limit of AdaGrad-Norm, alone and on plain gradients."""
    if changed is not None:
        raise ValueError(
            f"expected plain gradients with AdaGradNorm, got {changed.describe()}: how b grows by "
            "clipped ones is not known here (recording works: tl.track)"
        )
    limit = AdaGradNormLimit.of(training.optimizer, training.dim, training.batch_size, shapes)
    limit.check_beside(ridge=ridge, momentum=training.momentum)
    return limit


def _map(
    training: Training, parameters: Mapping[str, Shape], dims: Iterable[int]
) -> GradientMap | None:
    """What is done to a batch's gradient; None if nothing."""
    norm, value = training.clip_norm, training.clip_value
    maps: list[GradientMap] = [
        *([ClipNorm(norm, training.dim)] if norm is not None else []),
        *([ClipValue(value)] if value is not None else []),
    ]
    if isinstance(listed(training.optimizer)[0], SignSGD):
        return Sign()  # clipping before leaves signs as they are
    if len(maps) > 1:
        raise ValueError(
            "expected one of clip_norm= and clip_value=, got "
            f"{' and '.join(str(one.describe()) for one in maps)}: one after the other is not "
            "known here"
        )
    if norm is None:
        return maps[0] if maps else None
    counted = counted_gradients(training, parameters, dims)
    return ClipNorm(norm, training.dim, None if counted == frozenset(parameters) else counted)


def _sgd(
    settings: SGDSettings, layers: Layers | None, changed: GradientMap | None,
    directions: Float[Tensor, "d N"],
) -> SGDLimit:  # fmt: skip
    """The limit of SGD, with a map of gradients if there is one."""
    if changed is None:
        return SGDLimit.of(settings, layers)
    elementwise = isinstance(changed, ElementwiseMap)
    axes = axes_in(directions)[1] if elementwise else directions[:, :0]
    return MappedLimit(settings, layers, map=changed, axes=axes.double())


def _adaptive(
    own: OwnSettings, ridge: float | Tensor, momentum: float | Tensor,
    directions: Float[Tensor, "d N"], shapes: Mapping[str, Any],
    changed: GradientMap | None,
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
    if isinstance(found[weight], AdaptiveSettings) or isinstance(changed, ElementwiseMap):
        places, axes = axes_in(directions)
    return AdaptiveLimit(
        own.kind, own.name, reference, found, axes.double(), tuple(places.tolist()), changed
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

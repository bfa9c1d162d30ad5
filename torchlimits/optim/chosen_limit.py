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
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.parameter_groups import Layers, settings_of
from torchlimits.optim.second_moment import second_moment_of
from torchlimits.optim.sgd import SGDSettings, clock
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.sign_sgd import SignSGD


def chosen_limit(
    optimizer: torch.optim.Optimizer | None, *, step_size: float | Tensor | None,
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
    kind = second_moment_of(optimizer)
    if kind is not None and changed is not None:
        raise NotImplementedError(
            f"expected unclipped gradients with {type(optimizer).__name__}, got "
            f"{changed.describe()}: the two together are not known here (recording works: tl.track)"
        )
    if kind is not None and directions is not None:
        shapes = {"parameters": parameters, "dims": dims, "model": model}
        return _adaptive(optimizer, kind, dim, batch_size, ridge, momentum, directions, shapes)
    found = Layers.of(
        optimizer, parameters=parameters, dims=dims, dim=dim, batch_size=batch_size, model=model
    )
    found.check_beside(ridge=ridge, momentum=momentum)
    if isinstance(found, Layers):
        return _sgd(found.reference, found, changed, directions)
    return _sgd(found, None, changed, directions)


def _map(
    optimizer: object, dim: int, clip_norm: float | None, clip_value: float | None
) -> GradientMap | None:
    """What is done to a batch's gradient; None if nothing."""
    maps: list[GradientMap] = [
        *([Sign()] if isinstance(optimizer, SignSGD) else []),
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
    optimizer: torch.optim.Optimizer, kind: str, dim: int, batch_size: int,
    ridge: float | Tensor, momentum: float | Tensor, directions: Float[Tensor, "d N"],
    shapes: Mapping[str, Any],
) -> AdaptiveLimit:  # fmt: skip
    """The limit of an optimizer with second moments."""
    groups = optimizer.param_groups
    settings = [AdaptiveSettings.of_group(group, kind, dim, batch_size) for group in groups]
    reference = settings[clock(groups)]
    if reference.step_size == 0:
        raise ValueError(
            f"expected a learning rate > 0 in {type(optimizer).__name__}, got 0: limit time, the "
            "sum of learning rates, would stand still"
        )
    found = settings_of(groups, settings, **shapes)
    if momentum:
        raise ValueError(
            f"expected no momentum= beside {type(optimizer).__name__}, got {momentum}: its own "
            "options count, and Adam's beta_1 does not enter the limit"
        )
    for name, own in found.items():
        if own is not None and abs(own.ridge - ridge) > 1e-12 + 1e-6 * ridge:
            _checks.warn_user(
                f"the optimizer's weight_decay={own.ridge:g} of {name} is not the problem's "
                f"ridge={_checks.plain(ridge):g}: the prediction takes the optimizer's, which is "
                "what trains"
            )
            break
    places, axes = axes_in(directions)
    return AdaptiveLimit(reference, found, axes.double(), tuple(places.tolist()))

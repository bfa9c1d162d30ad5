"""Checks of a network problem's arguments, before anything is computed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.problems.data.covariance import Covariance
from torchlimits.problems.network.directions import distinct_up_to_sign


def is_module(name: str, value: object) -> None:
    """Raise TypeError unless a value is an nn.Module.

    Args:
        name: the name of the argument.
        value: what was given.
    """
    if not isinstance(value, nn.Module):
        raise TypeError(
            f"expected {name} as a torch.nn.Module, got {type(value).__name__}: for a function f "
            "take a module whose forward calls it"
        )


def has_values(module: nn.Module, prefix: str = "") -> None:
    """Raise ValueError unless all parameters have values.

    Args:
        module: the module that owns them.
        prefix: the prefix of their names, for the message.
    """
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"expected parameters with values, got {prefix + name!r} without any: call a lazy "
                "module once on a batch, and move a module away from the device 'meta'"
            )


def is_flag(name: str, value: object) -> None:
    """Raise TypeError unless a value is True or False.

    Args:
        name: of the argument.
        value: what was given.
    """
    if not isinstance(value, bool):
        raise TypeError(f"expected {name} as True or False, got {value!r}")


def is_loss(value: object) -> None:
    """Raise TypeError unless a loss can be called, ValueError if it has trained parameters.

    Args:
        value: what was given.
    """
    if not callable(value) or isinstance(value, type):
        what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(
            f"expected loss as a function loss(output, target) or a loss module, got {what}"
        )
    if isinstance(value, nn.Module) and any(p.requires_grad for p in value.parameters()):
        raise ValueError(
            f"expected a loss without parameters of its own, got {type(value).__name__} with "
            f"{', '.join(name for name, _ in value.named_parameters())}: what is trained belongs "
            "in the head"
        )


def real_dtype(value: object) -> torch.dtype:
    """Return a dtype of real numbers, or raise TypeError.

    Args:
        value: what was given.
    """
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(f"expected dtype as one of real numbers, torch.float64 say, got {value!r}")
    return value


def means(value: object, dim: int) -> Float[Tensor, "A N"]:
    """The means of the components as float64; a single one at 0 if none are given.

    Args:
        value: rows of shape ``(A, N)``, or None.
        dim: N.

    Raises:
        ValueError: if the shape is wrong.
    """
    if value is None:
        return torch.zeros(1, dim, dtype=torch.float64, device="cpu")
    given = _checks.float64("means", value)
    if given.ndim != 2 or given.shape[1] != dim:
        raise ValueError(
            f"expected means as rows of shape (A, {dim}), got shape {tuple(given.shape)}"
        )
    return given


def directions(value: object, means: Float[Tensor, "A N"]) -> Float[Tensor, "d N"]:
    """The orthonormal directions; by default those of the means, or none if all means are 0.

    Args:
        value: orthonormal rows, or None.
        means: the means of the components.
    """
    if value is not None:
        return _checks.float64("directions", value)
    return distinct_up_to_sign(means) if bool(means.any()) else means[:0]


def covariance(
    value: object, dim: int, components: int, blocks: int | str | None
) -> Covariance | None:
    """The covariance of the noise; None if it is the identity.

    Args:
        value: what was given.
        dim: N.
        components: A.
        blocks: the number of blocks that were asked for.

    Raises:
        ValueError, TypeError: as `Covariance.of`; if there are spectra of another number of
            components, or blocks without a covariance.
    """
    if blocks is not None and blocks != "all":
        _checks.positive_int("blocks", blocks)  # type: ignore[arg-type]
    if value is None:
        if blocks is not None:
            raise ValueError(f"expected blocks={blocks!r} together with covariance=, got it alone")
        return None
    found = Covariance.of(value, dim)
    if found.components not in (1, components):
        raise ValueError(
            f"expected covariances of the {components} components, or one for all, got "
            f"{found.components}"
        )
    return found


def room(dim: int, width: int, count: int) -> None:
    """Raise ValueError unless W can have any Gram matrix beside the directions.

    Args:
        dim: N.
        width: K.
        count: d.
    """
    if dim < count + width:
        raise ValueError(
            f"expected dim >= number of directions + width = {count} + {width} = {count + width}, "
            f"got dim={dim}: the Gram matrix of the neurons does not fit; enlarge dim or shrink "
            "the network"
        )

"""`Versions`: whether somebody else changed the parameters that an optimizer holds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchlimits.record.begun import Begun, version_of
from torchlimits.record.wrappers import inner, others_that_hold

#: how many parameters are looked at, and how many entries of each
_LOOKED_AT, _ENTRIES = 8, 8
#: a loop may change parameters a few times after its last step, to load the best or to average:
#: this is more often than that, in steps
_MANY = 10


class Versions:
    """Notes at the start what some parameters of an optimizer are and how often they have changed.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> versions = Versions(sgd)
        >>> versions.changed()
        False
        >>> with torch.no_grad():
        ...     _ = weight.add_(1).add_(1)
        >>> versions.changed()
        True
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        held = (p for group in optimizer.param_groups for p in group["params"])
        told = (p for p in held if p.requires_grad and not p.is_inference() and not p.is_meta)
        self._noted = [
            (p, p._version, p.data_ptr(), _entries(p)) for p in itertools.islice(told, _LOOKED_AT)
        ]

    def changed(self) -> bool:
        """Whether the parameters changed otherwise than by being loaded or moved once."""
        return any(
            p._version - version > 1
            # by what the version does not count: fused kernels, p.data
            or (p._version == version and p.data_ptr() == address and _differ(p, entries))
            for p, version, address, entries in self._noted
        )


def sentence(
    versions: Versions, begun: Begun | None, ended: tuple[Begun, int] | None,
    optimizers: Sequence[torch.optim.Optimizer], step: int,
) -> str | None:  # fmt: skip
    """What to say if parameters changed, and no step, or none since step s, was seen.

    Args:
        versions: noted at the start.
        begun: the last step that began, or None.
        ended: the last step whose end was seen, and the version of its parameter then, or None.
        optimizers: those that are followed, the last of them by hooks.
        step: the number of steps so far.
    """
    if begun is None:
        if not versions.changed():
            return None
        what = "no step of the optimizer was seen, but parameters that it holds have changed"
    elif ended is None:
        return None
    else:
        last, version = ended
        changes = version_of(last[2]) - version
        if changes < _MANY * max(1, version - last[3]):
            return None
        what = (
            f"no step of the optimizer was seen after step {step}, but parameters that it holds "
            f"have changed {changes} times since"
        )
    return f"{what}: {_cause(optimizers)}"


def _cause(optimizers: Sequence[torch.optim.Optimizer]) -> str:
    """What may have stepped instead."""
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        if (found := inner(optimizer)) is not None:
            return f"track the {type(found[1]).__name__} in the .{found[0]} of the {kind}"
    parameter = next((p for group in optimizers[-1].param_groups for p in group["params"]), None)
    others = [] if parameter is None else others_that_hold(parameter, tuple(optimizers))
    if others:
        kinds = ", ".join(sorted({type(one).__name__ for one in others}))
        return f"another optimizer holds them as well ({kinds}), track the one that steps"
    return "track the optimizer that steps, or call .stepped() after each step that no hook sees"


def _entries(parameter: Tensor) -> Tensor:
    # of a sharded one, the entries that are here
    here = parameter.detach()
    here = here.to_local() if hasattr(here, "to_local") else here  # type: ignore[attr-defined]
    return here.flatten()[:_ENTRIES].clone()


def _differ(parameter: Tensor, entries: Tensor) -> bool:
    now = _entries(parameter)
    return now.shape == entries.shape and not torch.equal(now, entries)

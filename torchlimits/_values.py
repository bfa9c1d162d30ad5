"""`Values`: the fields of a trajectory, checked, and how they are looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks, _names

#: half the width of a 95 % band, in standard deviations
BAND = 1.96
#: what a prediction may know besides its values, for each of them
_BESIDE = ("std", "lower", "upper", "samples", "error")


@dataclass(frozen=True, eq=False)
class Values:
    """The fields that `Trajectory` explains."""

    times: Float[Tensor, " T"]
    steps: Int[Tensor, " T"]
    values: Float[Tensor, "*runs T k"]
    names: Sequence[str]
    std: Float[Tensor, "*runs T k"] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lower: Float[Tensor, "*runs T k"] | None = None
    upper: Float[Tensor, "*runs T k"] | None = None
    samples: Float[Tensor, "M *runs T k"] | None = None
    error: Float[Tensor, "*runs T k"] | None = None

    def __post_init__(self) -> None:
        # contiguous: columns of a file of rows are not, and torch.searchsorted warns of that
        times = _checks.float64("times", self.times).contiguous()
        steps = torch.as_tensor(self.steps, device="cpu").detach().long().contiguous()
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "values", _checks.float64("values", self.values, graph=True))
        object.__setattr__(self, "names", _checks.names(self.names))
        for name, entries in self._beside().items():
            object.__setattr__(self, name, _checks.float64(name, entries))
        self._validate()

    def _validate(self) -> None:
        times, steps, values = (tuple(x.shape) for x in (self.times, self.steps, self.values))
        if len(times) != 1 or steps != times or values[-2:] != (*times, len(self.names)):
            raise ValueError(
                f"expected values of shape (..., T, k={len(self.names)}), a column for each name, "
                f"and times and steps of shape (T,), got {values}, {times} and {steps}: give one "
                "row for each time"
            )
        for name, entries in self._beside().items():
            shape = entries.shape[1:] if name == "samples" else entries.shape
            if shape != self.values.shape:
                more = "(M, ...) before" if name == "samples" else "of"
                raise ValueError(
                    f"expected {name} {more} the shape of values, {tuple(self.values.shape)}, "
                    f"got {tuple(entries.shape)}"
                )
        if (self.lower is None) != (self.upper is None):
            raise ValueError("expected both lower and upper, got one of them: give both or neither")
        if len(set(self.names)) != len(self.names):
            twice = sorted(name for name, times in Counter(self.names).items() if times > 1)
            raise ValueError(f"expected k different names, got {twice} more than once: rename them")
        if len(self.times):
            _checks.ordered_times(self.times)
            _checks.never_fall("steps", self.steps)

    def _beside(self) -> dict[str, Tensor]:
        """What is known besides the values."""
        known = {name: getattr(self, name) for name in _BESIDE}
        return {name: entries for name, entries in known.items() if entries is not None}

    def _of_all(self, part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """A part of the values and of all that is known besides, ``(..., T, k)``."""
        return {name: part(x) for name, x in {"values": self.values, **self._beside()}.items()}

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: these values, not all the memory that they are a part of."""
        return {name: _compact(value) for name, value in self.__dict__.items()}

    @property
    def initial(self) -> Float[Tensor, "*runs k"]:
        """The statistics at the first recorded time, shape ``(..., k)``."""
        return self.values[..., 0, :]

    @property
    def final(self) -> Float[Tensor, "*runs k"]:
        """The statistics at the last recorded time, shape ``(..., k)``."""
        return self.values[..., -1, :]

    @property
    def runs(self) -> int:
        """How many independent runs the leading dimensions of ``values`` hold."""
        return int(np.prod(self.values.shape[:-2], dtype=int))

    @property
    def bounds(self) -> tuple[Float[Tensor, "*runs T k"], Float[Tensor, "*runs T k"]] | None:
        """The predicted band: ``lower`` and ``upper``, or the values -+ 1.96 ``std``, or None.

        Of bounds and deviations, the bounds count: they are right where the law is not normal. The
        ``error`` of the values adds to the deviations, as independent errors do.
        """
        if self.lower is not None and self.upper is not None:
            return self.lower, self.upper
        if self.std is None:
            return None
        half = BAND * (self.std if self.error is None else torch.hypot(self.std, self.error))
        return self.values - half, self.values + half

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        """The values of one statistic, or of all that belong to a family.

        Args:
            name: ``"m[0,1]"``, a statistic, or ``"m"``, the family of all names that continue it
                with ``[`` or ``/``. A name that is both stands for the statistic.

        Returns:
            Shape ``(..., T)`` for a statistic and ``(..., T, k_m)`` for a family of k_m, in the
            order of `names`; ``select(name).names`` says which they are.

        Raises:
            ValueError: for an unknown name; the message lists the known ones.
        """
        place = {one: column for column, one in enumerate(self.names)}
        columns = [place[one] for one in _names.chosen(name, place)]
        return self.values[..., columns[0] if name in place else columns]

    def __contains__(self, name: object) -> bool:
        """Whether there is a statistic or a family of that name."""
        return name in self.names or any(n.startswith((f"{name}[", f"{name}/")) for n in self.names)

    def _ipython_key_completions_(self) -> list[str]:
        return [*dict.fromkeys([*_names.families(self.names), *self.names])]

    def index(self, name: str) -> int:
        """The column of a statistic; for an unknown name, a ValueError that lists those known."""
        if name not in self.names:
            raise ValueError(
                f"expected one of the statistics {_names.listed(self.names)}, got {name!r}"
            )
        return list(self.names).index(name)

    @property
    def _numbers(self) -> np.ndarray:
        """The values without their graph, if they have one."""
        return self.values.detach().numpy()


def _compact(value: Any) -> Any:
    """A tensor without its graph and the rest of its memory; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach()
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone(memory_format=torch.contiguous_format)
    return value

"""`LoopValues`: numbers that the training loop already has, kept for the rows of their steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchlimits import _checks


class LoopValues:
    """Values by step and name; tensors stay on their device until rows are made of them.

    Args:
        taken: the names of the statistics, which no value may have.
        runs: the leading dimensions of the recorded values.

    Attributes:
        names: of the values, in the order in which they first came.

    Example:
        >>> values = LoopValues(["norm"], ())
        >>> values.keep(3, {"loss": torch.tensor(0.5), "accuracy": 1})
        >>> values.names, values.columns([2, 3]).tolist()
        (['loss', 'accuracy'], [[nan, nan], [0.5, 1.0]])
    """

    def __init__(self, taken: Sequence[str], runs: tuple[int, ...]) -> None:
        self._taken, self._runs = set(taken), runs
        self.names: list[str] = []
        self._kept: dict[int, dict[str, Tensor | float]] = {}

    def keep(self, step: int, values: Mapping[Any, Any]) -> None:
        """Note values of a step; of two with one name, the later one stays.

        Raises:
            TypeError: if a value is not a real number.
            ValueError: if a name is a statistic's, or a tensor has more than one entry per run.
        """
        known = set(self.names)
        new = [name for name in _checks.names(values) if name not in known]
        kept = {name: self._value(name, value) for name, value in values.items()}
        clashes = sorted(self._taken & set(new))
        if clashes:
            raise ValueError(
                f"expected names that no statistic has, got {clashes}: rename the values"
            )
        # names first: a name without values does no harm, but values without a name would
        self.names = [*self.names, *new]
        self._kept[step] = {**self._kept.get(step, {}), **kept}

    def _value(self, name: str, value: Any) -> Tensor | float:
        if isinstance(value, Tensor):
            if value.is_complex():
                raise TypeError(f"expected {name} as a real number, got {value.dtype}")
            if value.numel() == 1:
                value = value.reshape(())
            elif tuple(value.shape) != self._runs:
                shapes = f"shape {self._runs}, one a run" if self._runs else "one entry"
                raise ValueError(
                    f"expected {name} as a number or a tensor of {shapes}, got shape "
                    f"{tuple(value.shape)}: take its .mean(), for instance"
                )
            # a copy: the loop may go on with the tensor
            return value.detach().clone()
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"expected {name} as a number or a tensor, got {type(value).__name__}"
            ) from error

    def at(self, step: int) -> Mapping[str, Tensor | float]:
        """What was kept for a step, by name."""
        return self._kept.get(step, {})

    def columns(self, steps: Sequence[int]) -> Tensor:
        """The values of steps in float64 on the CPU, ``(..., T, k)``; NaN where there is none."""
        result = torch.full(
            (*self._runs, len(steps), len(self.names)), math.nan, dtype=torch.float64, device="cpu"
        )
        for column, name in enumerate(self.names):
            rows = [row for row, step in enumerate(steps) if name in self.at(step)]
            if rows:
                found = [self.at(steps[row])[name] for row in rows]
                result[..., rows, column] = self._gathered(found)
        return result

    def _gathered(self, values: list[Tensor | float]) -> Tensor:
        """Numbers and tensors as ``(..., T)``; each device is waited for once."""
        result = torch.empty(*self._runs, len(values), dtype=torch.float64, device="cpu")
        kinds: dict[Any, list[int]] = {}
        for place, value in enumerate(values):
            kind = (value.device, value.dtype, value.ndim) if isinstance(value, Tensor) else None
            kinds.setdefault(kind, []).append(place)
        for kind, places in kinds.items():
            some: list[Any] = [values[place] for place in places]
            if kind is None:
                stacked = torch.tensor(some, dtype=torch.float64, device="cpu")
            else:
                stacked = torch.stack(some, dim=-1).to("cpu", torch.float64)
            result[..., places] = stacked
        return result

    def forget(self, before: int) -> None:
        """Give up the values of steps before one."""
        for step in [one for one in self._kept if one < before]:
            del self._kept[step]

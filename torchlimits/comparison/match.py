"""`matched`: which statistics of a measured and of a predicted trajectory belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.comparison.humps import TwoHumps, several_humps
from torchlimits.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Match:
    """A measured trajectory beside a predicted one, or one of them alone; made by `matched`.

    Attributes:
        sides: the trajectories given, under ``"measured"`` and ``"predicted"``.
        names: the statistics that both sides have, in the measured order.
        unmatched: the statistics that only one of two sides has, by side.
        humps: the statistics whose predicted law has more than one hump.
    """

    sides: dict[str, Trajectory]
    names: list[str]
    unmatched: dict[str, list[str]]
    humps: Sequence[TwoHumps] = ()

    @property
    def all_names(self) -> list[str]:
        """Every statistic: the measured ones in their order, then those that are only predicted."""
        return list(dict.fromkeys(name for path in self.sides.values() for name in path.names))

    @property
    def comparable(self) -> bool:
        """Whether both sides are given, at the same times."""
        if len(self.sides) < 2:
            return False
        ours, theirs = (path.times for path in self.sides.values())
        if len(ours) != len(theirs):
            return False
        # mostly the same ones, which is seen without arrays of their size
        return torch.equal(ours, theirs) or torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    @cached_property
    def both(self) -> tuple[Trajectory, Trajectory]:
        """Both sides, with the statistics that both have in one order."""
        ours, theirs = (path.select(self.names) for path in self.sides.values())
        return ours, theirs

    @cached_property
    def difference(self) -> Float[Tensor, "runs T k"]:
        """Measured minus predicted, for each run and each of ``names``."""
        ours, theirs = (path.values.reshape(-1, *path.values.shape[-2:]) for path in self.both)
        return ours - theirs


def matched(measured: object, predicted: object) -> Match:
    """Which statistics match: the one rule of `compare`, `tensorboard.write` and `figures.overlay`.

    They match by name, whatever their order.

    Args:
        measured, predicted: a `Trajectory` each, one of which may be None.

    Raises:
        ValueError: if neither is given, one is empty, no statistic is in both, or the predicted
            runs are neither one for each measured run nor one for all.
        TypeError: if an argument is not a `Trajectory`.

    Example:
        >>> times, steps, u = torch.tensor([0.0]), torch.tensor([0]), torch.zeros(1, 2)
        >>> ours = Trajectory(times, steps, u, ["m", "r"])
        >>> match = matched(ours, Trajectory(times, steps, u, ["v", "m"]))
        >>> match.names, match.unmatched, match.all_names
        (['m'], {'measured': ['r'], 'predicted': ['v']}, ['m', 'r', 'v'])
    """
    sides: dict[str, Trajectory] = {}
    for side, path in (("measured", measured), ("predicted", predicted)):
        if path is None:
            continue
        if not isinstance(path, Trajectory):
            raise TypeError(f"expected {side} as a Trajectory, got {type(path).__name__}")
        if not len(path) or not path.names or not path.runs:
            raise ValueError(f"expected {side} to hold values, got {path!r}: record a step first")
        sides[side] = path.detach()
    if not sides:
        raise ValueError("expected a measured or a predicted trajectory, got neither: give one")
    if len(sides) < 2:
        return Match(sides, [], {}, several_humps(sides.get("predicted")))
    ours, theirs = sides.values()
    if theirs.runs not in (1, ours.runs):
        raise ValueError(
            f"expected a prediction for each run or one for all, got {theirs.runs} for "
            f"{ours.runs} measured runs"
        )
    known = set(theirs.names)
    names = [name for name in ours.names if name in known]
    if not names:
        raise ValueError(
            f"expected statistics that are both measured and predicted, got {list(ours.names)} "
            f"measured and {list(theirs.names)} predicted: give them the same names"
        )
    both = set(names)
    only = {side: [n for n in path.names if n not in both] for side, path in sides.items()}
    return Match(sides, names, only, several_humps(sides["predicted"]))


def unmatched_lines(unmatched: dict[str, list[str]]) -> list[str]:
    """A line for each side that has statistics of its own."""
    return [f"{side} only: {', '.join(names)}" for side, names in unmatched.items() if names]


def share_start(path: Trajectory) -> bool:
    """Whether all runs of a trajectory have one start."""
    starts = path.initial.reshape(-1, len(path.names))
    return torch.allclose(starts, starts[:1].expand_as(starts), rtol=1e-6, equal_nan=True)

"""`follow`: many starts, each by steps of its own, and no further than it has to go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchlimits._threads import side_by_side
from torchlimits.dynamics.effort import LIMIT
from torchlimits.dynamics.solver import GROUP, RightHandSide

#: evaluations of the right-hand side in one step
_STAGES = 4
#: how much shorter than the error allows steps are, and how much they may change at once
_SAFETY, _LEAST, _MOST = 0.85, 0.2, 3.0
#: steps shorter than this fraction of the whole time have come to a halt; times closer are one
_HALT = 1e-12

Arrived = Callable[[Int[Tensor, " rows"], Float[Tensor, "rows k"]], Bool[Tensor, " rows"]]


def follow(
    right_hand_side: RightHandSide, u0: Float[Tensor, "S k"], looks: Sequence[float],
    rtol: float, atol: float, arrived: Arrived, *, autonomous: bool = True,
) -> tuple[Float[Tensor, "S k"], Float[Tensor, " S"]]:  # fmt: skip
    r"""Follow du/dt = F(t, u) from t = 0 until starts have arrived, or the last look.

    Where F does not depend on t, each start has steps of its own, and others take the places of
    those that have arrived: a start takes the evaluations that it needs by itself, in batches of
    `GROUP`. The method is of third order, with four stages,

    .. math:: a = u + \frac h2 F(u),\quad b = a + \frac h2 F(a),\quad
        c = \frac{2u + b + \frac h2 F(b)}3,\quad u' = c + \frac h2 F(c),

    stable for real eigenvalues down to -5.15/h, as gradient flows have them: where these limit
    steps, it takes 0.78 evaluations a unit of (largest rate x time), where Heun's method takes 1.
    The difference to the method of second order with equal weights is the error,
    :math:`h\,(3 F(c) - F(u) - F(a) - F(b)) / 12`, whose root mean square over the statistics,
    relative to atol + rtol \|u\|, is at most 1.

    Source: Kraaijevanger, BIT 31 (1991) 482, SSP(4, 3); Conde, Fekete and Shadid, arXiv 1806.08693,
    for the error.

    Args:
        right_hand_side: F(t, u), row by row; called from threads.
        u0: starts, shape ``(S, k)``.
        looks: times > 0, rising, at which to ask ``arrived``; no step is longer than the least
            time between two of them. Inside a step u is the cubic with the values and the rates at
            its ends. The last one is the end.
        rtol, atol: relative and absolute tolerance of a step.
        arrived: which of some starts, given by their numbers and their u, are to be left alone.
        autonomous: whether F is the same at all times; otherwise starts share their steps with at
            most `GROUP` others.

    Returns:
        u where each start was left, ``(S, k)`` in float64, and the times there, ``(S,)``. They are
        the same whatever the other starts and the number of threads are, up to rounding, if F is
        autonomous and works row by row.

    Raises:
        RuntimeError: if a start cannot hold the tolerance, or takes too long.

    Example:
        >>> u0 = torch.tensor([[1.0], [100.0]])
        >>> u, times = follow(lambda t, u: -u, u0, [1.0, 2.0], 1e-6, 1e-8, lambda _, u: u[:, 0] < 1)
        >>> u[:, 0], times[1]
        (tensor([ 0.3..., 13.5335], dtype=torch.float64), tensor(2., dtype=torch.float64))
    """
    walk = _Walk(right_hand_side, u0, looks, rtol, atol, arrived, autonomous)
    count = -(-len(u0) // torch.get_num_threads()) if autonomous else GROUP
    shares = torch.arange(len(u0), device=u0.device).split(max(1, count))
    side_by_side(walk.follow, shares, u0.device)
    return walk.u, walk.times


class _Walk:
    """Where all starts are; threads move different ones."""

    def __init__(
        self, right_hand_side: RightHandSide, u0: Tensor, looks: Sequence[float],
        rtol: float, atol: float, arrived: Arrived, autonomous: bool,
    ) -> None:  # fmt: skip
        self.right_hand_side, self.rtol, self.atol = right_hand_side, rtol, atol
        self.arrived, self.autonomous = arrived, autonomous
        self.u = u0.detach().double().clone()
        self.rate = torch.zeros_like(self.u)
        self.looks = torch.tensor(looks, dtype=self.u.dtype, device=self.u.device)
        self.end = float(looks[-1])
        self.longest = float(self.looks.diff(prepend=0 * self.looks[:1]).min())
        self.times, self.step = torch.zeros_like(self.u[:, 0]), torch.zeros_like(self.u[:, 0])
        self.steps = torch.zeros_like(self.times)

    @torch.no_grad()
    def follow(self, waiting: Tensor) -> None:
        """Follow some of the starts, the first ones of which begin at once."""
        active = waiting[:0]
        while len(active) + len(waiting):
            # new ones come in numbers, as a batch of few costs as much as one of many
            if len(waiting) and 4 * len(active) <= 3 * GROUP:
                new, waiting = waiting.tensor_split([GROUP - len(active)])
                self._begin(new)
                active = torch.cat([active, new])
            active = active[~self._advance(active)]

    def _begin(self, rows: Tensor) -> None:
        u = self.u[rows]
        rate = self.right_hand_side(self.times.new_zeros(()), u)
        size = self._norm(u, u) / self._norm(rate, u).clamp_min(1e-300)
        self.rate[rows] = rate
        self.step[rows] = (self.rtol ** (1 / 3) * size).clamp(1e-3 * self.rtol * self.end, self.end)

    def _norm(self, x: Tensor, *points: Tensor) -> Tensor:
        """The root mean square relative to the tolerance at the points."""
        size = torch.stack([u.abs() for u in points]).amax(0)
        return (x / (self.atol + self.rtol * size)).square().mean(-1).sqrt()

    def _advance(self, rows: Tensor) -> Tensor:
        """One step, or an attempt at it; which of the starts are to be left."""
        u, before = self.u[rows], self.times[rows]
        slope = self.rate[rows]
        step = self.step[rows].clamp(max=self.longest)
        if not self.autonomous:
            # before the first step beyond the end
            step = torch.minimum(step, self.end - before).min().expand_as(step)
        try:
            trial, rate, difference = self._attempt(u, slope, before[0], step)
            error = self._norm(difference, u, trial)
        except ValueError:
            # a step much too long has led out of all bounds
            error, trial, rate = torch.full_like(step, torch.inf), u, u
        if not self.autonomous:
            error = error.max().expand_as(error)
        fits = error <= 1
        moved = rows[fits]
        self.u[moved], self.rate[moved] = trial[fits], rate[fits]
        self.times[moved] = (before + step)[fits]
        change = (_SAFETY * error.clamp_min(1e-6) ** (-1 / 3)).nan_to_num(0.0)
        self.step[rows] = step * change.clamp(_LEAST, _MOST)
        self._check(rows)
        left = torch.zeros_like(fits)
        look = self.looks[torch.bucketize(before, self.looks, right=True)]
        at = (fits & (before + step >= (1 - _HALT) * look)).nonzero()[:, 0]
        if len(at):
            part = ((look - before) / step).clamp(max=1)[at, None]
            h = step[at, None]
            seen = _between(u[at], trial[at], h * slope[at], h * rate[at], part)
            gone = self.arrived(rows[at], seen) | (look[at] >= self.end)
            left[at] = gone
            self.u[rows[at[gone]]], self.times[rows[at[gone]]] = seen[gone], look[at[gone]]
        return left

    def _attempt(
        self, u: Tensor, rate: Tensor, t: Tensor, step: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u after a step, the rate there, and how much a method of second order differs."""
        half, h = step[:, None] / 2, step[0]
        a = u + half * rate
        at_a = self.right_hand_side(t + h / 2, a)
        b = a + half * at_a
        at_b = self.right_hand_side(t + h, b)
        c = (2 * u + b + half * at_b) / 3
        at_c = self.right_hand_side(t + h / 2, c)
        end = c + half * at_c
        difference = half / 6 * (3 * at_c - rate - at_a - at_b)
        # never beyond the end, not even through rounding
        return end, self.right_hand_side((t + h).clamp(max=self.end), end), difference

    def _check(self, rows: Tensor) -> None:
        """Raise RuntimeError if one of the starts has come to a halt, or takes too long."""
        self.steps[rows] += 1
        halted = self.step[rows] < _HALT * self.end
        if not bool((halted | (self.steps[rows] > LIMIT // _STAGES)).any()):
            return
        worst = int(rows[self.step[rows].argmin()])
        reached = f"start {worst} of {len(self.u)} came to t={float(self.times[worst]):g}"
        if bool(halted.any()):
            raise RuntimeError(
                f"the solver could not hold rtol={self.rtol:g}, atol={self.atol:g}: {reached}, "
                "where its solution blows up, or the tolerance is finer than the right-hand "
                "side's own error; try a larger rtol or a shorter time"
            )
        raise RuntimeError(
            f"the solver gave up: after {LIMIT:,} evaluations, the most it takes, {reached}; try a "
            "larger rtol or a shorter time"
        )


def _between(u: Tensor, end: Tensor, slope: Tensor, slope_there: Tensor, part: Tensor) -> Tensor:
    """The cubic through the ends of a step with the slopes there, at a part of it in [0, 1]."""
    rest = 1 - part
    return (
        rest**2 * (1 + 2 * part) * u + part**2 * (1 + 2 * rest) * end
        + part * rest * (rest * slope - part * slope_there)
    )  # fmt: skip

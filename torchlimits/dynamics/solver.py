"""Solutions from many starts at once: each has its own error bound, none waits for a stiff one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchdiffeq
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits._threads import side_by_side
from torchlimits.dynamics import stiff
from torchlimits.dynamics.effort import Effort, GaveUpError

RightHandSide = Callable[[Tensor, Tensor], Tensor]

#: starts that share their steps, at most
GROUP = 512
#: evaluations after which a group is divided into those that limit its steps and the others
_PATIENCE = 1000
#: methods that users choose from; with "auto" stiff starts go from dopri5 to BDF
METHODS = ("auto", "dopri5", *stiff.METHODS)


def integrate(
    right_hand_side: RightHandSide, u0: Float[Tensor, "*batch k"], times: Float[Tensor, " T"],
    rtol: float, atol: float, method: str = "auto", *, graph: bool = False,
) -> Float[Tensor, "*batch T k"]:  # fmt: skip
    r"""Solutions of du/dt = F(t, u) from many starts.

    With an explicit method, starts share their steps with at most `GROUP` others, and a step is
    short enough for each,

    .. math:: \max_r \Big(\frac1k \sum_j
        \Big(\frac{e_{rj}}{atol + rtol\,|u_{rj}|}\Big)^2\Big)^{1/2} \le 1,

    where torchdiffeq's own norm averages over the starts r as well, so that the error of one is
    diluted by the others. A group that has not finished after a thousand evaluations begins again
    in two parts, one of them the starts that limited its steps: stiff starts are soon by
    themselves. Groups are solved side by side, by as many threads as torch uses.

    A start that would take more than `effort.LIMIT` evaluations (as far as its steps tell) is
    given up by dopri5. With ``"auto"`` it begins again with scipy's BDF, an implicit method whose
    steps are not limited by fast decay.

    Args:
        right_hand_side: F(t, u), ``(rows, k)`` -> ``(rows, k)``, row by row; called from threads.
        u0: starts, shape ``(..., k)``; there may be none.
        times: shape ``(T,)``, float64; they may repeat and do not fall.
        rtol, atol: relative and absolute tolerance of a step.
        method: one of `METHODS`, or an explicit method of torchdiffeq that chooses its own steps.
        graph: keep the graph through the steps, as torch.autograd needs it; explicit methods only.
            Steps then end at all times, where F may have corners: the error of gradients is not
            controlled, and with a step across a corner it would be of second order.

    Returns:
        Shape ``(..., T, k)``, float64: in float32 the control of the steps stalls near 4e-7.

    Raises:
        RuntimeError: if the solver cannot reach the tolerance, or takes too long; it names a start,
            and says how far it came.
        NotImplementedError: if an implicit method is asked for a graph.

    Example:
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> integrate(lambda t, u: -u, torch.tensor([[1.0], [2.0]]), times, 1e-6, 1e-8)[:, -1]
        tensor([[0.3679],
                [0.7358]], dtype=torch.float64)
        >>> integrate(lambda t, u: -1e6 * u, torch.ones(1), times, 1e-6, 1e-8, "BDF").shape
        torch.Size([2, 1])
    """
    if graph and method in stiff.METHODS:
        raise NotImplementedError(
            f"expected method='auto' or 'dopri5' where gradients are asked for, got {method!r}: "
            "implicit steps of scipy have none; detach u0 and the parameters, or leave method out"
        )
    rows = (u0 if graph else u0.detach()).double().reshape(-1, u0.shape[-1])
    # torchdiffeq refuses a time that repeats
    instants, at = times.to(rows.device).unique_consecutive(return_inverse=True)
    solver = _Solver(right_hand_side, instants, rtol, atol, method, graph)
    values = rows[:, None].repeat(1, len(instants), 1)
    if len(instants) > 1 and len(rows):
        groups = torch.arange(len(rows), device="cpu").tensor_split(-(-len(rows) // GROUP))
        values = torch.cat(_side_by_side(solver, rows, groups))
    if len(instants) < len(times):
        values = values[:, at]
    return values.reshape(*u0.shape[:-1], len(times), u0.shape[-1])


def _side_by_side(solver: _Solver, rows: Tensor, groups: tuple[Tensor, ...]) -> list[Tensor]:
    def solved(group: Tensor) -> Tensor:
        return solver.solve(rows, group, _PATIENCE)

    if solver.graph:
        return [solved(group) for group in groups]
    return side_by_side(solved, groups, rows.device)


@dataclass(frozen=True)
class _Solver:
    """What all groups of starts have in common."""

    right_hand_side: RightHandSide
    times: Tensor
    rtol: float
    atol: float
    method: str
    graph: bool

    def solve(self, rows: Tensor, group: Tensor, patience: int | None) -> Tensor:
        """Values (G, T, k) from some of the starts, in parts if all together take too long."""
        if self.method in stiff.METHODS:
            return torch.stack([self._implicit(rows, int(row), self.method) for row in group])
        attempt = _Attempt(self, rows, group, patience if len(group) > 1 else None)
        try:
            return attempt.solution()
        except _Impatience:
            limits = attempt.limits()
        except (AssertionError, ValueError, GaveUpError) as error:
            # torchdiffeq asserts that its step does not vanish; ValueError: u is not finite
            return self._instead(rows, group, attempt, error)
        if bool(limits.all()):
            return self.solve(rows, group, None)
        values = rows.new_empty(len(group), len(self.times), rows.shape[-1])
        values[limits] = self.solve(rows, group[limits], None)
        values[~limits] = self.solve(rows, group[~limits], patience)
        return values

    def _instead(self, rows: Tensor, group: Tensor, attempt: _Attempt, error: Exception) -> Tensor:
        """What an explicit method could not do: by an implicit one, start by start."""
        if self.method != "auto" or self.graph:
            raise RuntimeError(self._failure(rows, attempt.worst_row, error)) from error
        return torch.stack([self._implicit(rows, int(row), "BDF") for row in group])

    def _implicit(self, rows: Tensor, row: int, method: str) -> Tensor:
        """Values (T, k) from one start by an implicit method."""
        try:
            return stiff.solution(
                self.right_hand_side, rows[row], self.times, rtol=self.rtol, atol=self.atol,
                method=method,
            )  # fmt: skip
        except (stiff.StepError, ValueError, GaveUpError) as error:
            raise RuntimeError(self._failure(rows, row, error)) from error

    def _failure(self, rows: Tensor, row: int, error: Exception) -> str:
        times = self.times
        which = f" from start {row} of {len(rows)}" if len(rows) > 1 else ""
        asked = f"between t={times[0]:g} and t={times[-1]:g}{which}"
        if isinstance(error, GaveUpError):
            return f"the solver gave up {asked}: {error}. {self._advice(error)}"
        return (
            f"the solver could not hold rtol={self.rtol:g}, atol={self.atol:g} {asked} ({error}): "
            "the solution blows up, or the tolerance is finer than the right-hand side's own "
            "error; try a larger rtol or a shorter time"
        )

    def _advice(self, error: GaveUpError) -> str:
        if self.graph:
            return (
                "Gradients go through explicit steps alone, which stiff systems make short: try a "
                "larger rtol or a shorter time, or detach u0 and the parameters"
            )
        if error.implicit:
            return "Try a larger rtol or a shorter time"
        return "Try method='BDF', for stiff systems, a larger rtol or a shorter time"


class _Impatience(Exception):
    """A group of starts takes too many evaluations."""


class _Attempt:
    """One call of torchdiffeq for a group of starts."""

    def __init__(self, solver: _Solver, rows: Tensor, group: Tensor, patience: int | None) -> None:
        self.solver, self.rows, self.group, self.patience = solver, rows, group, patience
        self.effort = Effort(float(solver.times[0]), float(solver.times[-1]))
        self.worst = torch.tensor(0, device="cpu")
        # for each start, summed over the steps: its error divided by the largest
        self.share = torch.zeros(len(group), dtype=rows.dtype, device=rows.device)

    def solution(self) -> Tensor:
        solver, times = self.solver, self.solver.times
        with torch.set_grad_enabled(solver.graph):
            values = torchdiffeq.odeint(
                self._derivative,
                self.rows[self.group],
                times,
                rtol=solver.rtol,
                atol=solver.atol,
                method="dopri5" if solver.method == "auto" else solver.method,
                # a step ends at the end: beyond, a schedule need not be defined
                options={
                    "norm": self._largest_row_rms,
                    "step_t": times[1 if solver.graph else -1 :],
                },
            )
        return torch.as_tensor(values, device=self.rows.device).movedim(0, -2)

    def limits(self) -> Bool[Tensor, " G"]:
        """The starts that make the steps as short as they are; on the CPU, where groups are."""
        return (self.share > 0.1 * self.share.max()).cpu()

    @property
    def worst_row(self) -> int:
        """The start with the largest error in the last step."""
        return int(self.group[self.worst.cpu()])

    def _derivative(self, t: Tensor, u: Tensor) -> Tensor:
        if self.patience is not None and self.effort.evaluations >= self.patience:
            raise _Impatience
        self.effort.evaluate(t)
        # never beyond the end, not even through rounding
        return self.solver.right_hand_side(torch.minimum(t, self.solver.times[-1].to(t)), u)

    @torch.no_grad()
    def _largest_row_rms(self, error: Tensor) -> Tensor:
        rms = error.square().mean(dim=-1).sqrt()
        largest = rms.max()
        self.share += rms / largest.clamp_min(1e-300)
        self.worst = rms.argmax()
        return largest

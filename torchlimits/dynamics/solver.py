"""torchdiffeq for many starts at once: each has its own error bound, none waits for a stiff one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torchdiffeq
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits._threads import threads

RightHandSide = Callable[[Tensor, Tensor], Tensor]

#: starts that share their steps, at most
GROUP = 512
#: evaluations after which a group is divided into those that limit its steps and the others
_PATIENCE = 1000


def integrate(
    right_hand_side: RightHandSide, u0: Float[Tensor, "*batch k"], times: Float[Tensor, " T"],
    rtol: float, atol: float, method: str = "dopri5",
) -> Float[Tensor, "*batch T k"]:  # fmt: skip
    r"""Solutions of du/dt = F(t, u) from many starts, by torchdiffeq.

    Starts share their steps with at most `GROUP` others, and a step is short enough for each,

    .. math:: \max_r \Big(\frac1k \sum_j
        \Big(\frac{e_{rj}}{atol + rtol\,|u_{rj}|}\Big)^2\Big)^{1/2} \le 1,

    where torchdiffeq's own norm averages over the starts r as well, so that the error of one is
    diluted by the others. A group that has not finished after a thousand evaluations begins again
    in two parts, one of them the starts that limited its steps: stiff starts are soon by
    themselves. Groups are solved side by side, by as many threads as torch uses.

    Args:
        right_hand_side: F(t, u), ``(rows, k)`` -> ``(rows, k)``, row by row; called from threads.
        u0: starts, shape ``(..., k)``.
        times: shape ``(T,)``, float64; they may repeat and do not fall.
        rtol, atol: relative and absolute tolerance of a step.
        method: a method of torchdiffeq that chooses its own steps.

    Returns:
        Shape ``(..., T, k)``, float64: in float32 the control of the steps stalls near 4e-7.

    Raises:
        RuntimeError: if the solver cannot reach the tolerance; it names a start.

    Example:
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> integrate(lambda t, u: -u, torch.tensor([[1.0], [2.0]]), times, 1e-6, 1e-8)[:, -1]
        tensor([[0.3679],
                [0.7358]], dtype=torch.float64)
    """
    rows = u0.detach().double().reshape(-1, u0.shape[-1])
    # torchdiffeq refuses a time that repeats
    instants, at = times.to(rows.device).unique_consecutive(return_inverse=True)
    solver = _Solver(right_hand_side, instants, rtol, atol, method)
    values = rows[:, None].repeat(1, len(instants), 1)
    if len(instants) > 1 and len(rows):
        groups = torch.arange(len(rows), device="cpu").tensor_split(-(-len(rows) // GROUP))
        for group, solution in zip(groups, _side_by_side(solver, rows, groups), strict=True):
            values[group] = solution
    if len(instants) < len(times):
        values = values[:, at]
    return values.reshape(*u0.shape[:-1], len(times), u0.shape[-1])


def _side_by_side(solver: _Solver, rows: Tensor, groups: tuple[Tensor, ...]) -> list[Tensor]:
    # glibc asks the system for memory at every operation until it has seen this much freed at once
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")
    workers = min(len(groups), torch.get_num_threads())
    if workers == 1 or rows.device.type != "cpu":
        return [solver.solve(rows, group, _PATIENCE) for group in groups]
    # each with one thread for its operations
    with (
        threads(1),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        return list(pool.map(lambda group: solver.solve(rows, group, _PATIENCE), groups))


@dataclass(frozen=True)
class _Solver:
    """What all groups of starts have in common."""

    right_hand_side: RightHandSide
    times: Tensor
    rtol: float
    atol: float
    method: str

    def solve(self, rows: Tensor, group: Tensor, patience: int | None) -> Tensor:
        """Values (G, T, k) from some of the starts, in parts if all together take too long."""
        attempt = _Attempt(self, rows, group, patience if len(group) > 1 else None)
        try:
            return attempt.solution()
        except _Impatience:
            limits = attempt.limits()
        if bool(limits.all()):
            return self.solve(rows, group, None)
        values = rows.new_empty(len(group), len(self.times), rows.shape[-1])
        values[limits] = self.solve(rows, group[limits], None)
        values[~limits] = self.solve(rows, group[~limits], patience)
        return values


class _Impatience(Exception):
    """A group of starts takes too many evaluations."""


class _Attempt:
    """One call of torchdiffeq for a group of starts."""

    def __init__(self, solver: _Solver, rows: Tensor, group: Tensor, patience: int | None) -> None:
        self.solver, self.rows, self.group, self.patience = solver, rows, group, patience
        self.evaluations = 0
        self.worst = torch.tensor(0, device="cpu")
        # for each start, summed over the steps: its error divided by the largest
        self.share = torch.zeros(len(group), dtype=rows.dtype, device=rows.device)

    def solution(self) -> Tensor:
        solver, times = self.solver, self.solver.times
        try:
            with torch.no_grad():
                values = torchdiffeq.odeint(
                    self._derivative,
                    self.rows[self.group],
                    times,
                    rtol=solver.rtol,
                    atol=solver.atol,
                    method=solver.method,
                    # a step ends at the end: beyond, a schedule need not be defined
                    options={"norm": self._largest_row_rms, "step_t": times[-1:]},
                )
        except (AssertionError, ValueError) as error:
            # torchdiffeq asserts that its step does not vanish; ValueError: u is not finite
            raise RuntimeError(self._failure(error)) from error
        return torch.as_tensor(values, device=self.rows.device).movedim(0, -2)

    def limits(self) -> Bool[Tensor, " G"]:
        """The starts that make the steps as short as they are; on the CPU, where groups are."""
        return (self.share > 0.1 * self.share.max()).cpu()

    def _derivative(self, t: Tensor, u: Tensor) -> Tensor:
        self.evaluations += 1
        if self.patience is not None and self.evaluations > self.patience:
            raise _Impatience
        # never beyond the end, not even through rounding
        return self.solver.right_hand_side(torch.minimum(t, self.solver.times[-1].to(t)), u)

    def _largest_row_rms(self, error: Tensor) -> Tensor:
        rms = error.square().mean(dim=-1).sqrt()
        largest = rms.max()
        self.share += rms / largest.clamp_min(1e-300)
        self.worst = rms.argmax()
        return largest

    def _failure(self, error: Exception) -> str:
        solver, times = self.solver, self.solver.times
        which = ""
        if len(self.rows) > 1:
            which = f" from start {int(self.group[self.worst.cpu()])} of {len(self.rows)}"
        return (
            f"the solver could not hold rtol={solver.rtol:g}, atol={solver.atol:g} between "
            f"t={times[0]:g} and t={times[-1]:g}{which} ({error}): the solution blows up, or the "
            "tolerance is finer than the right-hand side's own error; try a larger rtol or a "
            "shorter time"
        )

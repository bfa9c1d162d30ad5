"""What thousands of solutions of the effective dynamics cost, beside solving one after the other.

    python scripts/bench_solver.py --starts 10000 --rounds 1
    python scripts/bench_solver.py --followed 10000 --fine 200 --rounds 1

* Binary, K = 2: `dynamics.solve` for all starts in one call, beside scipy's `solve_ivp` (RK45) for
  some of them one by one, with the same right-hand side. The errors shown are the largest of those
  at the end, against `solve_ivp` (DOP853) with tolerances 1e-10. At one tolerance ours are several
  times smaller, as the steps that a group shares are short enough for all: so that they are about
  equal, ours has twice the tolerance.
* XOR, K = 4: `tl.basins` at level -3, until every neuron has turned to a mean. With `--fine` some
  of the starts are followed at level 0 with a fifth of the tolerance as well, a few seconds each,
  and the table says how many of them, and of their neurons, have the same classes. `--level -1`
  takes a second each and `--level -2` (in single precision) 40 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import benchmark
import numpy as np
import torch
from benchmark import Row, interleaved, main, timed
from scipy.integrate import solve_ivp
from torch import Tensor

import torchlimits as tl
from torchlimits._threads import threads


@dataclass
class Options(benchmark.Options):
    """How much to measure."""

    rounds: int = 3
    starts: int = 1024
    """binary starts, solved in one call"""
    looped: int = 12
    """how many of them scipy solves one by one"""
    looser: float = 2.0
    """our tolerance over scipy's"""
    followed: int = 1024
    """XOR starts followed to their class"""
    fine: int = 0
    """how many of them are also followed with fine quadrature and steps"""
    level: int = 0
    """the level of the fine quadrature"""
    time: float = 50.0
    """limit time, binary"""
    longest: float = 100.0
    """limit time, XOR"""
    dim: int = 1000
    snr: float = 100.0
    ridge: float = 0.1


SMOKE = Options(rounds=1, starts=3, looped=1, followed=3, fine=1, time=0.5, longest=0.1, dim=50)


def by_scipy(
    dynamics: tl.EffectiveDynamics, u0: Tensor, time: float, method: str, rtol: float, atol: float
) -> Tensor:
    """Final values, one start after the other."""

    def right_hand_side(t: float, u: np.ndarray) -> np.ndarray:
        return dynamics(t, torch.from_numpy(u)).numpy()

    options = {"method": method, "rtol": rtol, "atol": atol}
    # more threads would only slow down operations as small as these
    with threads(1):
        ends = [
            solve_ivp(right_hand_side, (0.0, time), one.numpy(), **options).y[:, -1] for one in u0
        ]
    return torch.from_numpy(np.stack(ends))


def binary(options: Options) -> Row:
    """`dynamics.solve` beside solve_ivp."""
    problem = tl.GaussianMixture.binary(options.dim, snr=options.snr, ridge=options.ridge)
    dynamics = problem.dynamics(step_size=1.0)
    u0 = problem.starts(options.starts, generator=torch.Generator().manual_seed(0))
    some = u0[: options.looped]
    rtol, atol = dynamics.rtol, dynamics.atol
    exact = by_scipy(dynamics, some, options.time, "DOP853", 1e-10, 1e-10)
    errors = {}

    def ours() -> Tensor:
        by = options.looser
        return dynamics.solve(u0, [0.0, options.time], rtol=by * rtol, atol=by * atol).final

    def error_of(name: str, solve: Callable[[], Tensor]) -> None:
        errors[name] = float((solve()[: options.looped] - exact).abs().max())

    seconds = interleaved(
        {
            "ours": lambda: timed(lambda: error_of("ours", ours), options.starts),
            "plain": lambda: timed(
                lambda: error_of(
                    "scipy",
                    lambda: by_scipy(dynamics, some, options.time, "RK45", rtol, atol),
                ),
                options.looped,
            ),
        },
        options.rounds,
    )
    note = f"plain: solve_ivp; errors {errors['ours']:.0e}, {errors['scipy']:.0e} (plain)"
    what = f"`dynamics.solve`, binary, K = 2, {options.starts:,} starts"
    return Row(what, "start", **seconds, note=note)


def xor(options: Options) -> Row:
    """`tl.basins`, and how many go where a fine solution takes them."""
    problem = tl.GaussianMixture.xor(options.dim, snr=options.snr, ridge=options.ridge)
    u0 = problem.starts(options.followed, generator=torch.Generator().manual_seed(0))
    coarse = problem.dynamics(step_size=1.0, level=-3)
    found: list[tl.Basins] = []

    def ours() -> float:
        follow = partial(tl.basins, coarse, u0, time=options.longest)
        return timed(lambda: found.append(follow()), options.followed)

    seconds = interleaved({"ours": ours}, options.rounds)["ours"]
    note = f"all in {np.median(seconds) * options.followed:.0f} s"
    if options.fine:
        fine = tl.basins(
            problem.dynamics(step_size=1.0, level=options.level), u0[: options.fine],
            time=options.longest, rtol=1e-3,
        )  # fmt: skip
        same = fine.classes == found[0].classes[: options.fine]
        note += (
            f"; {int(same.all(-1).sum())} of {options.fine} as by level {options.level}, "
            f"{int(same.sum())} of {same.numel()} neurons"
        )
    return Row(f"`tl.basins`, XOR, K = 4, {options.followed:,} starts", "start", seconds, note=note)


def measure(options: Options) -> list[Row]:
    """Both."""
    return [binary(options), xor(options)]


if __name__ == "__main__":
    main(measure, Options, __doc__)

"""Hold the stationary variances of the SDE at dimension n against the Lyapunov equation.

    python scripts/reach_sde.py --out scripts/reach_sde.json

Spiked matrix and tensor PCA, k = 2, 3, 4, c_delta = 1, snr 2, 10, 30, n = 10^6: paths of
`EffectiveDynamics.langevin` that start at the stable fixed point, at m_star where snr is above
lambda_c(k), else at (0, c), and four readings of their variances, each three times the slowest
relaxation time after the other and the first one after five. At this n fluctuations are so small
that the linear law is exact to 0.1 %. The negative control takes the constant step that ignores the
dynamics, 0.01, with the same scheme. The script ends with an error if a ratio is further from 1
than 3 %, or if the control holds where rates are large.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import reach
import torch
from torch import Tensor

import torchlimits as tl
from torchlimits.dynamics.langevin import LangevinDynamics

READINGS = 4
#: the step that was right at rates of order 1
CONSTANT = 0.01


def setting(order: int, snr: float) -> tuple[LangevinDynamics, Tensor, Tensor, float]:
    """The SDE, its stable point, the variances there and the slowest relaxation time."""
    dynamics = tl.SpikedTensor(dim=10**6, order=order, snr=snr).dynamics(step_size=1.0)
    warm = snr > dynamics.critical_snr
    at = torch.tensor([float(dynamics.m_star()) if warm else 0.0, 1.0], dtype=torch.float64)
    around = dynamics.diffusive(at)
    variances = around.stationary_covariance().diagonal() / dynamics.dim
    slowest = float(-torch.linalg.eigvals(around.jacobian).real.max())
    return dynamics.langevin(), at, variances, 1 / slowest


def ratios(order: int, snr: float, paths: int, seed: int) -> dict[str, Any]:
    """Variances over those of the Lyapunov equation, with their standard error."""
    noise, at, variances, unit = setting(order, snr)
    times = unit * torch.cat([torch.zeros(1), 5 + 3 * torch.arange(READINGS)]).double()
    generator = torch.Generator().manual_seed(seed)
    path = noise.solve(at, times, paths=paths, generator=generator)
    ratio = ((path.values[:, 1:] - at).square().mean((0, 1)) / variances).tolist()
    return {
        "k": order, "snr": snr, "at": [round(x, 4) for x in at.tolist()],
        "ratio of variances (m, r2)": [round(x, 4) for x in ratio],
        "standard error": round((2 / (paths * READINGS)) ** 0.5, 4),
        "constant step (m, r2)": with_constant_step(order, snr, seed),
    }  # fmt: skip


def with_constant_step(order: int, snr: float, seed: int, paths: int = 1000) -> list[float | None]:
    """The same with steps of a constant length; None where paths are lost."""
    noise, at, variances, unit = setting(order, snr)
    generator = torch.Generator().manual_seed(seed)
    u = at.expand(paths, 2)
    for _ in range(max(50, round(5 * unit / CONSTANT))):
        normal = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        u = noise._advance(u, CONSTANT, normal * CONSTANT**0.5)  # pyright: ignore[reportPrivateUsage]
    ratio = (u - at).square().mean(0) / variances
    return [float(f"{x:.3g}") if math.isfinite(x) else None for x in ratio.tolist()]


def main() -> None:
    parser = reach.parser(__doc__)
    parser.add_argument("--paths", type=int, default=10_000)
    options = parser.parse_args()
    rows = [
        ratios(order, snr, options.paths, seed=10 * order + i)
        for order, (i, snr) in itertools.product((2, 3, 4), enumerate((2.0, 10.0, 30.0)))
    ]
    off = max(abs(x - 1) for row in rows for x in row["ratio of variances (m, r2)"])
    figures = {
        "n": 10**6, "c": 1.0, "paths": options.paths, "readings": READINGS,
        "furthest from 1": round(off, 4), "settings": rows,
    }  # fmt: skip
    reach.keep(figures, options)
    fast = [row["constant step (m, r2)"] for row in rows if row["snr"] > 2]
    held = [x for pair in fast for x in pair if x is not None and abs(x - 1) < 0.1]
    if off > 0.03 or held:
        sys.exit("the variances are not as they should be")


if __name__ == "__main__":
    main()

"""`expected_risk`: the mean risk of online least squares on given rows, by no Gaussian theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.data.moments import Moments, quadratic_forms, weighted_square

#: times after the start; the error of the ratio of two risks is then below 1 in 500
_TIMES = 12
#: a risk so many times that of the start has left for infinity
DIVERGED = 1e3


def expected_risk(
    moments: Moments, lr: float, time: float, start: Float[Tensor, "q N"] | None = None
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"], Float[Tensor, " T"]]:
    r"""E r^2 of least squares trained by SGD on rows drawn with replacement, and of Gaussian data.

    With S = E[(w - w*)(w - w*)^T], d = E[w] - w* and r_i the error at row i,

        dS/dt = -(Lambda S + S Lambda) + lr (1/M) sum_i E[r_i^2] v_i v_i^T,  dd/dt = -Lambda d,
        E[r_i^2] = v_i^T S v_i - 2 e_i <d, v_i> + e_i^2, with e_i = y_i - <w*, v_i>.

    For Gaussian data the sum is E[r^2] Lambda in the limit, the equation of theory.md's least
    squares. Both are solved on the same times by exponential integrators of second order, so that
    their errors cancel in the ratio.

    Args:
        moments: with residuals.
        lr: the learning rate, over 1 - momentum and over the batch size.
        time: the sum of the learning rates (over 1 - momentum).
        start: w at the start in the eigenbasis; 0 if None.

    Returns:
        The times ``(T,)``, with 0; E r^2 of the rows; E r^2 of Gaussian data. Where the first
        diverges, it ends in infinities.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(500, 2, generator=generator)
        >>> from torchlimits.problems.data.rows import Rows
        >>> moments = Moments.of(Rows.of(x, x[:, 0] + torch.randn(500, generator=generator)))
        >>> times, rows, gaussian = expected_risk(moments, 0.01, 3.0)
        >>> (rows[-1] / gaussian[-1]).round(decimals=2)
        tensor(1., dtype=torch.float64)
    """
    residuals, slopes = moments.residuals, moments.slopes
    assert residuals is not None
    assert slopes is not None
    x, values = moments.coordinates.float(), moments.eigenvalues
    errors, floor = residuals.float(), float(residuals.square().sum(1).mean())
    d0 = (-slopes if start is None else start - slopes).double()
    times = time * torch.linspace(0, 1, _TIMES + 1, dtype=torch.float64, device="cpu") ** 3

    def forcing(second: Tensor, t: float) -> Tensor:
        d = (d0 * (-values * t).exp()).float()
        own = quadratic_forms(x, second.float()) + errors.square().sum(1)
        own = own - 2 * (errors * (x @ d.mT)).sum(1)
        return lr * weighted_square(x, own).double()

    def gaussian(lengths: Tensor, t: float) -> Tensor:
        del t
        return lr * values * (floor + values @ lengths)

    second, lengths = d0.mT @ d0, d0.square().sum(0)
    found, theory = [floor + float(values @ second.diagonal())], [floor + float(values @ lengths)]
    for before, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        lengths = _step(lengths, 2 * values, before, after, gaussian)
        theory.append(floor + float(values @ lengths))
        if found[-1] < DIVERGED * found[0]:
            second = _step(second, values[:, None] + values, before, after, forcing)
            found.append(floor + float(values @ second.diagonal()))
        else:
            found.append(float("inf"))
    cpu: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    return times, torch.tensor(found, **cpu), torch.tensor(theory, **cpu)


def _step(
    state: Tensor, rates: Tensor, before: float, after: float, forcing: Callable[..., Tensor]
) -> Tensor:
    """One step of the second-order exponential Runge–Kutta method for -rates * state + forcing."""
    h = after - before
    z = rates * h
    decay = (-z).exp()
    first = -torch.expm1(-z) / z
    # (1 - first) / z loses its digits where z is small
    second = torch.where(z > 1e-4, (1 - first) / z, 0.5 - z / 6)
    now = forcing(state, before)
    there = decay * state + h * first * now
    return there + h * second * (forcing(there, after) - now)

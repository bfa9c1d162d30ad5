"""Which step sizes least squares stands: stability, plateaus and the best constant one."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.sgd import SGDSettings
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.linear_flow import LinearFlow

#: lr times the largest eigenvalue, from which the limit is off by so much, and where it means
#: nothing
_COARSE, _MEANINGLESS = 0.05, 0.5
#: constants tried first: the distance of their logarithms, and the first and last by the limit
_APART, _LEAST, _MOST = 0.5, 1e-3, 50.0


def limit_of(field: LeastSquaresField, settings: SGDSettings) -> float:
    r"""c_delta above which the risk diverges.

    The Jacobian has an eigenvalue 0 where c_delta q / B times the largest eigenvalue of
    :math:`\Lambda^{-1/2} K \Lambda^{-1/2}` is 2, K that of `Gains`; it is the mean eigenvalue of
    Lambda for Gaussian inputs.
    """
    return float(2 * settings.batch_size / settings.drift_factor) / _strength(field)


def _strength(field: LeastSquaresField) -> float:
    levels = field.levels
    scale = levels.fractions.sqrt() * levels.eigenvalues.sqrt()
    X = field.gains.matrix / levels.eigenvalues * scale / scale[:, None]
    return float(torch.linalg.eigvalsh((X + X.mT) / 2)[-1])


def check_steps(field: LeastSquaresField, c: float, settings: SGDSettings) -> None:
    """Warn of learning rates that are not small beside 1/lambda_max, and refuse large ones.

    Raises:
        ValueError: from lr lambda_max / (1 - momentum) = 0.5 on.
    """
    largest = float(field.levels.eigenvalues.max())
    reach = c * float(settings.drift_factor) * largest / field.dim
    what = (
        f"lr times the largest eigenvalue {largest:.4g}, over 1 - momentum, "
        f"{'below' if reach > _MEANINGLESS else 'well below'} "
    )
    if reach > _MEANINGLESS:
        raise ValueError(
            f"expected {what}{_MEANINGLESS} for the limit of many small steps, got {reach:.3g}: "
            "take a smaller learning rate, or remove directions of so much variance from the inputs"
        )
    if reach > _COARSE:
        _checks.warn_user(
            f"expected {what}1, got {reach:.3g}: errors in that direction change by about as much "
            "in one step, and the prediction, which has none, is off by about as much"
        )


def plateau(field: LeastSquaresField, settings: SGDSettings) -> float:
    """The risk after long times; infinity from the stability limit on."""
    if float(settings.step_size) >= limit_of(field, settings):
        return math.inf
    levels, gain = field.levels, float(settings.effective_step_size)
    A = gain * field.gains.matrix - 2 * torch.diag(levels.eigenvalues)
    u = torch.linalg.solve(A, -gain * field.gains.noise)
    return float(field.risk(u))


def best_step_size(
    field: LeastSquaresField, u0: Float[Tensor, " L"], steps: int, settings: SGDSettings
) -> float:
    """The constant c_delta with the least risk after so many steps from u0."""
    # imported here: scipy takes a second
    from scipy.optimize import minimize_scalar

    levels, B = field.levels, settings.batch_size
    scale, decay = levels.fractions.sqrt(), -2 * torch.diag(levels.eigenvalues)
    q = float(settings.drift_factor)
    limit = limit_of(field, settings)
    refused = _MEANINGLESS * field.dim / float(levels.eigenvalues.max()) / q
    most = min(_MOST * limit, refused)

    def of_log(log: float) -> float:
        c = math.exp(log) * q  # plain SGD with this step size has the same orbits
        gains = field.gains
        flow = LinearFlow.of(decay + c / B * gains.matrix, c / B * gains.noise, scale)
        times = torch.tensor([0.0, steps * c / field.dim], dtype=torch.float64, device="cpu")
        risk = float(field.risk(flow.values(u0, times)[-1]))
        return risk if math.isfinite(risk) else math.inf

    top = math.log(most)
    tried = {top: of_log(top)}
    while True:
        lowest = min(tried)
        best = min(tried, key=lambda log: tried[log])
        if lowest < best - 1e-12 and math.exp(lowest) < _LEAST * limit:
            break
        if lowest < top - 60:
            break
        tried[lowest - _APART] = of_log(lowest - _APART)
    found: Any = minimize_scalar(
        of_log, bounds=(best - _APART, min(best + _APART, top)), method="bounded",
        options={"xatol": 1e-6},
    )  # fmt: skip
    log = min([(tried[best], best), (float(found.fun), float(found.x))])[1]
    return math.exp(log)

"""`final_accumulator`: where AdaGrad-Norm's step size ends on noiseless least squares."""

from __future__ import annotations

from math import inf, log1p

from torchlimits import _checks

#: Newton's method takes ten steps or so
_MOST = 200


def final_accumulator(
    lr: float, trace: float, initial: float, squared_error: float, batch_size: int = 1
) -> float:
    r"""The limit of v = (b/N)^2 as `torchlimits.AdaGradNorm` learns a linear target exactly.

    In the time s = steps/N, with :math:`\gamma = \eta/\sqrt v`, eigenvalues lambda_l of a part f_l
    of the inputs' covariance, and the twofold risk :math:`r = \sum_l \lambda_l D_l`,

    .. math:: \dot D_l = -2 \gamma \lambda_l D_l + \tfrac{\gamma^2}{B} f_l \lambda_l r, \qquad
        \dot v = \tfrac{\tau}{B} r, \qquad \tau = \sum_l f_l \lambda_l,

    so that :math:`d(\sum_l D_l)/dv = -2 \eta B / (\tau \sqrt v) + \eta^2/v` whatever the spectrum.
    Where :math:`\sum_l D_l = |W - w^*|^2` has fallen to 0, that is

    .. math:: \frac{4 \eta B}{\tau} (\sqrt{v_\infty} - \sqrt{v_0})
        - \eta^2 \log\frac{v_\infty}{v_0} = |W_0 - w^*|^2.

    The last step size, times N, is :math:`\eta/\sqrt{v_\infty}`. It is below 2B/tau, where SGD is
    stable: a larger one at the start makes the error grow until b has caught up with it.

    Source: the equations of one-pass least squares (the Volterra equation of homogenized SGD,
    Paquette, Lee, Pedregosa and Paquette 2021) with the step size of `AdaGradNorm`, integrated.

    Args:
        lr: eta.
        trace: tau, the trace of the inputs' covariance over N.
        initial: v_0 = (b_0/N)^2.
        squared_error: |W_0 - w*|^2.
        batch_size: B.

    Returns:
        v_inf, to rounding.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> import math
        >>> v = final_accumulator(lr=1.0, trace=1.0, initial=1.0, squared_error=1.0)
        >>> round(v, 6), round(4 * (v**0.5 - 1) - math.log(v), 12)
        (2.039788, 1.0)
    """
    _checks.positive("lr", lr)
    _checks.positive("trace", trace, "it is the trace of the covariance over N")
    _checks.positive("initial", initial, "it is (b_0/N)^2")
    _checks.non_negative("squared_error", squared_error)
    _checks.positive_int("batch_size", batch_size)
    if squared_error == 0:  # no gradient, and no step
        return initial
    pull, kick = 4 * lr * batch_size * initial**0.5 / trace, 2 * lr**2

    def excess(z: float) -> float:
        """The left side less the right one, at sqrt(v) = (1 + z) sqrt(v_0): convex in z."""
        return pull * z - kick * log1p(z) - squared_error

    # to the right of the minimum, and of the root
    z = max(1.0, 2 * kick / pull)
    while excess(z) < 0:
        z *= 2
    before = inf
    # from there Newton's steps go left and do not pass the root
    for _ in range(_MOST):
        if not z < before:
            break
        before, z = z, z - excess(z) / (pull - kick / (1 + z))
    return initial * (1 + before) ** 2

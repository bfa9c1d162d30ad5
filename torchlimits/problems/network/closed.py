"""`TwoLayerAverages`: the averages for squared loss of two-layer networks, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.problems.network.closed_erf import Erf
from torchlimits.problems.network.closed_form import ClosedForm, outer
from torchlimits.problems.network.closed_polynomial import Linear, Square
from torchlimits.problems.network.closed_relu import ReLU

#: the activations with closed forms, by name
CLOSED_FORMS: Mapping[str, ClosedForm] = {
    "erf": Erf(),
    "relu": ReLU(),
    "square": Square(),
    "linear": Linear(),
}


@dataclass(frozen=True)
class TwoLayerAverages:
    r"""Averages of the squared loss :math:`e^2/2` of a two-layer student with a two-layer teacher.

    :math:`e = \sum_i v_i \phi(h_i) - \sum_n w_n \phi(t_n) - s \xi`, and the student's gradients are
    :math:`g_i = e v_i \phi'(h_i)`. The fields x = (h, t), first the student's K fields, then the
    teacher's M, are jointly Gaussian with mean 0, and xi ~ N(0, 1) is independent of them.

    Attributes:
        error: the generalisation error, E[e^2]/2 without the noise's share s^2/2, ``(...)``.
        head: :math:`E[e \phi(h_i)]`, the derivative of the loss by v, ``(..., K)``.
        response: :math:`E[\partial g_i / \partial x_p]`, ``(..., K, K + M)``: with it
            :math:`E[g_i z] = \sum_p E[\partial g_i / \partial x_p] Cov(x_p, z)`, for Gaussian z.
        fields: :math:`E[g_i x_p]`, ``(..., K, K + M)``.
        gram: :math:`E[g_i g_j]`, ``(..., K, K)``.

    Example:
        >>> import torch
        >>> S, one = torch.eye(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        >>> averages = TwoLayerAverages.of(CLOSED_FORMS["linear"], S, one, one, noise=1.0)
        >>> averages.error.item(), averages.head.item(), averages.gram.item()  # e = h - t - xi
        (1.0, 1.0, 3.0)
    """

    error: Float[Tensor, "*batch"]
    head: Float[Tensor, "*batch K"]
    response: Float[Tensor, "*batch K L"]
    fields: Float[Tensor, "*batch K L"]
    gram: Float[Tensor, "*batch K K"]

    @classmethod
    def of(
        cls,
        form: ClosedForm,
        S: Float[Tensor, "*batch L L"],
        v: Float[Tensor, "*#batch K"],
        w: Float[Tensor, "*#batch M"],
        noise: float = 0.0,
    ) -> TwoLayerAverages:
        """The averages at one or many covariances of the fields.

        Args:
            form: the closed form of the activation.
            S: the covariance of the fields, ``(..., K + M, K + M)``, float64; singular is
                fine.
            v: the student's second layer, ``(..., K)``.
            w: the teacher's, ``(..., M)``.
            noise: s, the standard deviation of the noise in the teacher's output.
        """
        a, v = weights(S, v, w), v.expand(*S.shape[:-2], -1)
        K = v.shape[-1]
        slope = form.kernel(S) @ a[..., None]
        response = v[..., None] * form.response(S, a, K)
        gram = form.gram(S, a, K, torch.tensor(noise**2, dtype=S.dtype, device=S.device))
        return cls(
            (slope[..., 0] * a).sum(-1) / 2, slope[..., :K, 0], response, response @ S,
            outer(v) * gram,
        )  # fmt: skip


def weights(
    S: Float[Tensor, "*batch L L"], v: Float[Tensor, "*#batch K"], w: Float[Tensor, "*#batch M"]
) -> Float[Tensor, "*batch L"]:
    """(v, -w): the weights of all fields in student minus teacher.

    Args:
        S: covariance of the fields, ``(..., L, L)``, L = K + M.
        v, w: second layers of student and teacher, ``(..., K)`` and ``(..., M)``.

    Example:
        >>> import torch
        >>> weights(torch.eye(2), torch.ones(1), torch.ones(1))
        tensor([ 1., -1.])
    """
    return torch.cat([x.expand(*S.shape[:-2], -1) for x in (v, -w)], dim=-1)


def generalization_error(
    form: ClosedForm,
    S: Float[Tensor, "*batch L L"],
    v: Float[Tensor, "*#batch K"],
    w: Float[Tensor, "*#batch M"],
) -> Float[Tensor, "*batch"]:
    """Half the mean square of student minus teacher, without noise.

    Args:
        form: of the activation.
        S: covariance of the fields, ``(..., K + M, K + M)``.
        v, w: second layers of student and teacher, ``(..., K)`` and ``(..., M)``.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> generalization_error(CLOSED_FORMS["square"], torch.eye(2), one, one)  # 3 - 1
        tensor(2.)
    """
    a = weights(S, v, w)
    return (a * (form.kernel(S) @ a[..., None])[..., 0]).sum(-1) / 2

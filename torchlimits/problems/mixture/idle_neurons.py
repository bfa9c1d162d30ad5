r"""Idle neurons, w_i = 0 and v_i = 0: which way they grow, and how fast.

There -f + g has a kink: it is homogeneous, not linear, in :math:`(v_i, m_i, \sqrt{R_{ii}})`. A
neuron that is nearly idle turns towards a *ray*, a shape that it keeps while it grows or shrinks
like exp(gamma t); the largest gamma of any ray says whether idle neurons stay idle. With the
corrector a ray has R_ii > 0 and a smaller gamma: the noise feeds a neuron that has a v_i with what
is perpendicular to the means.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchlimits.contracts.geometry import Velocity
from torchlimits.problems.mixture.field import MixtureField

_STEPS = 2000


def towards_means(
    field: MixtureField, u: Float[Tensor, " k"], idle: Bool[Tensor, " K"], length: float
) -> Float[Tensor, "A k"]:
    """u with the m_i of its idle neurons moved by ``length`` towards each mean."""
    v, m, R = field.split(u)
    return torch.stack(
        [field.join(v, m + length * idle[:, None] * a, R) for a in field.unit_means(u)]
    )


def on_fastest_ray(
    field: MixtureField, few: MixtureField, velocity: Velocity, u: Float[Tensor, " k"],
    idle: Bool[Tensor, " K"], length: float,
) -> Float[Tensor, " k"]:  # fmt: skip
    """u with its idle neurons moved by ``length`` along the ray with the largest gamma.

    ``velocity`` is that of ``few``, the field of the active neurons and one idle neuron. To first
    order idle neurons do not feel each other, so one of them is followed, for all, along
    du/dt = F(u) - gamma D u, with F = -f + g and D the degree of homogeneity in that neuron: 1 for
    v_i, m_i and R_ij, 2 for R_ii. Here gamma is such that v_i^2 + \\|m_i\\|^2 is conserved.
    """
    active = (~idle).nonzero()[:, 0]
    first = idle.nonzero()[:1, 0]
    chosen = torch.cat([active, first])
    v, m, R = (x.clone() for x in field.split(u))
    c = field.unit_means(u)
    A = 2 * len(c)
    vs, ms = v[chosen].repeat(A, 1), m[chosen].repeat(A, 1, 1)
    vs[:, -1] = length * u.new_tensor([1.0, -1.0]).repeat_interleave(len(c))
    ms[:, -1] = length * c.repeat(2, 1)
    rays = few.join(vs, ms, R[chosen][:, chosen].expand(A, -1, -1))

    one = u.new_zeros(len(chosen))
    one[-1] = 1
    across = one[:, None].expand(ms.shape[1:])
    degrees = few.join(one, across, one[:, None] + one)
    measured = few.join(one, across, torch.zeros_like(one[:, None] * one))
    growth = u.new_zeros(A)
    for _ in range(_STEPS):
        moved = (degrees > 0) * velocity(0.0, rays)
        growth = (measured * rays * moved).sum(-1) / (measured * rays.square()).sum(-1)
        change = moved - growth[:, None] * degrees * rays
        # in half the time in which the fastest of them changes: as -f + g is of degree 1 there,
        # rates are speeds over lengths, whatever the optimizer and the snr
        speed = (measured * moved).norm(dim=-1) / (measured * rays).norm(dim=-1)
        rays = rays + 0.5 / speed.max().clamp_min(1e-300) * change
        fastest = int(growth.argmax())
        if float(change[fastest].abs().max()) < 1e-8 * length * float(speed.max()):
            break
    vs, ms, Rs = few.split(rays[int(growth.argmax())])
    v[idle], m[idle] = vs[-1], ms[-1]
    for i in idle.nonzero()[:, 0]:
        R[i, active] = R[active, i] = Rs[-1, :-1]
        R[i, i] = Rs[-1, -1]
    return field.join(v, m, R)


def one_sided_jacobian(
    field: MixtureField, velocity: Velocity, u: Float[Tensor, " k"], idle: Bool[Tensor, " K"]
) -> Float[Tensor, "k k"]:
    r"""Jacobian of -f + g close to idle neurons, with :math:`\sqrt{R_{ii}}` in R_ii's place there.

    In these coordinates the dynamics are homogeneous of degree 1, so that gamma is an eigenvalue
    where u is on a ray: :math:`d\rho/dt = F_R / 2 \rho` has the derivative
    :math:`\partial F_R / \partial R - F_R / 2R`.
    """
    _, m, gram = field.split(u)
    R = gram.diagonal()
    dR = field.split(velocity(0.0, u))[2].diagonal()
    rate = torch.where(idle & (R > 0), dR / (2 * R).clamp_min(1e-300), 0.0)
    correction = field.join(torch.zeros_like(rate), torch.zeros_like(m), torch.diag(rate))
    return velocity.jacobian(u[None])[0] - torch.diag(correction)

"""Stability of fixed points, by eigenvalues and, where one is zero, by the centre manifold."""

from __future__ import annotations

import contextlib
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchlimits.dynamics.flow import Flow

Kind = Literal["stable", "unstable", "marginal"]
Bifurcation = Literal["saddle-node", "transcritical", "pitchfork", "cusp"]

#: real parts below this fraction of the largest modulus are zeros, or below the integrals' error
_ZERO = 1e-6
#: distances, relative to 1 + |u|, from which powers are told apart: what is found at both counts,
#: as higher powers and kinks further off change with the distance
_SCALES = (2e-2, 2e-3)
#: a quadratic term smaller than this fraction of the cubic one at the larger distance is what is
#: left of a point that is not quite the degenerate one
_LEFTOVER = 0.05
#: random directions tried in a space of zero eigenvalues of several dimensions
_DIRECTIONS = 32


class Stability(NamedTuple):
    """What happens beside a fixed point.

    Args:
        eigenvalues: of the Jacobian, by falling real part.
        kind: as in `FixedPoint`.
        dimension: the number of zero eigenvalues at marginal points, else 0.
        bifurcation: as in `FixedPoint`.
    """

    eigenvalues: Complex[Tensor, " k"]
    kind: Kind
    dimension: int
    bifurcation: Bifurcation | None


class Onward(NamedTuple):
    """The growth x' = a1 x + a2 x^2 + a3 x^3 along a half-line; 0 stands for "within its error".

    Args:
        a1, a2, a3: the coefficients, of which the first one that is not 0 decides.
    """

    a1: float
    a2: float
    a3: float

    @property
    def leading(self) -> float:
        """The first coefficient that is not 0, or 0."""
        return self.a1 or self.a2 or self.a3


def classify(flow: Flow, u: Float[Tensor, " k"]) -> Stability:
    r"""Whether solutions that start near a fixed point stay near it.

    Eigenvalues decide where none has a real part within its error of zero. Else the dynamics on the
    centre manifold do, :math:`\dot x = a_2 x^2 + a_3 x^3` along the directions w of the zero
    eigenvalues, with the other directions slaved, :math:`u = u^* + x w + x^2 h_2`,
    :math:`h_2 = -J^\# \frac12 Q f''[w, w]` (J^# inverts J on the other eigenspaces, onto which Q
    projects), so that :math:`a_3` contains what the quadratic terms contribute through h_2. The
    coefficients come from values of -f + g on that curve, on either side by itself, as at kinks
    both sides differ.

    Args:
        flow: the dynamics.
        u: a fixed point, shape ``(k,)``.
    """
    pieces = flow.geometry.pieces(flow, u).cpu()
    # one small matrix or a few: on the CPU, for which torch always has eig
    values, vectors = torch.linalg.eig(pieces)
    fastest = int(values.real.max(dim=-1).values.argmax())
    shown = values[fastest][values[fastest].real.argsort(descending=True)]
    scale = max(1.0, float(shown.abs().max()))
    tolerance = scale * max(_ZERO, flow.error)
    if float(shown.real[0]) > tolerance:
        return Stability(shown, "unstable", 0, None)
    zero = values.real.abs() <= tolerance
    if not bool(zero.any()):
        return Stability(shown, "stable", 0, None)
    dimension = int(zero[fastest].sum())
    if bool((values.imag.abs() > tolerance)[zero].any()):
        # a Hopf bifurcation: its cubic coefficient is not looked for
        return Stability(shown, "marginal", dimension, None)
    lines = [
        line
        for piece, matrix in enumerate(pieces)
        if bool(zero[piece].any())
        for line in _lines(flow, u, matrix.to(u), vectors[piece].to(u.device), zero[piece])
    ]
    if any(line.leading > 0 for line in lines):
        kind = "unstable"
    elif lines and all(line.leading < 0 for line in lines):
        kind = "stable"
    else:
        return Stability(shown, "marginal", dimension, None)
    name = _name(flow, u, pieces[fastest].to(u), zero[fastest], lines)
    return Stability(shown, kind, 0, name)


def _lines(
    flow: Flow, u: Tensor, J: Tensor, vectors: Tensor, zero: Bool[Tensor, " k"]
) -> list[Onward]:
    """The growth along half-lines in the space of J's zero eigenvalues."""
    inverse = torch.linalg.pinv(vectors)
    centre = (vectors[:, zero] @ inverse[zero]).real
    # J^#, as J + centre is J on the other eigenspaces and the identity on the centre
    slaved = torch.linalg.pinv(J + centre) - centre
    return _onward(flow, u, _directions(vectors[:, zero].real.mT), J, centre, slaved)


def _directions(basis: Float[Tensor, "n k"]) -> Float[Tensor, "d k"]:
    """Both ways along each vector of a basis, and along combinations of them."""
    w = torch.cat([basis, -basis])
    if len(basis) > 1:
        like: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(_DIRECTIONS, len(basis), generator=generator, **like)
        w = torch.cat([w, weights.to(basis) @ basis])
    return w / w.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _onward(
    flow: Flow, u: Tensor, w: Float[Tensor, "d k"], J: Tensor, centre: Tensor, slaved: Tensor
) -> list[Onward]:
    """The growth along the directions w that parameters can go."""
    size = 1 + float(u.abs().max())
    # (scales, 1, distances, 1): -f + g is found at all points of all directions at once
    x = size * u.new_tensor(_SCALES)[:, None] * u.new_tensor([1.0, 0.5, 0.25, 0.125])
    x = x[:, None, :, None]
    straight = u + x * w[:, None]
    moved = flow(0.0, torch.cat([u[None], straight.flatten(0, -2)]))
    at_rest = moved[0]
    # by the second order of the other directions, extrapolated to x = 0
    eye = torch.eye(len(u), dtype=u.dtype, device=u.device)
    bend = (moved[1:] - at_rest).reshape(straight.shape) @ (eye - centre).mT
    bend = (bend - x * (w @ J.mT)[:, None]) / x.square()
    curve = straight - x.square() * ((2 * bend[..., 2:3, :] - bend[..., 1:2, :]) @ slaved.mT)
    off = (flow.geometry.project(curve) - curve).abs().amax(-1)
    possible = (off <= 1e-6 * x[..., -1:, 0]).all(-1).all(0)
    if not bool(possible.any()):
        return []
    curve, w = curve[:, possible], w[possible]
    speeds = flow(0.0, curve.flatten(0, -2)).reshape(curve.shape) - at_rest
    along = (speeds * (w @ centre)[:, None]).sum(-1, keepdim=True)
    powers = x ** torch.arange(1, 5).to(x)
    far, near = torch.linalg.solve(powers, along)[..., :3, 0]
    return _told(far, near, size, _errors(flow, J, size))


def _errors(flow: Flow, J: Tensor, size: float) -> Float[Tensor, "3"]:
    """The errors of the coefficients at the smaller distance."""
    noise = 4e-16 * max(1.0, size * float(torch.linalg.matrix_norm(J, 2)))
    noise = max(noise, flow.error if flow.error > 1e-12 else 0.0)
    errors = 30 * noise / (size * min(_SCALES)) ** J.new_tensor([1.0, 2.0, 3.0])
    errors[0] = max(float(errors[0]), _ZERO * max(1.0, float(J.abs().max())))
    return errors


def _told(
    far: Float[Tensor, "d 3"], near: Float[Tensor, "d 3"], size: float, errors: Tensor
) -> list[Onward]:
    """The coefficients that are found at both distances, and are not small."""
    certain = ((far - near).abs() < 0.3 * far.abs()) & (near.abs() > errors)
    a1, a2, a3 = torch.where(certain, near, 0.0).unbind(-1)
    reach = size * max(_SCALES)
    a2 = torch.where(a2.abs() < _LEFTOVER * reach * a3.abs(), 0.0, a2)
    return [Onward(*line) for line in torch.stack([a1, a2, a3], -1).tolist()]


def _name(
    flow: Flow, u: Tensor, J: Tensor, zero: Bool[Tensor, " k"], lines: list[Onward]
) -> Bifurcation | None:
    """What happens there as a parameter passes through its present value."""
    quadratic = any(line.a2 for line in lines if not line.a1)
    several = int(zero.sum()) > 1
    if several and (quadratic or bool(zero.all())):
        # what is flat to first order in all directions is so at other parameters too
        return None
    persists = _persists(flow, u, J)
    if quadratic:
        return "transcritical" if persists else "saddle-node"
    return "pitchfork" if persists else "cusp"


def _persists(flow: Flow, u: Tensor, J: Tensor) -> bool:
    """Whether the point is still there at another c_delta and ridge, to first order."""
    values, vectors = torch.linalg.eig(J.cpu())
    order = values.abs().argsort()
    left = torch.linalg.pinv(vectors)[order[0]].real.to(u)
    shifts = [flow.limit.rates(flow.field, u, 1.0)[1]]
    # where decay is not known, c_delta alone tells
    with contextlib.suppress(NotImplementedError):
        shifts.append(flow.field.decay(u))
    return all(
        float((left @ shift).abs()) <= 1e-6 * float(left.norm() * shift.norm()) for shift in shifts
    )

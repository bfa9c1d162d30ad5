"""Fixed points of effective dynamics: found from many starts, without repeats, and classified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchlimits._text import Table, terminal_width
from torchlimits.dynamics.flow import Flow
from torchlimits.dynamics.newton import fading, newton
from torchlimits.dynamics.solver import integrate
from torchlimits.dynamics.stability import Bifurcation, Kind, classify

#: the order in which points are listed
ORDER: dict[Kind, int] = {"stable": 0, "marginal": 1, "unstable": 2}

_ITERATIONS = 200
#: points closer than this or than the error of the integrals (relative to 1 + |u|) are one
_SAME = 1e-6
#: Newton steps longer than this (relative to 1 + |u|) lead away from no zero. At a zero of order p
#: they are 1/p of what is left, and rounding stops them there below 1e-4 for p <= 4; where -f + g
#: falls like exp(-|u|^p) without a zero, they are 1/(700 p) or more until it is 0 in float64.
_NEWTON = 3e-4
#: steps of a walk along a component
_WALK = 8


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """A fixed point u* of -f + g, or one point of a whole component of them.

    Attributes:
        u: the point, shape ``(k,)``.
        eigenvalues: those of the Jacobian of -f + g there, shape ``(k,)``, complex, by falling real
            part; where -f + g has a kink, those of the one-sided Jacobian that grows fastest.
        kind: ``"stable"``: solutions that start near enough stay near; ``"unstable"``: some leave,
            however near they start. Eigenvalues decide: all real parts are negative, or one is
            positive. Where some are zero and none is positive, the second and third order along
            these directions do (`torchlimits.dynamics.stability.classify`): the point of a
            saddle-node or transcritical bifurcation is unstable, since solutions leave on one side;
            that of a pitchfork is stable or unstable by the sign of the cubic term, as matrix PCA's
            (0, c) at snr = c, which attracts, is stable. ``"marginal"``: nor does that decide, as
            within a component (a circle of fixed points, say).
        dimension: the dimension of the component, that is the number of zero eigenvalues at
            marginal points.
        residual: the largest entry of \\|-f + g\\| at u.
        members: the points found on the same component, u first, shape ``(count, k)``.
        bifurcation: where an eigenvalue is zero and higher orders decide, what the point is as
            parameters change: ``"saddle-node"`` (quadratic, and gone on one side),
            ``"transcritical"`` (quadratic, and still there at another c_delta and ridge, to first
            order), ``"pitchfork"`` (cubic, and still there), ``"cusp"`` (cubic, and moving); else
            None, and if the point is marginal, it is one of a component.

    Example:
        >>> import torchlimits as tl
        >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> point = dynamics.fixed_points()[1]
        >>> point, point.stable, point.dimension
        (FixedPoint([1, 1], stable), True, 0)
    """

    u: Float[Tensor, " k"]
    eigenvalues: Complex[Tensor, " k"]
    kind: Kind
    dimension: int
    residual: float
    members: Float[Tensor, "count k"]
    bifurcation: Bifurcation | None = None

    @property
    def stable(self) -> bool:
        """Whether solutions that start near enough stay near."""
        return self.kind == "stable"

    def __repr__(self) -> str:
        u = ", ".join(f"{x:.4g}" for x in self.u.tolist())
        whole = f", on a component of dimension {self.dimension}" if self.dimension else ""
        place = f", at a {self.bifurcation}" if self.bifurcation else ""
        return f"FixedPoint([{u}], {self.kind}{whole}{place})"


class FixedPoints(list[FixedPoint]):
    """Fixed points in a list that shows itself as a table.

    Args:
        points: the `FixedPoint` objects.
        names: the names of the k statistics.

    Example:
        >>> import torchlimits as tl
        >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> dynamics.fixed_points()
        point      kind  fastest rate   m  r2
        0        stable            -8  -1   1
        1        stable            -8   1   1
        2      unstable             8   0   0
        3      unstable             4   0   1
        <BLANKLINE>
        fastest rate  largest real part of the Jacobian's eigenvalues: < 0 stable
    """

    def __init__(self, points: Iterable[FixedPoint] = (), names: Sequence[str] = ()) -> None:
        super().__init__(points)
        self.names = list(names)

    def _table(self) -> Table:
        whole = any(point.dimension for point in self)
        notes = {"fastest rate": "largest real part of the Jacobian's eigenvalues: < 0 stable"}
        if whole:
            notes["dimension"] = "of the component of fixed points that the point stands for"
        named = any(point.bifurcation for point in self)
        if named:
            notes["bifurcation"] = "that takes place at the point, by second and third orders"
        names = self.names or [f"u[{i}]" for i in range(len(self[0].u) if self else 0)]
        rows = [["point", "kind", *notes, *names]]
        for i, point in enumerate(self):
            extent = [str(point.dimension)] * whole + [point.bifurcation or ""] * named
            u = [f"{x:.4g}" for x in (point.u + 0.0).tolist()]
            rate = f"{float(point.eigenvalues.real.max()):.3g}"
            rows.append([str(i), point.kind, rate, *extent, *u])
        return Table(rows, notes)

    def __repr__(self) -> str:
        return self._table().text(terminal_width()) if self else "FixedPoints([])"

    def _repr_html_(self) -> str:
        return self._table().html()


def find(flow: Flow, starts: Float[Tensor, "S k"], *, settling_time: float = 100.0) -> FixedPoints:
    r"""Fixed points of the ballistic limit, :math:`-f(u) + g(u) = 0`.

    All starts are refined at once by Levenberg-Marquardt with the derivatives of torch.func,
    projected on the values that parameters can have (R >= 0); from the starts themselves, which
    finds saddles, and from where they flow to, which finds attractors. Points of one connected
    component count once.

    Args:
        flow: an `EffectiveDynamics`.
        starts: shape ``(S, k)``.
        settling_time: limit time that the second set of starts flows for; 0 leaves it out. It only
            has to bring starts closer to attractors than to other zeros: a few times the inverse of
            the slowest rate, which is 1/ridge in many problems, and longer does no harm.

    Returns:
        The points, stable ones first. That a point is not found does not prove that there is none:
        give more starts. A point counts if the Newton step from it is short beside 1 + \\|u\\|, not
        only -f + g, which falls to 0 at infinity in some dynamics; as far as rounding and the error
        of integrals let one tell. Zeros of -f + g that no solution stays at are left out (parallel
        neurons at c_delta > 0: see `MixtureDynamics`). The residual is as small as rounding for
        closed forms, and as the error of the right-hand side where that is an integral
        (`EffectiveDynamics.error`).

    Raises:
        ValueError: if starts are not a finite ``(S, k)``.
        RuntimeError: if no start converges.

    Example:
        >>> import torchlimits as tl
        >>> dynamics = tl.SpikedTensor(dim=100, order=2, snr=2.0).dynamics(step_size=1.0)
        >>> for point in dynamics.fixed_points(): print(point)
        FixedPoint([-1, 1], stable)
        FixedPoint([1, 1], stable)
        FixedPoint([0, 0], unstable)
        FixedPoint([0, 1], unstable)
    """
    starts = flow.checked(starts).detach().double()
    if starts.ndim != 2 or not len(starts) or not bool(starts.isfinite().all()):
        raise ValueError(
            f"expected finite starts of shape (S, {len(flow.names)}), got {tuple(starts.shape)}"
        )
    with torch.no_grad():
        starts = flow.geometry.project(starts)
        if settling_time > 0:
            flown = _flown(flow, starts, settling_time)
            starts = torch.cat([flown, starts])
        u = flow.geometry.snap(_levenberg(flow, starts))
        step, blur = newton(flow, u)
        size = 1 + u.abs().amax(-1)
        lasting = flow.geometry.persists(flow, u) & (step <= _NEWTON * size) & ~fading(flow, u)
        u, blur, size = u[lasting], blur[lasting], size[lasting]
        radius = max(_SAME, flow.error) * size + 10 * blur.minimum(_NEWTON * size)
        kept = _distinct(u, flow(0.0, u).abs().amax(-1), radius)
        if not len(kept):
            raise RuntimeError(
                f"no fixed point found from {len(starts)} starts: give starts nearer to one, or "
                "flow= for longer"
            )
        points = [_classified(flow, u[i], float(radius[i])) for i in kept]
        points = _components(flow, points)
    return in_order(points, flow.names)


def in_order(points: list[FixedPoint], names: Sequence[str]) -> FixedPoints:
    """Stable points first, then marginal, then unstable ones; each kind by the entries of u."""
    ordered = sorted(points, key=lambda p: (ORDER[p.kind], *(round(x, 6) for x in p.u.tolist())))
    return FixedPoints(ordered, names)


# --- the steps of find ----------------------------------------------------------------------------


def _flown(flow: Flow, starts: Tensor, time: float) -> Tensor:
    """Where the starts are after some time; those that blow up are left where they were."""
    try:
        times = starts.new_tensor([0.0, time])
        final = integrate(flow, starts, times, 1e-3, 1e-4)[..., -1, :]
    except RuntimeError:
        return starts
    return flow.geometry.project(torch.where(final.isfinite(), final, starts))


def _levenberg(flow: Flow, starts: Tensor, *, polish: bool = True) -> Tensor:
    """The starts that converged, (C, k).

    With ``polish`` they go on until nothing moves any more, without it until -f + g is small.
    """
    u = starts.clone()
    value = flow(0.0, u)
    # what rests at 0 (a neuron, the overlap at an equator) stays: rounding would grow at kinks
    resting = (u == 0) & (value.abs() <= 1e-13)
    damping = torch.full_like(u[:, 0], 1e-2)
    active = torch.arange(len(u), device=u.device)
    done = torch.zeros(len(u), dtype=torch.bool, device=u.device)
    for _ in range(_ITERATIONS):
        x, f, mu, still = u[active], value[active], damping[active], resting[active]
        slope = torch.where(still[:, None, :], 0.0, flow.jacobian(x))
        stepped = flow.geometry.snap(flow.geometry.project(x + _step(slope, f, mu)))
        trial = torch.where(still, 0.0, stepped)
        f_trial = flow(0.0, trial)
        better = f_trial.norm(dim=-1) < f.norm(dim=-1)
        moved = (trial - x).norm(dim=-1) / (1 + x.norm(dim=-1))
        u[active] = torch.where(better[:, None], trial, x)
        value[active] = torch.where(better[:, None], f_trial, f)
        damping[active] = torch.where(better, mu / 10, mu * 10).clamp_min(1e-20)
        resting[active] |= (u[active] == 0) & (value[active].abs() <= 1e-13)
        small = _small(flow, u[active], value[active])
        finished = small & ((moved < 1e-12) | ~better | (not polish))
        stuck = ~small & (damping[active] > 1e8)
        done[active[finished]] = True
        active = active[~finished & ~stuck]
        if not len(active):
            break
    # slow ends, at degenerate points or at the error of the integrals, count where they are small
    done[active] = _small(flow, u[active], value[active])
    return u[done]


def _small(flow: Flow, u: Tensor, value: Tensor) -> Tensor:
    rounding = 1e-11 * (1 + u.abs().amax(-1, keepdim=True))
    return (value.abs() <= rounding + flow.geometry.tolerance(flow.error, u)).all(-1)


def _step(slope: Tensor, value: Tensor, damping: Tensor) -> Tensor:
    """-(J^T J + mu s_1^2)^+ J^T f by singular values, undisturbed by null directions."""
    left, s, right = torch.linalg.svd(slope)
    largest = s[:, :1].clamp_min(1e-300)
    relative = s / largest
    gain = torch.where(relative > 1e-9, relative / (relative**2 + damping[:, None]) / largest, 0.0)
    return -(right.mT @ (gain * (left.mT @ value[..., None])[..., 0])[..., None])[..., 0]


def _distinct(u: Tensor, speed: Tensor, radius: Tensor) -> list[int]:
    """One point of each cluster: the one with the smallest residual."""
    left = speed.argsort(stable=True)
    kept: list[int] = []
    while len(left):
        first = left[0]
        kept.append(int(first))
        apart = (u[left] - u[first]).norm(dim=-1)
        left = left[apart > torch.maximum(radius[left], radius[first])]
    return kept


def _classified(flow: Flow, u: Tensor, radius: float) -> FixedPoint:
    for blur in (radius, 1e-12):
        rounded = torch.where(u.abs() < blur, 0.0, u)
        residual = float(flow(0.0, rounded).abs().max())
        if residual <= (1e-11 if blur == 1e-12 else float(flow(0.0, u).abs().max())):
            u = rounded
            break
    found = classify(flow, u)
    residual = float(flow(0.0, u).abs().max())
    return FixedPoint(
        u, found.eigenvalues, found.kind, found.dimension, residual, u[None], found.bifurcation
    )


def _components(flow: Flow, points: list[FixedPoint]) -> list[FixedPoint]:
    """Merge the marginal points that walks over fixed points join."""
    merged: list[FixedPoint] = []
    for point in points:
        joined = [other for other in merged if _joined(flow, point, other)]
        # the first found stands for the component; a new point may join two parts of it
        first = joined[0] if joined else point
        members = torch.cat([*(other.members for other in joined), point.members])
        merged = [other for other in merged if other not in joined]
        merged.append(replace(first, members=members))
    return merged


def _joined(flow: Flow, a: FixedPoint, b: FixedPoint) -> bool:
    """Whether the chord from a to b's nearest, corrected to fixed points, is a gapless path."""
    if not (a.kind == b.kind == "marginal" and a.dimension == b.dimension > 0):
        return False
    if not torch.equal(flow.geometry.cell(a.u), flow.geometry.cell(b.u)):
        return False
    nearest = b.members[(b.members - a.u).norm(dim=-1).argmin()]
    weights = torch.linspace(0, 1, _WALK + 1, dtype=a.u.dtype, device=a.u.device)[1:-1, None]
    chord = flow.geometry.project(a.u + weights * (nearest - a.u))
    path = _levenberg(flow, chord, polish=False)
    if len(path) < len(chord):
        return False
    path = torch.cat([a.u[None], path, nearest[None]])
    gaps = path.diff(dim=0).norm(dim=-1)
    return float(gaps.max()) <= 4 * float((nearest - a.u).norm()) / _WALK

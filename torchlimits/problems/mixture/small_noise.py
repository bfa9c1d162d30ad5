"""The small-noise limit of the mixtures, snr = infinity: dynamics and fixed points."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.dynamics.fixed_points import ORDER, Kind
from torchlimits.problems.mixture.layout import mixture_layout

#: more components than this are not listed one by one
_MOST_COMPONENTS = 1_000_000


@dataclass(frozen=True, eq=False)
class FixedPointComponent:
    r"""A component of the fixed points at snr = infinity: which neuron serves which mean.

    Neuron i either is 0 or has m_i along one mean c_a and v_i = +-\|m_i\|, the sign that of the
    label; the neurons of one mean lie on a sphere, sum v_i^2 = C_alpha, with all v_i of that sign;
    R = 0. Source: Propositions 4.2 and D.3 of arXiv 2206.04030, for any K.

    Attributes:
        classes: for each neuron the number a of its mean, or None; length K.
        kind: ``"stable"``: no neuron is 0, and either every mean has neurons or no two neurons
            share one (attracting, with noise too); ``"unstable"``: a neuron at 0 leaves towards a
            mean that has none; ``"marginal"``: the linearised dynamics have no positive eigenvalue,
            and zero ones along the component and at its rim. (The paper calls all components that
            are not stable unstable: noise takes them to the rim, from where they leave.)
        dimension: sum over the means that have neurons of (their number - 1).
        radius2: C_alpha.
    """

    classes: tuple[int | None, ...]
    kind: Kind
    dimension: int
    radius2: float
    _coordinates: Float[Tensor, "A d"]
    _labels: Float[Tensor, " A"]

    @property
    def stable(self) -> bool:
        """Whether it attracts; for K >= A such components are those of optimal classifiers."""
        return self.kind == "stable"

    @property
    def optimal(self) -> bool:
        """Whether every mean has a neuron, so that all are classified correctly."""
        return set(range(len(self._labels))) <= set(self.classes)

    def point(self, generator: torch.Generator | None = None) -> Float[Tensor, " k"]:
        """A point on it: uniform on the spheres, or with equal \\|v_i\\| without a generator."""
        K = len(self.classes)
        weights = torch.ones(K, dtype=torch.float64, device="cpu")
        if generator is not None:
            normal = torch.randn(K, generator=generator, dtype=torch.float64, device="cpu")
            weights = normal.abs()
        return _assembled(self._sizes(weights), self._signs(), self._along())

    def distance(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        r"""Euclidean distance of (v, m, R) from the component's closure.

        The nearest point keeps the direction of the non-negative parts of
        :math:`(\pm v_i + m_i \cdot c_a) / 2` in every class.
        """
        K, d = len(self.classes), self._coordinates.shape[1]
        u = u.double().cpu()
        v, _, m, _ = mixture_layout(K, d).split(u)
        towards = (v * self._signs() + (m * self._along()).sum(-1)) / 2
        nearest = _assembled(self._sizes(towards.clamp_min(1e-100)), self._signs(), self._along())
        return (u - nearest).norm(dim=-1)

    def _signs(self) -> Tensor:
        signs = (2 * self._labels - 1).tolist()
        return self._labels.new_tensor([0.0 if a is None else signs[a] for a in self.classes])

    def _along(self) -> Tensor:
        rows = [
            torch.zeros_like(self._coordinates[0]) if a is None else self._coordinates[a]
            for a in self.classes
        ]
        return torch.stack(rows)

    def _sizes(self, weights: Tensor) -> Tensor:
        """\\|v_i\\|: the weights scaled to the sphere, class by class."""
        sizes = torch.zeros_like(weights)
        for a in set(self.classes) - {None}:
            mine = torch.tensor([b == a for b in self.classes], device="cpu")
            part = weights * mine
            sizes = sizes + self.radius2**0.5 * part / part.norm(dim=-1, keepdim=True)
        return sizes

    def __repr__(self) -> str:
        return f"FixedPointComponent({self.classes}, {self.kind}, dimension {self.dimension})"


def components(
    coordinates: Float[Tensor, "A d"], labels: Float[Tensor, " A"], width: int, ridge: float
) -> list[FixedPointComponent]:
    """All components, those that are stable first; see `FixedPointComponent`.

    With alpha below 1/(2 A) there are (A + 1)^K (625 for XOR and K = 4); above, there is only 0,
    stable. At alpha = 1/(2 A) itself the spheres have shrunk to 0, which attracts by the cubic
    terms (a pitchfork).

    Raises:
        ValueError: if the mixture is neither binary nor XOR, for which the closed form is known,
            if alpha = 0 (no fixed point at a finite distance), or if there are too many to list.
    """
    kind_of_mixture(coordinates, labels)
    means = len(labels)
    radius2 = squared_radius(means, ridge)
    count = (means + 1) ** width if radius2 > 0 else 1
    if count > _MOST_COMPONENTS:
        raise ValueError(
            f"expected at most {_MOST_COMPONENTS} components, got (A + 1)^K = {count} for K={width}"
            ": all assignments of neurons to the means or to 0; take a smaller width"
        )
    choices = (None, *range(means)) if radius2 > 0 else (None,)
    found = [
        FixedPointComponent(
            classes=classes,
            kind=_kind(classes, means, radius2),
            dimension=width - classes.count(None) - len(set(classes) - {None}),
            radius2=max(radius2, 0.0),
            _coordinates=coordinates,
            _labels=labels,
        )
        for classes in itertools.product(choices, repeat=width)
    ]
    return sorted(found, key=lambda c: ORDER[c.kind])


def squared_radius(means: int, ridge: float) -> float:
    r"""C_alpha = -logit(A alpha), the squared radius of the spheres; if negative, there are none.

    Raises:
        ValueError: if alpha = 0.

    Example:
        >>> round(squared_radius(2, 0.1), 4)  # binary: log 4
        1.3863
    """
    if ridge == 0:
        raise ValueError(
            "expected ridge > 0, got 0: without it the weights grow forever at snr = infinity and "
            "there is no fixed point at a finite distance"
        )
    if means * ridge >= 1:
        return -math.inf
    return math.log((1 - means * ridge) / (means * ridge))


def kind_of_mixture(coordinates: Tensor, labels: Tensor) -> Literal["binary", "xor"]:
    """Which of the paper's mixtures it is; ValueError if it is neither."""
    d = coordinates.shape[1]
    eye = torch.eye(d, dtype=coordinates.dtype, device=coordinates.device)
    ways = torch.cat([eye, -eye])[:, None]
    along = (coordinates - ways).norm(dim=-1) < 1e-6  # (2 d, A): which mean is which direction
    if along.sum(0).eq(1).all() and along.sum(1).eq(1).all():
        plus, minus = (along.to(labels) @ labels).split(d)
        if d == 1 and bool(plus != minus):
            return "binary"
        if d == 2 and torch.equal(plus, minus) and bool(plus[0] != plus[1]):
            return "xor"
    raise ValueError(
        "expected the binary mixture (means +mu, -mu of different labels) or XOR (+-mu of one "
        f"label, +-nu of the other), got {len(labels)} means of other places or labels: closed "
        "forms at snr = infinity are known for these; use dynamics(...).fixed_points()"
    )


def _kind(classes: tuple[int | None, ...], means: int, radius2: float) -> Kind:
    if radius2 <= 0:
        return "stable"
    taken = set(classes) - {None}
    idle, empty, alone = None in classes, len(taken) < means, len(taken) == len(classes)
    if idle and empty:
        return "unstable"
    return "stable" if not idle and (alone or not empty) else "marginal"


def _assembled(sizes: Tensor, signs: Tensor, along: Tensor) -> Tensor:
    """u of neurons with v_i = sign_i size_i, m_i = size_i c_i, R = 0."""
    zero = sizes.new_zeros(*sizes.shape, sizes.shape[-1])
    layout, v = mixture_layout(*along.shape[-2:]), sizes * signs
    return layout.join(v, v, sizes[..., None] * along, zero)

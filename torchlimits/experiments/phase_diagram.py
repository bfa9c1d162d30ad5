"""Phase diagrams: which fixed points there are, and how good they are, over two parameters."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.fixed_points import FixedPoint, FixedPoints
from torchlimits.experiments.sweep import sweep
from torchlimits.problems.mixture.dynamics import MixtureDynamics
from torchlimits.problems.mixture.problem import GaussianMixture
from torchlimits.problems.network.problem import NetworkProblem
from torchlimits.problems.spiked.problem import SpikedTensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

What = Literal["accuracy", "total", "stable", "unstable", "marginal"]
#: R_ii of starts in mixtures, relative to |m_i|^2
_SPREAD = 0.3
#: the number of models whose random starts are taken, for problems without better starts
_MODELS = 32
#: the limit time for which these flow, as they lie near a saddle
_SETTLING = 100.0
#: lengths of the neurons at starts, over those at snr = inf: near a transition points are small
_SIZES = (1.0, 0.4)
_LABELS = {"snr": r"snr $\lambda$", "ridge": r"ridge $\alpha$", "step_size": r"$c_\delta$"}


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """What `phase_diagram` found; rows are values of y, columns values of x.

    Attributes:
        x, y: the parameters' names and values.
        points: the fixed points of every cell, ``points[row][column]``.
        accuracy: the best accuracy of any attracting fixed point (stable, or marginal), shape
            ``(Y, X)``; see ``accuracy`` of the problem, or of a network's dynamics. It is NaN where
            nothing attracts, and everywhere if there is no ``accuracy``, or the labels are not
            classes.

    Example:
        >>> from functools import partial
        >>> from matplotlib.figure import Figure
        >>> import torchlimits as tl
        >>> make = partial(tl.SpikedTensor, dim=100, order=2)
        >>> diagram = tl.phase_diagram(make, ("snr", [0.5, 1.5]), ("ridge", [0.0]))
        >>> diagram.count().tolist(), diagram.count("unstable").tolist()
        ([[2, 4]], [[1, 2]])
        >>> diagram.draw(Figure().add_subplot(), "stable").get_array().tolist()
        [[1, 2]]
    """

    x: tuple[str, list[float]]
    y: tuple[str, list[float]]
    points: list[list[list[FixedPoint]]]
    accuracy: Float[Tensor, "Y X"]

    def count(self, kind: What = "total") -> Int[Tensor, "Y X"]:
        """Count the fixed points of a kind (``"total"`` for all kinds) in each cell.

        A component counts once. The numbers have shape ``(Y, X)``.
        """
        return torch.tensor(
            [[sum(kind in ("total", p.kind) for p in cell) for cell in row] for row in self.points],
            device="cpu",
        )

    def draw(self, axes: Axes, what: What = "accuracy", **options: Any) -> QuadMesh:
        """Colour the cells by accuracy, or by the number of fixed points of a kind.

        Args:
            axes: the axes of matplotlib.
            what: ``"accuracy"``, or a kind as in `count`.
            options: for ``Axes.pcolormesh``.

        Returns:
            The mesh, for a colour bar.

        Raises:
            ValueError: if ``what`` is none of these.
        """
        if what not in ("accuracy", "total", "stable", "unstable", "marginal"):
            raise ValueError(f"expected 'accuracy' or a kind of fixed points, got {what!r}")
        values = self.accuracy if what == "accuracy" else self.count(what)
        edges = [_edges(values, _logarithmic(values)) for _, values in (self.x, self.y)]
        mesh = axes.pcolormesh(*edges, values.numpy(), **options)
        axes.set(
            xlabel=_LABELS.get(self.x[0], self.x[0]),
            ylabel=_LABELS.get(self.y[0], self.y[0]),
            xscale="log" if _logarithmic(self.x[1]) else "linear",
            yscale="log" if _logarithmic(self.y[1]) else "linear",
        )
        return mesh

    def __repr__(self) -> str:
        least, most = float(self.accuracy.min()), float(self.accuracy.max())
        known = not bool(self.accuracy.isnan().all())
        return (
            f"PhaseDiagram({self.y[0]} x {self.x[0]}: {len(self.y[1])} x {len(self.x[1])} cells, "
            f"up to {int(self.count().max())} fixed points"
            + (f", accuracy {least:.3g} to {most:.3g})" if known else ")")
        )


def phase_diagram(
    make: Callable[..., Any], x: tuple[str, Sequence[float]], y: tuple[str, Sequence[float]], *,
    step_size: float = 1.0, count: int = 0, flow: float | None = None, level: int = 0,
    idle: bool = True, seed: int = 0, progress: bool = False, folder: str | Path | None = None,
) -> PhaseDiagram:  # fmt: skip
    r"""Find the fixed points of the effective dynamics over a grid of two parameters.

    Spiked tensors without a ridge have closed forms; otherwise the points are found numerically.
    For mixtures, starts are the components of the small-noise limit, one of each class of those
    that permutations of the neurons and symmetries of the mixture turn into each other, so points
    are counted up to these symmetries. For any other problem starts are the statistics of its
    models at their random starts. Compare with ``step_size=0``, gradient flow without the
    corrector.

    Args:
        make: makes the problem from the parameters on the axes that are not the step size, for
            instance ``functools.partial(tl.SpikedTensor, dim=100, order=3)``. A problem of your
            own needs ``dynamics(step_size=...)``, ``model(replicas=..., generator=...)`` and
            ``statistics``; if it has ``accuracy(u)``, that is evaluated as well.
        x, y: the name (``"step_size"``, or a parameter of ``make`` such as ``"snr"``) and the
            increasing values of each axis.
        step_size: c_delta, if no axis has it.
        count: the number of random starts in every cell, for mixtures in addition to the others; by
            default none for mixtures, and 32 for a problem of your own.
        flow: how long starts flow for, besides being tried as they are; by default the
            ``settling_time`` of the dynamics (not at all for mixtures of width > 2), and 100 for
            a problem of your own.
        level: accuracy of the Gaussian expectations of mixtures; see `MixtureDynamics`.
        idle: False leaves out starts with some neurons at 0, which lead to no attractor, and is
            faster.
        seed, progress: the seed of random starts, and whether to show a progress bar.
        folder: keep each cell in a file there, so that processes share the diagram, and one that
            was stopped goes on; see `torchlimits.sweep`.

    Raises:
        ValueError: if ``make`` has no parameter of an axis's name, an axis is empty or does not
            increase, or both are the same; and what ``make`` raises.
        TypeError: if ``make`` is not a function or does not return a problem, or an axis is not a
            name and values.
        RuntimeError: if no start leads to a fixed point; with a folder, after all other cells have
            been computed, as `torchlimits.sweep` for any error.

    Example:
        >>> from functools import partial
        >>> import torchlimits as tl
        >>> make = partial(tl.SpikedTensor, dim=100, order=2)
        >>> diagram = tl.phase_diagram(make, ("snr", [0.5, 1.5]), ("step_size", [0.0, 1.0]))
        >>> diagram.count("stable").tolist()  # gradient flow recovers the spike at any snr
        [[2, 2], [1, 2]]
        >>> diagram.accuracy
        tensor([[1.0000, 1.0000],
                [0.0000, 0.5774]], dtype=torch.float64)
    """
    x, y = _axis("x", x, make), _axis("y", y, make)
    if x[0] == y[0]:
        raise ValueError(f"expected two different parameters, got {x[0]!r} on both axes")
    _checks.non_negative("step_size", step_size)
    cell = _Cell(make, step_size, count, flow, level, idle, seed)
    grid: dict[str, list[float]] = dict((y, x))
    found = sweep(cell, grid, folder=folder, progress=progress)
    points = [_points(**result["points"]) for result in found.results]
    rows = [points[i : i + len(x[1])] for i in range(0, len(points), len(x[1]))]
    return PhaseDiagram(x, y, rows, _checks.float64("accuracy", found["accuracy"]))


@dataclass(frozen=True)
class _Cell:
    """What is asked of the cells, as a function of the parameters of one."""

    make: Callable[..., Any]
    step_size: float
    count: int
    flow: float | None
    level: int
    idle: bool
    seed: int

    def __call__(self, **parameters: float) -> dict[str, Any]:
        problem, c = _problem(self.make, parameters, self.step_size)
        found = _fixed_points(
            problem, c, count=self.count, flow=self.flow, level=self.level, idle=self.idle,
            seed=self.seed,
        )  # fmt: skip
        points = {"points": list(found), "names": getattr(found, "names", None)}
        return {"points": points, "accuracy": _best_accuracy(problem, c, found)}


def _points(points: list[dict[str, Any]], names: list[str] | None) -> list[FixedPoint]:
    """The fixed points of a cell, as `_fixed_points` gave them."""
    found = [FixedPoint(**point) for point in points]
    return found if names is None else FixedPoints(found, names)


def _logarithmic(values: Sequence[float]) -> bool:
    return values[0] > 0 and values[-1] > 20 * values[0]


def _edges(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Borders of the cells around the values, half way between them on the axis's scale."""
    x = _checks.float64("values", values)
    x = x.log() if logarithmic else x
    gaps = x.diff() if len(x) > 1 else torch.ones_like(x)
    edges = torch.cat([x[:1] - gaps[:1] / 2, x[1:] - x.diff() / 2, x[-1:] + gaps[-1:] / 2])
    # positive parameters have positive cells
    edges = edges.exp() if logarithmic else edges.clamp_min(0) if values[0] > 0 else edges
    return edges.tolist()


def _axis(
    which: str, axis: tuple[str, Sequence[float]], make: Callable[..., Any]
) -> tuple[str, list[float]]:
    if not callable(make):
        raise TypeError(
            f"expected make as a function that returns a problem, got {type(make).__name__}: for "
            "instance functools.partial(tl.SpikedTensor, dim=100, order=2)"
        )
    pair = isinstance(axis, Sequence) and len(axis) == 2
    if not pair or not isinstance(axis[0], str) or not isinstance(axis[1], Iterable):
        raise TypeError(
            f'expected {which} as a name and its values, such as ("snr", [1.0, 2.0]), got {axis!r}'
        )
    name, values = axis
    parameters = inspect.signature(make).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if name not in ("step_size", *parameters) and not free:
        raise ValueError(
            f"expected {which} to name one of step_size, {', '.join(parameters)}, got {name!r}"
        )
    values = [float(value) for value in values]
    if not values or any(not b > a for a, b in itertools.pairwise(values)):
        raise ValueError(f"expected increasing values of {name}, got {values}")
    return name, values


def _problem(
    make: Callable[..., Any], parameters: dict[str, float], step_size: float
) -> tuple[Any, float]:
    """The problem of a cell, and c_delta there."""
    step_size = parameters.pop("step_size", step_size)
    made = make(**parameters)
    missing = [n for n in ("dynamics", "model", "statistics") if not hasattr(made, n)]
    if missing:
        raise TypeError(
            f"expected make(...) to return a problem such as tl.GaussianMixture, got "
            f"{type(made).__name__}, which has no {', '.join(missing)}"
        )
    return made, step_size


def _fixed_points(
    problem: Any, step_size: float, *, count: int, flow: float | None, level: int, idle: bool,
    seed: int,
) -> list[FixedPoint]:  # fmt: skip
    if isinstance(problem, SpikedTensor):
        dynamics = problem.dynamics(step_size=step_size)
        return dynamics.fixed_points(seed=seed) if problem.ridge else dynamics.exact_fixed_points()
    if not isinstance(problem, GaussianMixture):
        starts = _random_starts(problem, count or _MODELS, seed)
        dynamics = problem.dynamics(step_size=step_size)
        if not isinstance(dynamics, EffectiveDynamics):
            raise TypeError(
                "expected dynamics(step_size=...) to return tl.EffectiveDynamics, got "
                f"{type(dynamics).__name__}: make them of a tl.VectorField"
            )
        return dynamics.fixed_points(starts, flow=_SETTLING if flow is None else flow)
    dynamics = problem.dynamics(step_size=step_size, level=level)
    assert isinstance(dynamics, MixtureDynamics)  # of plain gradients
    starts = _spread(dynamics, representatives(problem, idle=idle))
    if count:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.cat([starts, dynamics.geometry.starts(dynamics, count, generator)])
    return _up_to_symmetry(dynamics, dynamics.fixed_points(starts, flow=flow))


def _random_starts(problem: Any, count: int, seed: int) -> Float[Tensor, "S k"]:
    """The statistics of models at their random starts."""
    generator = torch.Generator().manual_seed(seed)
    try:
        model = problem.model(replicas=(count,), generator=generator)
    except TypeError as error:
        raise TypeError(
            f"expected {type(problem).__name__}.model(replicas=..., generator=...), which makes "
            f"several models at random starts, got {error}"
        ) from error
    starts = problem.statistics(dict(model.named_parameters())).detach().double()
    if starts.ndim != 2:
        raise ValueError(
            f"expected statistics of {count} models, ({count}, k), got {tuple(starts.shape)}: give "
            "SummaryStatistics(..., parameter_dims=...) for parameters with replicas"
        )
    return starts


def _spread(dynamics: MixtureDynamics, u: Float[Tensor, "S k"]) -> Float[Tensor, "S k"]:
    """Starts of several sizes, with R > 0, as neurons of one mean would stay parallel at R = 0."""
    v, m, R = dynamics.split(u)
    positive = R + _SPREAD * torch.diag_embed(m.square().sum(-1))
    return torch.cat([dynamics.join(s * v, s * m, s**2 * positive) for s in _SIZES])


def representatives(problem: GaussianMixture, *, idle: bool = True) -> Float[Tensor, "S k"]:
    """A point of each class of fixed points at snr = inf, up to the symmetries, including 0.

    Symmetries are permutations of the neurons, and permutations of the means that keep their
    inner products and their labels (or flip all labels). Without ``idle`` either all neurons or
    none are 0.
    """
    limit = problem.small_noise()
    symmetries = _symmetries(limit.coordinates, limit.labels)
    seen: dict[tuple[int, ...], Tensor] = {}
    for component in limit.fixed_point_components():
        if not idle and None in component.classes and set(component.classes) != {None}:
            continue
        classes = [-1 if a is None else a for a in component.classes]
        seen.setdefault(_orbit(classes, symmetries), component.point())
    return torch.stack(list(seen.values()))


def _symmetries(coordinates: Float[Tensor, "A d"], labels: Float[Tensor, " A"]) -> list[list[int]]:
    gram = coordinates @ coordinates.mT
    return [
        p
        for p in map(list, itertools.permutations(range(len(labels))))
        if torch.allclose(gram[p][:, p], gram)
        and (torch.equal(labels[p], labels) or torch.equal(labels[p], 1 - labels))
    ]


def _orbit(classes: Sequence[int], symmetries: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """A key that is the same for all assignments that symmetries turn into each other."""
    return min(tuple(sorted(p[a] if a >= 0 else -1 for a in classes)) for p in symmetries)


def _up_to_symmetry(dynamics: MixtureDynamics, points: Sequence[FixedPoint]) -> list[FixedPoint]:
    """One of the points that the symmetries of `representatives` turn into each other."""
    symmetries = _symmetries(dynamics.coordinates, dynamics.labels)
    same = max(1e-4, dynamics.error)
    kept: dict[tuple[Any, ...], list[tuple[Tensor, FixedPoint]]] = {}
    for point in points:
        orbit = _orbit(dynamics.geometry.cell(point.u).tolist(), symmetries)
        v, m, R = dynamics.split(point.u)
        invariants = torch.cat(
            [v.abs().sort().values, torch.linalg.eigvalsh(m @ m.mT), torch.linalg.eigvalsh(R)]
        )
        alike = kept.setdefault((orbit, point.kind, point.dimension), [])
        # one component of each class is taken
        if not any(point.dimension or torch.allclose(x, invariants, 0, same) for x, _ in alike):
            alike.append((invariants, point))
    chosen = {id(point) for alike in kept.values() for _, point in alike}
    return [point for point in points if id(point) in chosen]


def _best_accuracy(problem: Any, step_size: float, points: Sequence[FixedPoint]) -> float:
    """The best accuracy of points that attract; NaN if there are none, or no accuracy is known.

    It is 0 where x is orthogonal to the spike, and 1/2 where the label is guessed.
    """
    attracting = [p.u for p in points if p.kind != "unstable"]
    if not attracting:
        return float("nan")
    network = isinstance(problem, NetworkProblem)
    knows = problem.dynamics(step_size=step_size) if network else problem
    if not hasattr(knows, "accuracy"):
        return float("nan")
    try:
        return float(knows.accuracy(torch.stack(attracting)).max())
    except ValueError:  # labels that are not classes
        if network:
            return float("nan")
        raise

"""`Lift`: parameters that have given summary statistics, and are random in all other respects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits._linalg import psd_sqrt, unpacked
from torchlimits.statistics.quadratic import Quadratic
from torchlimits.statistics.ready_made import Entries, Gram, Overlaps, SecondLayer, SquaredLengths
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

Remainder = Literal["random", "aligned"]
_Kind = TypeVar("_Kind", bound=Quadratic)


class Lift:
    r"""A function u -> parameters that have the statistics u, for ready-made statistics.

    A weight W with overlaps m = W E^T and Gram matrix R is placed as

    .. math:: W = m (E E^T)^{-1} E + R^{1/2} Q

    with K orthonormal rows Q orthogonal to all directions: the *remainder*, which the statistics
    do not see. Where only squared lengths are known, the angles between neurons belong to the
    remainder too. `Entries` and `SecondLayer` are placed as they are; parameters that no statistic
    reads keep their values.

    Args:
        model: its parameters give shapes, dtypes and devices.
        statistics: made by `torchlimits.statistics.entries`, ``second_layer``, ``overlaps``,
            ``gram`` and ``squared_lengths``, those of the package's mixtures for instance.
        remainder: ``"random"`` draws Q uniformly, ``"aligned"`` takes Q as near to coordinate axes
            as the directions allow. Where the data are not Gaussian these may behave differently.
        seed: the seed of the remainder where a call brings no generator, the same for every call.

    Raises:
        ValueError: if a statistic is of another kind, or if the statistics leave open a weight's
            part along the directions.
        TypeError: if ``model`` is not a module, or ``statistics`` not a `SummaryStatistics`.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.xor(dim=50, snr=2.0)
        >>> lift = tl.Lift(problem.model(dtype=torch.float64), problem.statistics)
        >>> u = problem.statistics(dict(problem.model(dtype=torch.float64).named_parameters()))
        >>> bool(torch.allclose(problem.statistics(lift(u)), u))
        True
    """

    def __init__(
        self, model: nn.Module, statistics: SummaryStatistics, *, remainder: Remainder = "random",
        seed: int = 0,
    ) -> None:  # fmt: skip
        if remainder not in ("random", "aligned"):
            raise ValueError(f"expected remainder 'random' or 'aligned', got {remainder!r}")
        if not isinstance(statistics, SummaryStatistics):
            raise TypeError(
                f"expected a SummaryStatistics, got {type(statistics).__name__}: make one of "
                "tl.statistics.entries, overlaps, gram ..."
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        self.statistics, self.remainder, self.seed = statistics, remainder, seed
        self.parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
        statistics.names_of(self.parameters)  # checks that they are of this model
        self.values = {n: f(self.parameters) for n, f in statistics.functions.items()}
        by_parameter: dict[str, dict[str, Quadratic]] = {}
        for name, function in statistics.functions.items():
            by_parameter.setdefault(_parameter(name, function), {})[name] = function  # type: ignore[assignment]
        self._places = {n: _place_of(n, f, self.parameters[n]) for n, f in by_parameter.items()}

    def __call__(
        self, u: Float[Tensor, " k"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return parameters that have the statistics u, ``{name: tensor}``.

        A matrix R that is not positive semidefinite is replaced by the nearest one that is.

        Args:
            u: the statistics, shape ``(k,)``.
            generator: draws the remainder, on the CPU; by default one with ``seed`` does.

        Raises:
            ValueError: if u has another shape, or is not finite.
            TypeError: if u is not a tensor.
        """
        if not isinstance(u, Tensor):
            raise TypeError(f"expected u as a tensor, got {type(u).__name__}: convert it")
        if not bool(u.isfinite().all()):
            raise ValueError("expected a finite u, got NaN or infinity in it")
        if generator is None:
            generator = torch.Generator().manual_seed(self.seed)
        values = self._split(u)
        placed = {
            name: place(values, self.remainder, generator) for name, place in self._places.items()
        }
        return {n: placed[n].to(p) if n in placed else p for n, p in self.parameters.items()}

    def _split(self, u: Tensor) -> dict[str, Tensor]:
        """Split u into the value of each function, symmetric ones in full."""
        sizes, values, done = {}, {}, 0
        for name, like in self.values.items():
            matrix = name in self.statistics.symmetric
            sizes[name] = math.comb(like.shape[-1] + 1, 2) if matrix else like.numel()
        if u.shape != (sum(sizes.values()),):
            raise ValueError(f"expected u of shape ({sum(sizes.values())},), got {tuple(u.shape)}")
        for name, size in sizes.items():
            part = u[done : done + size].double().cpu()
            done += size
            if name in self.statistics.symmetric:
                part = unpacked(part, self.values[name].shape[-1])
            values[name] = part.reshape(self.values[name].shape)
        return values


class _Copied:
    """A parameter that a statistic shows as it is."""

    def __init__(self, name: str, shape: torch.Size) -> None:
        self.name, self.shape = name, shape

    def __call__(self, values: Mapping[str, Tensor], *_: Any) -> Tensor:
        return values[self.name].reshape(self.shape)


class _Placed:
    """A weight, (K, N), with given overlaps and lengths or Gram matrix."""

    def __init__(self, functions: Mapping[str, Quadratic], weight: Tensor) -> None:
        self.overlaps = {n: f for n, f in functions.items() if isinstance(f, Overlaps)}
        self.gram = _of_kind(functions, Gram)
        self.lengths = _of_kind(functions, SquaredLengths)
        whole = self.gram or self.lengths
        none = torch.zeros(0, weight.shape[1], dtype=torch.float64, device="cpu")
        spans = [f.directions.double().cpu() for f in self.overlaps.values()]
        self.directions = torch.cat([none, *spans])
        removed = None if whole is None else whole[1].perpendicular_to
        if removed is not None:
            _check_spans(self.directions, removed.double().cpu())
        # whether the Gram matrix is that of the whole neurons
        self.includes_overlaps = whole is not None and removed is None
        perpendicular = weight.double().cpu() - self._along(weight.double().cpu())
        self.present = perpendicular @ perpendicular.mT

    def _along(self, weight: Tensor) -> Tensor:
        return weight @ torch.linalg.pinv(self.directions) @ self.directions

    def __call__(
        self, values: Mapping[str, Tensor], remainder: Remainder, generator: torch.Generator
    ) -> Tensor:
        K = len(self.present)
        none = self.present.new_zeros(K, 0)
        m = torch.cat([none, *(values[n] for n in self.overlaps)], dim=-1)
        along = m @ torch.linalg.pinv(self.directions).mT
        # angles first: the same seed then gives the same ones at every N
        root = psd_sqrt(self._gram_matrix(values, along, generator))
        return along + root @ _orthonormal(K, self.directions, remainder, generator)

    def _gram_matrix(
        self, values: Mapping[str, Tensor], along: Tensor, generator: torch.Generator
    ) -> Tensor:
        inside = along @ along.mT if self.includes_overlaps else torch.zeros_like(self.present)
        if self.gram is not None:
            return values[self.gram[0]] - inside
        if self.lengths is not None:
            square = values[self.lengths[0]] - inside.diagonal()
        else:
            square = self.present.diagonal()
        # angles between neurons are free: from all parallel to nearly orthogonal
        K = len(square)
        rank = int(torch.randint(1, K + 1, (), generator=generator, device="cpu"))
        rows = torch.randn(K, rank, generator=generator, dtype=torch.float64, device="cpu")
        rows = rows / rows.norm(dim=1, keepdim=True) * square.clamp_min(0).sqrt()[:, None]
        return rows @ rows.mT


def _place_of(parameter: str, functions: dict[str, Quadratic], like: Tensor) -> Any:
    for name, function in functions.items():
        if isinstance(function, (Entries, SecondLayer)):
            return _Copied(name, like.shape)
    if like.ndim != 2:
        raise ValueError(
            f"expected the weight {parameter!r} of shape (K, N), got {tuple(like.shape)}: give a "
            "lift of your own"
        )
    return _Placed(functions, like)


def _parameter(name: str, function: StatisticFunction) -> str:
    if not isinstance(function, (Entries, SecondLayer, Overlaps, Gram, SquaredLengths)):
        raise ValueError(
            f"expected ready-made statistics (tl.statistics.entries, second_layer, overlaps, gram, "
            f"squared_lengths), got {name!r}, of which parameters are not known: give a lift of "
            "your own, a function u -> {parameter name: tensor}"
        )
    return function.parameter


def _of_kind(functions: Mapping[str, Quadratic], kind: type[_Kind]) -> tuple[str, _Kind] | None:
    return next(((n, f) for n, f in functions.items() if isinstance(f, kind)), None)


def _check_spans(span: Tensor, removed: Tensor) -> None:
    """Check that the overlaps tell the part of the weight that the Gram matrix leaves out."""
    ranks = {int(torch.linalg.matrix_rank(x)) for x in (span, removed, torch.cat([span, removed]))}
    if len(ranks) > 1:
        raise ValueError(
            "expected overlaps with the directions that the Gram matrix is perpendicular to, got "
            "others or none: the part of the weight along them is then open"
        )


def _orthonormal(
    count: int, directions: Tensor, remainder: Remainder, generator: torch.Generator
) -> Float[Tensor, "K N"]:
    """Return orthonormal rows that are orthogonal to the directions."""
    N = directions.shape[1]
    basis = torch.linalg.qr(directions.mT).Q if len(directions) else directions.mT
    if count + basis.shape[1] > N:
        raise ValueError(
            f"expected at least {count + basis.shape[1]} inputs for {count} neurons and "
            f"{basis.shape[1]} directions, got {N}"
        )
    if remainder == "random":
        rows = torch.randn(N, count, generator=generator, dtype=torch.float64, device="cpu")
    else:
        # the axes that the directions use least
        order = torch.randperm(N, generator=generator, device="cpu")
        load = basis.square().sum(-1)[order]
        axes = order[load.argsort(stable=True)[:count]]
        rows = torch.eye(N, dtype=torch.float64, device="cpu")[:, axes]
    for _ in range(2):  # twice, because of rounding
        rows = torch.linalg.qr(rows - basis @ (basis.mT @ rows)).Q
    return rows.mT

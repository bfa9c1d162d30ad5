"""`GeneralIncrements`: how functions without derivatives of their own change along gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from torchlimits import _checks
from torchlimits.estimation.increments import Increments, Rows, Step
from torchlimits.estimation.low_rank import LowRank, few_entries
from torchlimits.statistics.quadratic import Gradient, OuterGradient, dense, largest_entries, part
from torchlimits.statistics.reads import ReadRecorder
from torchlimits.statistics.statistic_error import StatisticError
from torchlimits.statistics.summary import StatisticFunction

#: samples on which outer products are compared with tensors
_COMPARED = 2
#: bytes of gradients in float64 along which functions are differentiated at once
_PIECE_BYTES = 2**23
#: arrays of that size that are alive at once
_COPIES = 4
#: what has this many times the entries of a row and a column together may be written out
_SMALL = 4

#: in units of the precision: how far the ways may be from one another
_ROUNDING = 1e3

Values = dict[str, Tensor]
#: the gradients of one sample or of many: a tensor, or the factors of an outer product
Gradients = Mapping[str, Tensor | tuple[Tensor, Tensor]]


class Way(NamedTuple):
    """How a function is differentiated.

    Attributes:
        reads: the moving parameters that it reads.
        structured: whether it can compute with outer products.
        vectorised: whether it takes many samples at once.
    """

    reads: list[str]
    structured: bool = False
    vectorised: bool = True


class GeneralIncrements(Increments):
    """Increments of functions that torch.func differentiates twice, in forward mode.

    Functions are evaluated together. Those that can compute with the factors of outer products
    (`LowRank`) get them, if that agrees with tensors on two samples; others get tensors; those
    that vmap cannot take get one sample at a time.

    Args:
        functions: ``{name: function of the parameters}``.
        step: the step.
        ways: how each function is differentiated; what is not known is found out and added.
        max_bytes: roughly what may be alive at once.
    """

    def __init__(
        self, functions: Mapping[str, StatisticFunction], step: Step, ways: dict[str, Way],
        max_bytes: int,
    ) -> None:  # fmt: skip
        self.functions, self.step, self.ways = functions, step, ways
        self.moving = {n: step.parameters[n] for n in step.centre}
        self.piece_bytes = min(_PIECE_BYTES, max_bytes // _COPIES)
        # differences of numbers delta apart: in float64, if the function accepts it
        self.wide = {n: p.double() for n, p in step.parameters.items()}
        self.exact: dict[str, Mapping[str, Tensor]] = {}
        self.value: Values = {}
        for name, function in functions.items():
            try:
                function(self.wide)
                self.exact[name] = self.wide
            except Exception:  # it holds float32 tensors of its own
                self.exact[name] = step.parameters
            self.value[name] = function(self.exact[name])
        self.along_centre = self.first(step.centre)

    def first(self, direction: Mapping[str, Tensor]) -> Values:
        """Return Du[direction]."""
        tangents = {n: direction.get(n, torch.zeros_like(x)) for n, x in self.moving.items()}
        return self._together(
            lambda names: jvp(partial(self._values, names), (self.moving,), (tangents,))[1]
        )

    def second(self, direction: Mapping[str, Tensor]) -> Values:
        """Return D^2 u[direction, direction] / 2."""
        found = self._together(lambda names: self._nested(names, dict(direction), {}, {})[1])
        return {name: x / 2 for name, x in found.items()}

    def rows(self, gradients: Mapping[str, Gradient]) -> dict[str, Rows]:
        """Return the increments along each gradient of a batch."""
        new = [name for name in self.functions if name not in self.ways]
        if new:
            self._find_ways(new, gradients)
        groups: dict[tuple[bool, bool], list[str]] = {}
        for name in self.functions:
            groups.setdefault(self.ways[name][1:], []).append(name)
        return {
            name: rows
            for (structured, vectorised), names in groups.items()
            for name, rows in self._in_pieces(names, gradients, structured, vectorised).items()
        }

    # --- the ways -----------------------------------------------------------------------------

    def _find_ways(self, names: list[str], gradients: Mapping[str, Gradient]) -> None:
        # samples with the largest gradients, as a gradient of 0 says nothing
        sizes = torch.stack([largest_entries(g) for g in gradients.values()]).amax(0)
        largest = sizes.argsort(descending=True)[:_COMPARED].tolist()
        few = {n: part(g, largest) for n, g in gradients.items()}
        tensors = {n: dense(g) for n, g in few.items()}
        expected = self._tried(names, tensors)
        self._check_modes(names, {n: g[0] - self.step.centre[n] for n, g in tensors.items()})
        for name in names:
            reads = self._reads(name)
            if name in expected:
                self.ways[name] = Way(reads)
                continue
            self._check_loop(name, tensors)
            self.ways[name] = Way(reads, vectorised=False)
            warnings.warn(
                f"torch.func.vmap cannot take statistic {name!r}: its derivatives are computed "
                "sample by sample, which is slow",
                stacklevel=2,
            )
        if expected and any(isinstance(g, OuterGradient) for g in few.values()):
            for name, found in self._tried(list(expected), few).items():
                if _agree(found, expected[name]):
                    self.ways[name] = self.ways[name]._replace(structured=True)

    def _reads(self, name: str) -> list[str]:
        recorder = ReadRecorder(self.step.parameters, self.step.parameters)
        with torch.no_grad():
            self.functions[name](recorder)
        return [n for n in self.moving if n in recorder.read]

    def _tried(self, names: list[str], gradients: Mapping[str, Gradient]) -> dict[str, Rows]:
        """The increments of those functions that can do it."""
        try:
            return self._rows(names, gradients)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:
            if len(names) == 1:
                return {}
            return {n: rows for name in names for n, rows in self._tried([name], gradients).items()}

    def _check_loop(self, name: str, gradients: Mapping[str, Gradient]) -> None:
        """Raise StatisticError unless samples can be taken one by one."""
        function, parameters = self.functions[name], self.step.parameters

        def work(names: list[str]) -> dict[str, Rows]:
            with _NoBranches():
                found = self._rows(names, gradients, vectorised=False)
            if not torch.equal(
                function(parameters).nan_to_num(), function(parameters).nan_to_num()
            ):
                raise ValueError("its value differs from call to call: it must not draw anything")
            return found

        self._together(work, [name])

    def _check_modes(self, names: list[str], direction: Values) -> None:
        """Raise StatisticError where second derivatives of torch's two modes differ.

        Forward over forward is wrong for some functions, `torch.linalg.det` and `solve` among them
        (torch 2.13), and says nothing; forward over reverse is right.
        """
        try:
            forward, reverse, precision = self._both_modes(names, direction)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:
            if len(names) > 1:  # else one mode is not there: whoever needs it says so
                for name in names:
                    self._check_modes([name], direction)
            return
        # NaN is told elsewhere
        if not abs(forward - reverse) > len(names) * precision:
            return
        for name in names if len(names) > 1 else ():
            self._check_modes([name], direction)
        if len(names) == 1:
            raise StatisticError(
                f"expected statistic {names[0]!r} to be made of functions whose second derivatives "
                f"torch has right, got {forward:g} in forward mode and {reverse:g} by forward over "
                "reverse mode along the gradient of a sample, relative to its value: "
                "torch.linalg.det, slogdet and solve are such functions; use cholesky or eigvalsh "
                "in their place (of A A^T, say), or torchlimits.statistics that know their "
                "derivatives"
            )

    def _both_modes(self, names: list[str], direction: Values) -> tuple[float, float, float]:
        """The sum of D^2 u[h, h] in both modes, and how far they may be apart for each function.

        Functions are weighted by 1, 2, ... for their entries, over the sizes of value and
        derivatives. h has the length of the parameters, so that none hides behind another.
        """
        start = self.exact[names[0]]
        if any(self.exact[name] is not start for name in names):
            raise ValueError("expected functions of the same parameters")
        moving = {n: start[n] for n in self.moving}
        h = {n: direction.get(n, torch.zeros_like(x)).to(x) for n, x in moving.items()}
        squares = (torch.stack([t.square().sum() for t in x.values()]).sum() for x in (moving, h))
        factor = torch.div(*squares).sqrt()
        h = {n: x * factor for n, x in h.items()}

        def weighted(at: Values) -> Tensor:
            values = (x.flatten() for x in self._values(names, at, start).values())
            return torch.stack([x @ torch.arange(1, len(x) + 1).to(x) for x in values])

        found: Any = jvp(lambda at: jvp(weighted, (at,), (h,)), (moving,), (h,))
        (value, first), (_, second) = found
        scale = 1 / (value.abs() + first.abs() + second.abs()).clamp_min(1e-30)
        turned = jvp(grad(lambda at: weighted(at) @ scale), (moving,), (h,))[1]
        reverse = torch.stack([(turned[n] * x).sum() for n, x in h.items()]).sum()
        return float(second @ scale), float(reverse), torch.finfo(value.dtype).eps ** 0.5

    # --- derivatives --------------------------------------------------------------------------

    def _in_pieces(
        self,
        names: list[str],
        gradients: Mapping[str, Gradient],
        structured: bool,
        vectorised: bool,
    ) -> dict[str, Rows]:
        reads = {n for name in names for n in self.ways[name].reads} or set(self.moving)
        own = {n: gradients[n] for n in self.moving if n in reads}
        samples = len(largest_entries(next(iter(own.values()))))
        size = sum(_numbers(g, structured) for g in own.values()) * torch.float64.itemsize
        piece = max(1, self.piece_bytes // size)
        parts = []
        for done in range(0, samples, piece):
            few = {n: part(g, slice(done, done + piece)) for n, g in own.items()}
            few = {n: g if structured and not _is_small(g) else dense(g) for n, g in few.items()}
            parts.append(self._together(lambda n, few=few: self._rows(n, few, vectorised), names))
        if len(parts) == 1:
            return parts[0]
        return {n: Rows(*map(torch.cat, zip(*(p[n] for p in parts), strict=True))) for n in names}

    def _rows(
        self, names: list[str], gradients: Mapping[str, Gradient], vectorised: bool = True
    ) -> dict[str, Rows]:
        """The increments by the gradients as they are."""
        tensors = {
            n: (g.left, g.right) if isinstance(g, OuterGradient) else g
            for n, g in gradients.items()
        }
        one = partial(self._one, names)
        if vectorised:
            first, second, whole = vmap(one)(tensors)
        else:
            count = len(pytree.tree_leaves(tensors)[0])
            each = [one(pytree.tree_map(lambda x, s=s: x[s], tensors)) for s in range(count)]
            first, second, whole = (
                {n: torch.stack([values[n] for values in column]) for n in names}
                for column in zip(*each, strict=True)
            )
        return {
            n: Rows(
                first[n] + self.along_centre[n],
                second[n] / 2,
                (whole[n] - self.value[n]) / self.step.size,
            )
            for n in names
        }

    def _one(self, names: list[str], gradients: Gradients) -> tuple[Values, Values, Values]:
        """Du[h] and D^2 u[h, h], h = g - centre, and u after the step, for one sample."""
        base, left, right = {}, {}, {}
        for name, gradient in gradients.items():
            centre = self.step.centre[name]
            if isinstance(gradient, tuple):
                base[name] = -centre
                left[name], right[name] = gradient[0][:, None], gradient[1][None]
            else:
                base[name] = gradient - centre
        first, second = self._nested(names, base, left, right)
        whole: Values = {}
        for start in (self.wide, self.step.parameters):
            own = [n for n in names if self.exact[n] is start]
            if own:
                after = {n: self._after(n, start[n], g) for n, g in gradients.items()}
                whole |= self._values(own, after, start)
        return first, second, whole

    def _after(self, name: str, start: Tensor, gradient: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """A parameter after the step."""
        delta = self.step.size
        if name in self.step.pulls:
            start = start - delta * self.step.pulls[name].to(start)
        if not isinstance(gradient, tuple):
            return torch.add(start, gradient.to(start), alpha=-delta)
        a, x = (factor.to(start) for factor in gradient)
        return _low_rank(start, -delta * a[:, None], x[None])

    def _nested(
        self, names: list[str], base: Values, left: Values, right: Values
    ) -> tuple[Values, Values]:
        """First and second derivatives along base + left @ right."""

        def values(moving: Values, factors: Values) -> Values:
            products = {n: _low_rank(moving[n], x, right[n]) for n, x in factors.items()}
            return self._values(names, {**moving, **products})

        def along(moving: Values, factors: Values) -> Values:
            return jvp(values, (moving, factors), (base, left))[1]

        start = {n: self.moving[n] for n in base}
        zeros = {n: x.new_zeros(x.shape) for n, x in left.items()}
        found: Any = jvp(along, (start, zeros), (base, left))
        first, second = found
        return first, second

    def _values(
        self, names: list[str], moving: Values, others: Mapping[str, Tensor] | None = None
    ) -> Values:
        others = self.step.parameters if others is None else others
        found = {n: few_entries(self.functions[n]({**others, **moving})) for n in names}
        like = next(iter(self.moving.values()))
        return {n: x if x.is_floating_point() else x.to(like.dtype) for n, x in found.items()}

    def _together(
        self, work: Callable[[list[str]], dict[str, Any]], names: list[str] | None = None
    ) -> dict[str, Any]:
        """Do the work for all functions at once, or for each alone to say which one fails."""
        names = list(self.functions) if names is None else names
        try:
            return work(names)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            if len(names) > 1:
                return {n: x for name in names for n, x in self._together(work, [name]).items()}
            raise StatisticError(
                f"expected statistic {names[0]!r} to be one that torch.func can differentiate "
                "twice (vmap of jvp of jvp: no .item(), no branches on values), got "
                f"{type(error).__name__}: {error}; it was given "
                + _checks.shapes(self.step.parameters)
            ) from error


class _NoBranches(TorchFunctionMode):
    """Refuses what would hide from derivatives how a number depends on the parameters."""

    _HIDING = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._HIDING and _is_differentiated(args[0]):
            raise TypeError(f"a value that depends on the parameters is asked for {func.__name__}")
        return func(*args, **(kwargs or {}))


def _is_differentiated(x: Any) -> bool:
    return torch._C._functorch.is_gradtrackingtensor(x)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def _low_rank(base: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return LowRank.of(base, left, right, small=_SMALL * sum(base.shape))


def _is_small(gradient: Gradient) -> bool:
    """Whether an outer product is no larger than its factors."""
    if not isinstance(gradient, OuterGradient):
        return False
    K, N = gradient.left.shape[1], gradient.right.shape[1]
    return K * N <= K + N


def _numbers(gradient: Gradient, structured: bool) -> int:
    """The numbers that a sample takes."""
    if not isinstance(gradient, OuterGradient):
        return gradient[0].numel()
    K, N = gradient.left.shape[1], gradient.right.shape[1]
    return K + N if structured and not _is_small(gradient) else K * N


def _agree(found: Rows, expected: Rows) -> bool:
    # gradients have the precision of the parameters, whatever is made of them
    eps = torch.finfo(found.along.dtype).eps
    return all(
        float((got - value).abs().max()) <= _ROUNDING * eps * float(value.abs().max())
        for got, value in zip(found, expected, strict=True)
    )

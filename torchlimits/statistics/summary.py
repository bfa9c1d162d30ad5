"""`SummaryStatistics`: named functions of a model's parameters, gathered into one vector u."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits.statistics.entry_names import as_float, entry_names
from torchlimits.statistics.over_copies import OverCopies
from torchlimits.statistics.quadratic import Parameters, Quadratic, near
from torchlimits.statistics.reads import Reading, ReadRecorder
from torchlimits.statistics.statistic_error import failed, given

#: a function of a plain dict of what it reads, which may be annotated as dict or as Mapping
StatisticFunction = Callable[[Any], Tensor]


class SummaryStatistics:
    r"""Summary statistics :math:`u: \mathbb{R}^p \to \mathbb{R}^k` of a model's parameters.

    Source: the u of Ben Arous, Gheissari and Jagannath (arXiv 2206.04030), section 2.

    Args:
        functions: name -> function of ``{parameter name: tensor}`` (as in
            `torch.func.functional_call`), returning a tensor of any shape. Its entries are named
            ``name[0]``, ``name[0,1]`` ...; a scalar keeps the plain ``name``.
        symmetric: names whose value is a symmetric matrix; only its entries i <= j are kept.
        parameter_dims: ``{parameter name: number of dimensions}`` in one model. If given, the
            functions take parameters with any leading dimensions (many replicas, many snapshots)
            and keep these in their value; `__call__` then returns ``(..., k)``.
        indices: for names whose value is one row of entries, ``(n,)``, what is to stand between
            the brackets of each, ``{"R": ["0,0,0", "0,0,1", ...]}``.

    Raises:
        TypeError: if a function is not callable or does not return a real tensor.
        ValueError: if shapes do not fit; a `StatisticError` if a function fails, or asks for a
            parameter that is not there.

    Example:
        >>> import torch
        >>> statistics = SummaryStatistics({
        ...     "norm": lambda p: p["weight"].norm(),
        ...     "bias": lambda p: p["bias"],
        ... })
        >>> layer = torch.nn.Linear(3, 2)
        >>> statistics.names_of(dict(layer.named_parameters()))
        ['norm', 'bias[0]', 'bias[1]']
        >>> statistics(dict(layer.named_parameters())).shape
        torch.Size([3])
        >>> statistics.parameters_read(dict(layer.named_parameters()))
        ['weight', 'bias']
        >>> shapes = statistics.shapes_of(dict(layer.named_parameters()))
        >>> shapes, statistics.entry_names(shapes)
        ({'norm': (), 'bias': (2,)}, ['norm', 'bias[0]', 'bias[1]'])
        >>> jacobian = statistics.jacobian(dict(layer.named_parameters()))
        >>> jacobian["weight"].shape, jacobian["bias"].shape
        (torch.Size([3, 2, 3]), torch.Size([3, 2]))
        >>> SummaryStatistics.of(statistics) is statistics
        True
        >>> statistics.values_of(dict(layer.named_parameters()))["bias"].shape
        torch.Size([2])
        >>> statistics.bound(layer).functions == statistics.functions  # none needs the module
        True
        >>> statistics.select(["bias"]).names_of(dict(layer.named_parameters()))
        ['bias[0]', 'bias[1]']
        >>> statistics.entries({"norm": torch.zeros(5), "bias": torch.zeros(5, 2)}).shape
        torch.Size([5, 3])

    Functions of parameters with leading dimensions:

        >>> runs = SummaryStatistics({"bias": lambda p: p["bias"]}, parameter_dims={"bias": 1})
        >>> stacked = {"bias": torch.zeros(7, 2)}
        >>> runs.batch_dims(stacked), runs(stacked).shape, runs.of_runs(4)(stacked).shape
        (1, torch.Size([7, 2]), torch.Size([4, 2]))

    Statistics beside those of a problem; of two with the same name, the right one counts:

        >>> import torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=50, order=2, snr=2.0)
        >>> both = problem.statistics | {"largest": lambda p: p["x"].abs().amax(-1)}
        >>> both.names_of(dict(problem.model().named_parameters()))
        ['m', 'r2', 'largest']
    """

    def __init__(
        self, functions: Mapping[str, StatisticFunction], *, symmetric: Collection[str] = (),
        parameter_dims: Mapping[str, int] | None = None,
        indices: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        if not functions:
            raise ValueError("expected at least one statistic, got an empty dict")
        for name, function in functions.items():
            if not isinstance(name, str) or not callable(function):
                raise TypeError(
                    "expected {name: function of the parameters}, "
                    f"got {name!r}: {type(function).__name__}"
                )
        self.indices = dict(indices or {})
        for what, named in (("symmetric", symmetric), ("indices of", self.indices)):
            unknown = set(named) - set(functions)
            if unknown:
                raise ValueError(
                    f"expected {what} names among {list(functions)}, got {sorted(unknown)}"
                )
        self.functions = dict(functions)
        self.symmetric = frozenset(symmetric)
        self.parameter_dims = None if parameter_dims is None else dict(parameter_dims)
        self._runs: int | None = None  # how many replicas count; the others fill up a group

    @classmethod
    def of(
        cls, statistics: SummaryStatistics | Mapping[str, StatisticFunction]
    ) -> SummaryStatistics:
        """The statistics themselves, or statistics made of a dict.

        Args:
            statistics: a `SummaryStatistics`, or ``{name: function}``.

        Raises:
            TypeError: if they are neither.
        """
        if isinstance(statistics, cls):
            return statistics
        if not isinstance(statistics, Mapping):
            raise TypeError(
                "expected statistics to be a SummaryStatistics or a dict {name: function}, "
                f"got {type(statistics).__name__}"
            )
        return cls(statistics)

    def __or__(
        self, other: SummaryStatistics | Mapping[str, StatisticFunction]
    ) -> SummaryStatistics:
        """These statistics and others, which replace those of the same name.

        Which matrices are symmetric, and how many dimensions parameters have without replicas, is
        kept. Functions in a dict are of one model, and stand for every replica.

        Args:
            other: a `SummaryStatistics`, or ``{name: function}``.

        Raises:
            ValueError: if both have ``parameter_dims``, and they differ.
        """
        if not isinstance(other, (SummaryStatistics, Mapping)):
            return NotImplemented
        return _joined(self, SummaryStatistics.of(other))

    def __ror__(self, other: Mapping[str, StatisticFunction]) -> SummaryStatistics:
        """A dict of statistics and then these, which replace those of the same name."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return _joined(SummaryStatistics.of(other), self)

    def keys(self) -> NoReturn:
        """Refuse ``{**statistics}``: a dict would forget which statistics are symmetric.

        >>> SummaryStatistics({"one": abs}).keys()
        Traceback (most recent call last):
        TypeError: expected statistics | {name: function}, got {**statistics}: ...
        """
        raise TypeError(
            "expected statistics | {name: function}, got {**statistics}: a dict would forget "
            f"which of {list(self.functions)} are symmetric; .functions is the plain dict"
        )

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch k"]:
        """The vector u, shape ``(k,)``, or ``(..., k)`` where ``parameter_dims`` are known."""
        batch = self.batch_dims(parameters)
        rows = [
            self._entries(name, value, batch) for name, value in self._evaluate(parameters).items()
        ]
        devices = {row.device for row in rows}
        if len(devices) > 1:  # one was made on the CPU, from .item() for instance
            device = max(devices, key=lambda device: device.type != "cpu")
            rows = [row.to(device) for row in rows]
        u = torch.cat(rows, dim=-1)
        return u if self._runs is None else u[..., : self._runs, :]

    def entries(self, values: Mapping[str, Tensor]) -> Float[Tensor, "B k"]:
        """u, or what belongs to it, from values of each function for a batch, ``(B, ...)``."""
        return torch.cat([self._entries(name, values[name], 1) for name in self.functions], dim=-1)

    def parameters_read(
        self, parameters: Parameters, sources: Parameters | None = None
    ) -> list[str]:
        """The names of the parameters that the functions look at.

        Args:
            parameters: ``{name: tensor}``, read when they are looked at and not before.
            sources: the same tensors, whose names and shapes error messages tell; by default
                ``parameters``.
        """
        recorder = ReadRecorder(parameters, parameters if sources is None else sources)
        with torch.no_grad():
            self(recorder)
        return [name for name in parameters if name in recorder.read]

    def bound(self, module: nn.Module) -> SummaryStatistics:
        """The same statistics, with those that need the module itself bound to it.

        Args:
            module: the user's own module.
        """
        result = copy.copy(self)
        result.functions = {
            name: f.bound(module) if hasattr(f, "bound") else f  # type: ignore[attr-defined]
            for name, f in self.functions.items()
        }
        return result

    def given(self, reads: Mapping[str, list[str]]) -> SummaryStatistics:
        """The same statistics, each given a plain dict of what it reads.

        Args:
            reads: for each function, the names of the tensors that it reads.

        Example:
            >>> import torch
            >>> u = SummaryStatistics({"count": lambda p: torch.tensor(len(p))})
            >>> u.given({"count": ["b"]})({"a": torch.ones(2), "b": torch.ones(1)})
            tensor([1.], dtype=torch.float64)
        """
        result = copy.copy(self)
        result.functions = {name: Reading(f, reads[name]) for name, f in self.functions.items()}
        return result

    def names_of(self, parameters: Parameters) -> list[str]:
        """The k names, in the order of u; evaluates every function once, without gradient.

        Args:
            parameters: ``{name: tensor}``.

        Raises:
            ValueError, TypeError: if a function fails, see `SummaryStatistics`.
        """
        return self.entry_names(self.shapes_of(parameters))

    def shapes_of(self, parameters: Parameters) -> dict[str, tuple[int, ...]]:
        """The shape of each function's value for one model; evaluates them, without gradient.

        Args:
            parameters: ``{name: tensor}``.
        """
        batch = self.batch_dims(parameters)
        values = self.values_of(parameters)
        return {name: tuple(value.shape[batch:]) for name, value in values.items()}

    def values_of(self, parameters: Parameters) -> dict[str, Tensor]:
        """The value of each function, in its own shape, without gradient.

        Args:
            parameters: ``{name: tensor}``.
        """
        with torch.no_grad():
            return self._evaluate(parameters)

    def entry_names(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """The k names.

        Args:
            shapes: what `shapes_of` returned.
        """
        return [
            entry
            for name, shape in shapes.items()
            for entry in (
                [f"{name}[{index}]" for index in self.indices[name]]
                if name in self.indices
                else entry_names(name, shape, name in self.symmetric)
            )
        ]

    def jacobian(self, parameters: Parameters) -> dict[str, Float[Tensor, "k *shape"]]:
        r"""The Jacobian :math:`J = \nabla u` of one model, ``(k, *shape)`` for each parameter.

        Args:
            parameters: ``{name: tensor}`` of one model.

        Raises:
            ValueError: if they have leading replica dimensions.
        """
        if self.batch_dims(parameters):
            raise ValueError("expected the parameters of one model, got leading replica dimensions")
        return torch.func.jacrev(self.__call__)(dict(parameters))  # type: ignore[return-value]

    def select(self, names: Collection[str]) -> SummaryStatistics:
        """Only the statistics with the given function names (``"v"``, not ``"v[0]"``)."""
        unknown = [name for name in names if name not in self.functions]
        if unknown:
            raise ValueError(f"expected names among {list(self.functions)}, got {unknown}")
        return SummaryStatistics(
            {name: self.functions[name] for name in names},
            symmetric=self.symmetric & set(names),
            parameter_dims=self.parameter_dims,
            indices={name: self.indices[name] for name in names if name in self.indices},
        )

    def near(self, parameters: Parameters) -> SummaryStatistics:
        """The same statistics, with all that they hold on the device of these parameters.

        Example:
            >>> import torch, torchlimits as tl
            >>> m = tl.statistics.overlaps("weight", torch.eye(2, 3).double())
            >>> u = SummaryStatistics({"m": m})
            >>> u.near({"weight": torch.zeros(1, 3)}).functions["m"].directions.dtype
            torch.float32
        """
        result = copy.copy(self)
        result.functions = {name: near(f, parameters) for name, f in self.functions.items()}
        return result

    def of_runs(self, runs: int) -> SummaryStatistics:
        """The statistics of the first ``runs`` replicas, where parameters have replicas."""
        result = copy.copy(self)
        result._runs = None if self.parameter_dims is None else runs
        return result

    def of_copies(self, dims: Mapping[str, int]) -> SummaryStatistics:
        """The statistics of any number of copies, if these are of one model; otherwise themselves.

        Args:
            dims: ``{name of a parameter or buffer: number of dimensions}`` in one model.

        Example:
            >>> import torch
            >>> norm = SummaryStatistics({"norm": lambda p: p["weight"].norm()})
            >>> norm.of_copies({"weight": 2})({"weight": torch.ones(5, 2, 3)}).shape
            torch.Size([5, 1])
        """
        if self.parameter_dims is not None:
            return self
        return SummaryStatistics(
            # ready-made ones take leading dimensions themselves
            {
                name: f if isinstance(f, Quadratic) else OverCopies(f, dims)
                for name, f in self.functions.items()
            },
            symmetric=self.symmetric,
            parameter_dims=dims,
            indices=self.indices,
        )

    def batch_dims(self, parameters: Parameters) -> int:
        """How many leading dimensions the parameters have beyond those of one model."""
        if self.parameter_dims is None:
            return 0
        for name, dims in self.parameter_dims.items():
            if name in parameters:
                return parameters[name].ndim - dims
        raise ValueError(
            f"expected parameters {list(self.parameter_dims)}, the model has {list(parameters)}: "
            "these statistics belong to another network"
        )

    def _evaluate(self, parameters: Parameters) -> dict[str, Tensor]:
        return {name: self._value(name, f, parameters) for name, f in self.functions.items()}

    def _value(self, name: str, function: StatisticFunction, parameters: Parameters) -> Tensor:
        try:
            value = function(parameters)
        except (torch.OutOfMemoryError, MemoryError):
            raise  # it says nothing about the statistic
        except Exception as error:
            raise failed(name, error, parameters) from error
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected statistic {name!r} to return a tensor, got {type(value).__name__}: "
                "return a tensor computed from the parameters, without .item(); "
                + given(parameters)
            )
        if value.is_complex() or value.layout is not torch.strided:
            raise TypeError(
                f"expected statistic {name!r} to be a real, dense tensor, got {value.dtype} in "
                f"layout {value.layout}: return its .real, .abs() or .to_dense(); "
                + given(parameters)
            )
        dims = value.ndim - self.batch_dims(parameters)
        entries = len(self.indices.get(name, ()))
        if name in self.indices and value.shape[-1:] != (entries,):
            raise ValueError(
                f"expected the statistic {name!r} to be a row of {entries} entries, "
                f"one for each of its indices, got shape {tuple(value.shape)}; {given(parameters)}"
            )
        if name in self.symmetric and (dims != 2 or value.shape[-1] != value.shape[-2]):
            raise ValueError(
                f"expected the symmetric statistic {name!r} to be a square matrix, "
                f"got shape {tuple(value.shape)}; {given(parameters)}"
            )
        return value

    def _entries(self, name: str, value: Tensor, batch: int) -> Tensor:
        if name in self.symmetric:
            i, j = torch.triu_indices(value.shape[-1], value.shape[-1], device=value.device)
            return as_float(value[..., i, j])
        return as_float(value.reshape(*value.shape[:batch], -1))


def _joined(left: SummaryStatistics, right: SummaryStatistics) -> SummaryStatistics:
    """The functions of both; where both have a name, function and symmetry are the right one's."""
    dims: dict[str, int] | None = None
    if left.parameter_dims is not None or right.parameter_dims is not None:
        dims = {**(left.parameter_dims or {}), **(right.parameter_dims or {})}
        if dims != {**(right.parameter_dims or {}), **(left.parameter_dims or {})}:
            raise ValueError(
                f"expected parameter_dims that agree, got {left.parameter_dims} and "
                f"{right.parameter_dims}: these statistics belong to different networks"
            )
        left, right = left.of_copies(dims), right.of_copies(dims)
    kept = {name: x for name, x in left.indices.items() if name not in right.functions}
    return SummaryStatistics(
        {**left.functions, **right.functions},
        symmetric=(left.symmetric - set(right.functions)) | right.symmetric,
        parameter_dims=dims,
        indices={**kept, **right.indices},
    )

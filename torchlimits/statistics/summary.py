"""`SummaryStatistics`: named functions of a model's parameters, gathered into one vector u."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.statistics.quadratic import Parameters, near
from torchlimits.statistics.reads import Reading, ReadRecorder

StatisticFunction = Callable[[Parameters], Tensor]


class StatisticError(ValueError):
    r"""A statistic's function failed; the message has its name and the parameters it was given.

    Its cause (``__cause__``) is the function's own exception.

    Example:
        >>> import torch
        >>> def square(parameters):
        ...     if len(parameters["weight"]) > 1:
        ...         raise ValueError("expected one row")
        ...     return parameters["weight"].square().sum()
        >>> statistics = SummaryStatistics({"square": square})
        >>> try:
        ...     statistics({"weight": torch.ones(2, 3)})
        ... except StatisticError as error:
        ...     print(*str(error).split("; "), sep="\n")
        statistic 'square' failed with ValueError: expected one row
        it was given weight (2, 3) float32
    """


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
    """

    def __init__(
        self, functions: Mapping[str, StatisticFunction], *, symmetric: Collection[str] = (),
        parameter_dims: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        if not functions:
            raise ValueError("expected at least one statistic, got an empty dict")
        for name, function in functions.items():
            if not isinstance(name, str) or not callable(function):
                raise TypeError(
                    "expected {name: function of the parameters}, "
                    f"got {name!r}: {type(function).__name__}"
                )
        unknown = set(symmetric) - set(functions)
        if unknown:
            raise ValueError(
                f"expected symmetric names among {list(functions)}, got {sorted(unknown)}"
            )
        self.functions = dict(functions)
        self.symmetric = frozenset(symmetric)
        self.parameter_dims = None if parameter_dims is None else dict(parameter_dims)

    @classmethod
    def of(
        cls, statistics: SummaryStatistics | Mapping[str, StatisticFunction]
    ) -> SummaryStatistics:
        """The statistics themselves, or made of a dict.

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

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch k"]:
        """The vector u, shape ``(k,)``, or ``(..., k)`` where ``parameter_dims`` are known."""
        batch = self.batch_dims(parameters)
        rows = [
            self._entries(name, value, batch) for name, value in self._evaluate(parameters).items()
        ]
        devices = {row.device for row in rows}
        if len(devices) > 1:  # one made on the CPU, of .item() for instance
            device = max(devices, key=lambda device: device.type != "cpu")
            rows = [row.to(device) for row in rows]
        return torch.cat(rows, dim=-1)

    def entries(self, values: Mapping[str, Tensor]) -> Float[Tensor, "B k"]:
        """u, or what belongs to it, from values of each function for a batch, ``(B, ...)``."""
        return torch.cat([self._entries(name, values[name], 1) for name in self.functions], dim=-1)

    def parameters_read(
        self, parameters: Parameters, sources: Parameters | None = None
    ) -> list[str]:
        """The names of the parameters that the functions look at.

        Args:
            parameters: ``{name: tensor}``, read when they are looked at and not before.
            sources: the same, of which errors tell names and shapes; by default ``parameters``.
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
            for entry in _entry_names(name, shape, name in self.symmetric)
        ]

    def jacobian(self, parameters: Parameters) -> dict[str, Float[Tensor, "k *shape"]]:
        r"""The Jacobian :math:`J = \nabla u` of one model, ``(k, *shape)`` a parameter.

        Args:
            parameters: ``{name: tensor}`` of one model.

        Raises:
            ValueError: if they have leading replica dimensions.
        """
        if self.batch_dims(parameters):
            raise ValueError("expected the parameters of one model, got leading replica dimensions")
        return torch.func.jacrev(self.__call__)(dict(parameters))  # type: ignore[return-value]

    def select(self, names: Collection[str]) -> SummaryStatistics:
        """The statistics of the given function names only (``"v"``, not ``"v[0]"``)."""
        unknown = [name for name in names if name not in self.functions]
        if unknown:
            raise ValueError(f"expected names among {list(self.functions)}, got {unknown}")
        return SummaryStatistics(
            {name: self.functions[name] for name in names},
            symmetric=self.symmetric & set(names),
            parameter_dims=self.parameter_dims,
        )

    def near(self, parameters: Parameters) -> SummaryStatistics:
        """The same statistics, with all that they hold beside these parameters.

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
        """Statistics of the first ``runs`` replicas, where parameters have replica dimensions."""
        return self if self.parameter_dims is None else _FirstRuns(self, runs)

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
            raise  # it says nothing of the statistic
        except Exception as error:
            raise _failed(name, error, parameters) from error
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected statistic {name!r} to return a tensor, got {type(value).__name__}: "
                "return a tensor computed from the parameters, without .item(); "
                + _given(parameters)
            )
        if value.is_complex() or value.layout is not torch.strided:
            raise TypeError(
                f"expected statistic {name!r} to be a real, dense tensor, got {value.dtype} in "
                f"layout {value.layout}: return its .real, .abs() or .to_dense(); "
                + _given(parameters)
            )
        dims = value.ndim - self.batch_dims(parameters)
        if name in self.symmetric and (dims != 2 or value.shape[-1] != value.shape[-2]):
            raise ValueError(
                f"expected the symmetric statistic {name!r} to be a square matrix, "
                f"got shape {tuple(value.shape)}; {_given(parameters)}"
            )
        return value

    def _entries(self, name: str, value: Tensor, batch: int) -> Tensor:
        if name in self.symmetric:
            i, j = torch.triu_indices(value.shape[-1], value.shape[-1], device=value.device)
            return _as_float(value[..., i, j])
        return _as_float(value.reshape(*value.shape[:batch], -1))


class _FirstRuns(SummaryStatistics):
    """The statistics of the first replicas; the others fill up what is computed at once."""

    def __init__(self, statistics: SummaryStatistics, runs: int) -> None:
        super().__init__(
            statistics.functions,
            symmetric=statistics.symmetric,
            parameter_dims=statistics.parameter_dims,
        )
        self.runs = runs

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch k"]:
        """The vectors u, shape ``(..., runs, k)``."""
        return super().__call__(parameters)[..., : self.runs, :]


def _as_float(entries: Tensor) -> Tensor:
    """The entries in a type that torch.cat takes beside other floats, with all digits."""
    if entries.is_floating_point() and entries.itemsize > 1:
        return entries
    # bytes (float8 among them) and 16-bit integers fit into float32; MPS has nothing longer
    short = entries.itemsize <= 2 or entries.device.type == "mps"
    return entries.to(torch.float32 if short else torch.float64)


def _entry_names(name: str, shape: Sequence[int], symmetric: bool) -> list[str]:
    if not shape:
        return [name]
    indices = itertools.product(*map(range, shape))
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in indices
        if not symmetric or index[0] <= index[1]
    ]


def _given(parameters: Parameters) -> str:
    known = parameters.known() if isinstance(parameters, ReadRecorder) else parameters
    return f"it was given {_checks.shapes(known)}"


def _failed(name: str, error: Exception, parameters: Parameters) -> StatisticError:
    names = list(parameters)
    if isinstance(error, KeyError) and error.args and error.args[0] not in names:
        what = f"asked for parameter {error}, the model has {names}: use one of these names"
    else:
        what = f"failed with {type(error).__name__}: {error}"
        if "NoneType" in str(error):
            what += " (the gradient of a parameter is not its .grad but p['<its name>.grad'])"
    return StatisticError(f"statistic {name!r} {what}; {_given(parameters)}")

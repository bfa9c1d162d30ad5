"""`SummaryStatistics`: named functions of a model's parameters, gathered into one vector u."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.quadratic import (
    Entries,
    Gram,
    Overlaps,
    Parameters,
    SecondLayer,
    SquaredLengths,
)

StatisticFunction = Callable[[Parameters], Tensor]


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
        ValueError: if a function asks for a parameter that is not there, or shapes do not fit.

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
    """

    def __init__(
        self,
        functions: Mapping[str, StatisticFunction],
        *,
        symmetric: Collection[str] = (),
        parameter_dims: Mapping[str, int] | None = None,
    ) -> None:
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
        """The statistics themselves, or made of a dict ``{name: function}``.

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
        return torch.cat(rows, dim=-1)

    def entries(self, values: Mapping[str, Tensor]) -> Float[Tensor, "B k"]:
        """u, or what belongs to it, from values of each function for a batch, ``(B, ...)``."""
        return torch.cat([self._entries(name, values[name], 1) for name in self.functions], dim=-1)

    def parameters_read(self, parameters: Parameters) -> list[str]:
        """The names of the parameters that the functions look at."""
        recorder = _ReadRecorder(parameters)
        with torch.no_grad():
            self(recorder)
        return [name for name in parameters if name in recorder.read]

    def names_of(self, parameters: Parameters) -> list[str]:
        """The k names, in the order of u; evaluates every function once, without gradient."""
        batch = self.batch_dims(parameters)
        with torch.no_grad():
            values = self._evaluate(parameters)
        return [
            entry
            for name, value in values.items()
            for entry in _entry_names(name, value.shape[batch:], name in self.symmetric)
        ]

    def jacobian(self, parameters: Parameters) -> dict[str, Float[Tensor, "k *shape"]]:
        r"""The Jacobian :math:`J = \nabla u` of one model, ``(k, *shape)`` a parameter."""
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

    def of_runs(self, runs: int) -> SummaryStatistics:
        """Those of the first ``runs`` replicas only, where parameters have replica dimensions."""
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
        except KeyError as error:
            raise ValueError(
                f"statistic {name!r} asked for parameter {error}, "
                f"the model has {list(parameters)}: use one of these names"
            ) from error
        if not isinstance(value, Tensor):
            raise TypeError(
                f"expected statistic {name!r} to return a tensor, got {type(value).__name__}: "
                "return a tensor computed from the parameters, without .item()"
            )
        if value.is_complex():
            raise TypeError(f"expected statistic {name!r} to be real, got {value.dtype}")
        if name in self.symmetric and (value.ndim < 2 or value.shape[-1] != value.shape[-2]):
            raise ValueError(
                f"expected the symmetric statistic {name!r} to be a square matrix, "
                f"got shape {tuple(value.shape)}"
            )
        return value

    def _entries(self, name: str, value: Tensor, batch: int) -> Tensor:
        if name in self.symmetric:
            i, j = torch.triu_indices(value.shape[-1], value.shape[-1], device=value.device)
            return value[..., i, j]
        flat = value.reshape(*value.shape[:batch], -1)
        return flat if flat.is_floating_point() else flat.to(torch.get_default_dtype())


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


def _entry_names(name: str, shape: Sequence[int], symmetric: bool) -> list[str]:
    if not shape:
        return [name]
    indices = itertools.product(*map(range, shape))
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in indices
        if not symmetric or index[0] <= index[1]
    ]


class _ReadRecorder(Mapping[str, Tensor]):
    """The parameters, and a note of which ones were read."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        value = self._parameters[name]
        self.read.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


# --- ready-made statistics: functions of the parameters, for any leading dimensions ------------

entries = Entries
overlaps = Overlaps
gram = Gram
second_layer = SecondLayer
squared_lengths = SquaredLengths


def row_norms(parameter: str) -> StatisticFunction:
    r"""Euclidean norms :math:`|W_i|` of the rows, shape ``(..., K)``.

    Example:
        >>> import torch
        >>> row_norms("weight")({"weight": torch.tensor([[3.0, 4.0]])})
        tensor([5.])
    """
    return lambda parameters: parameters[parameter].norm(dim=-1)

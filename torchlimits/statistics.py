"""`SummaryStatistics`: named functions of a model's parameters, gathered into one vector u."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Parameters = Mapping[str, Tensor]
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

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch k"]:
        """The vector u, shape ``(k,)``, or ``(..., k)`` where ``parameter_dims`` are known."""
        batch = self.batch_dims(parameters)
        rows = [
            self._entries(name, value, batch) for name, value in self._evaluate(parameters).items()
        ]
        return torch.cat(rows, dim=-1)

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


def _entry_names(name: str, shape: Sequence[int], symmetric: bool) -> list[str]:
    if not shape:
        return [name]
    indices = itertools.product(*map(range, shape))
    return [
        f"{name}[{','.join(map(str, index))}]"
        for index in indices
        if not symmetric or index[0] <= index[1]
    ]


# --- ready-made statistics: functions of the parameters, for any leading dimensions ------------


def overlaps(parameter: str, directions: Float[Tensor, "d N"]) -> StatisticFunction:
    r"""Overlaps :math:`m_{ij} = \langle W_i, e_j\rangle`, shape ``(..., K, d)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.
        directions: the e_j as rows.

    Example:
        >>> import torch
        >>> overlaps("weight", torch.eye(2, 3))({"weight": torch.arange(6.0).reshape(2, 3)})
        tensor([[0., 1.],
                [3., 4.]])
    """
    return lambda parameters: _overlaps(parameters[parameter], directions)


def gram(parameter: str, perpendicular_to: Float[Tensor, "d N"] | None = None) -> StatisticFunction:
    r"""Gram matrix of the neurons :math:`R_{ij} = \langle W_i^\perp, W_j^\perp\rangle`.

    W_perp is W less its projection on the directions; without them it is W itself. Symmetric,
    shape ``(..., K, K)``: name it in ``SummaryStatistics(..., symmetric=...)``.

    Args:
        parameter: name of the weight W, shape ``(..., K, N)``.
        perpendicular_to: orthonormal directions as rows.

    Example:
        >>> import torch
        >>> gram("weight", torch.eye(1, 2))({"weight": torch.tensor([[5.0, 2.0]])})
        tensor([[4.]])
    """

    def function(parameters: Parameters) -> Tensor:
        weight = parameters[parameter]
        if perpendicular_to is not None:
            # project first: W W^T - m m^T would lose all digits once R is small beside m m^T
            e = perpendicular_to.to(weight)
            rows = weight.reshape(-1, weight.shape[-1])
            weight = torch.addmm(rows, rows @ e.mT, e, alpha=-1).reshape(weight.shape)
        return weight @ weight.mT

    return function


def row_norms(parameter: str) -> StatisticFunction:
    r"""Euclidean norms :math:`|W_i|` of the rows, shape ``(..., K)``.

    Example:
        >>> import torch
        >>> row_norms("weight")({"weight": torch.tensor([[3.0, 4.0]])})
        tensor([5.])
    """
    return lambda parameters: parameters[parameter].norm(dim=-1)


def second_layer(parameter: str) -> StatisticFunction:
    """The output weights v of a network with one output, shape ``(..., 1, K)`` -> ``(..., K)``.

    Example:
        >>> import torch
        >>> second_layer("weight")({"weight": torch.tensor([[1.0, 2.0]])})
        tensor([1., 2.])
    """
    return lambda parameters: parameters[parameter].squeeze(-2)


def _overlaps(weight: Tensor, directions: Tensor) -> Tensor:
    return weight @ directions.to(weight).mT

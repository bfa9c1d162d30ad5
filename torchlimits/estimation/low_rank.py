"""`LowRank`: a matrix plus a few outer products, which stays apart as long as it can."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Operation = Callable[..., Any]


class NotStructuredError(Exception):
    """An operation needs all entries of a large tensor that is known by its factors."""


class Structured(Tensor):
    """A tensor whose entries are not there, and the operations that do without them.

    Other operations get all entries where these are few; else they raise `NotStructuredError`.

    Attributes:
        small: up to how many entries are few.
    """

    small: int
    operations: ClassVar[Mapping[str, Operation]] = {}

    @property
    @abstractmethod
    def shared(self) -> Tensor:
        """A plain tensor of this shape, type and device."""

    @abstractmethod
    def entries(self) -> Tensor:
        """All of them."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # whatever reached it without __torch_function__ would compute with entries
        raise NotStructuredError

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given, name = dict(kwargs or {}), func.__name__
        if name == "__get__":
            name = func.__self__.__name__
        changes = name.endswith("_") and not name.endswith("__")
        if changes or name in _CHANGES or given.get("out") is not None:
            raise NotStructuredError
        if name in _ABOUT and isinstance(args[0], Structured):
            return func(args[0].shared, *args[1:], **given)
        operation = cls.operations.get(name)
        if operation is not None:
            try:
                return operation(func, *args, **given)
            except NotStructuredError:
                pass
        args, given = pytree.tree_map(few_entries, (tuple(args), given))
        return func(*args, **given)


def few_entries(x: Any) -> Any:
    """All entries of a structured tensor, if they are few; anything else as it is."""
    if not isinstance(x, Structured):
        return x
    if math.prod(x.shape) > x.small:
        raise NotStructuredError
    return x.entries()


#: change a tensor, or what shares its memory
_CHANGES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "data"}
#: say something about a tensor that does not depend on its entries
_ABOUT = {
    "shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_sparse", "dim",
    "size", "numel", "nelement", "ndimension", "__len__", "is_floating_point", "is_complex",
    "element_size",
}  # fmt: skip


class LowRank(Structured):
    r"""A matrix or a vector :math:`B + L R`, kept as these.

    Where a sample moves a weight by an outer product, functions of the weight see a matrix B that
    all samples share and thin factors of their own. Sums, slices, transposes, and products with
    matrices and among one another keep that form; sums of squares, norms and angles leave it.
    A matrix has factors (K, r) and (r, N), a vector (r,) and (r, N).

    Example:
        >>> weight = LowRank.of(torch.eye(2, 3), torch.ones(2, 1), torch.ones(1, 3), small=0)
        >>> weight.square().sum(-1), weight[0] @ weight[1]
        (tensor([6., 6.]), tensor(5.))
    """

    base: Tensor
    left: Tensor
    right: Tensor
    #: what this is the transpose of
    source: LowRank | None

    @staticmethod
    def of(base: Tensor, left: Tensor, right: Tensor, small: int) -> Tensor:
        """Return base + left @ right, a plain tensor if it is a number.

        Args:
            base: B.
            left: L.
            right: R.
            small: up to how many entries may be written out.
        """
        if base.ndim == 0:
            return base + left @ right
        result = _wrapped(LowRank, base, small)
        result.base, result.left, result.right, result.source = base, left, right, None
        return result

    @property
    def shared(self) -> Tensor:
        """B."""
        return self.base

    def entries(self) -> Tensor:
        """B + L R."""
        return self.base + self.left @ self.right

    def to_parts(self, base: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The same of other parts.

        Args:
            base: B.
            left: L.
            right: R.
        """
        return LowRank.of(base, left, right, self.small)


class Entrywise(Structured):
    """The product of two equal shapes, entry by entry, which waits for a sum."""

    one: LowRank
    other: LowRank

    @staticmethod
    def of(one: LowRank, other: LowRank) -> Entrywise:
        """Return one * other.

        Args:
            one: a factor.
            other: a factor of the same shape.
        """
        result = _wrapped(Entrywise, one.base, one.small)
        result.one, result.other = one, other
        return result

    @property
    def shared(self) -> Tensor:
        """The B of one factor."""
        return self.one.base

    def entries(self) -> Tensor:
        """The products."""
        return self.one.entries() * self.other.entries()


def _wrapped(kind: Any, like: Tensor, small: int) -> Any:
    result = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
        kind, like.shape, dtype=like.dtype, device=like.device
    )
    result.small = small
    return result


def _lifted(x: Any, like: LowRank) -> LowRank:
    """A tensor, broadcast to the shape of another, with factors of rank 0 if it has none."""
    if isinstance(x, LowRank) and x.shape == like.shape:
        return x
    if not _is_plain(x) or torch.broadcast_shapes(x.shape, like.shape) != like.shape:
        raise NotStructuredError
    left, right = like.left[..., :0], like.right[:0]
    lifted = like.to_parts(x.expand(like.shape), left, right)
    assert isinstance(lifted, LowRank)
    return lifted


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Structured)


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) or (_is_plain(x) and x.ndim == 0)


# --- linear operations ----------------------------------------------------------------------------


def _transpose(x: LowRank) -> Any:
    if x.ndim == 1:
        return x
    result = x.to_parts(x.base.mT, x.right.mT, x.left.mT)
    assert isinstance(result, LowRank)
    result.source = x
    return result


def _matmul(a: Any, b: Any) -> Any:
    if max(a.ndim, b.ndim) > 2:
        raise NotStructuredError
    if isinstance(a, LowRank):
        if isinstance(b, LowRank):
            return _product(a, b)
        if a.ndim == 2 and b.ndim == 1:
            return a.to_parts(a.base @ b, a.right @ b, a.left.mT)
        return a.to_parts(a.base @ b, a.left, a.right @ b)
    if not isinstance(b, LowRank):
        return a @ b
    return _transpose_any(_matmul(_transpose(b), a.mT if a.ndim == 2 else a))


def _product(a: LowRank, b: LowRank) -> Any:
    """(A + L R)(B + l r) = AB + L (R B) + (A l + L (R l)) r."""
    left, right = (b.left, b.right) if b.ndim == 2 else (b.right.mT, b.left)
    along = a.right @ b.base
    # in a Gram matrix it is the same from both sides
    moved = along.mT if b.source is a else a.base @ left
    left = torch.cat([a.left, moved + a.left @ (a.right @ left)], -1)
    right = torch.cat([along, right])
    if a.ndim == 2 and b.ndim == 1:
        left, right = right, left.mT
    return LowRank.of(a.base @ b.base, left, right, max(a.small, b.small))


def _transpose_any(x: Any) -> Any:
    return _transpose(x) if isinstance(x, LowRank) else x


def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    if not isinstance(a, LowRank):
        a, b, alpha = b if alpha == 1 else _times(b, alpha), a, 1
    if _is_number(b) or (_is_plain(b) and b.ndim <= a.ndim):
        if not _is_number(b) and torch.broadcast_shapes(a.shape, b.shape) != a.shape:
            raise NotStructuredError
        return a.to_parts(torch.add(a.base, b, alpha=alpha), a.left, a.right)
    b = _lifted(b, a)
    base = torch.add(a.base, b.base, alpha=alpha)
    # what has gone through the same operations on one side shares the factor of the other
    if a.left is b.left:
        return a.to_parts(base, a.left, torch.add(a.right, b.right, alpha=alpha))
    if a.right is b.right:
        return a.to_parts(base, torch.add(a.left, b.left, alpha=alpha), a.right)
    return a.to_parts(
        base, torch.cat([a.left, alpha * b.left], -1), torch.cat([a.right, b.right], 0)
    )


def _times(x: Any, y: Any) -> Any:
    """Scale all entries, the columns or the rows; or multiply entry by entry."""
    if not isinstance(x, LowRank):
        x, y = y, x
    if _is_number(y):
        return x.to_parts(x.base * y, x.left, x.right * y)
    if _is_plain(y) and y.ndim in (1, x.ndim) and y.shape[-1] == x.shape[-1]:
        if math.prod(y.shape) == x.shape[-1]:
            return x.to_parts(x.base * y, x.left, x.right * y)
    elif _is_plain(y) and y.shape == (*x.shape[:-1], 1) and x.ndim == 2:
        return x.to_parts(x.base * y, x.left * y, x.right)
    return Entrywise.of(x, _lifted(y, x))


def _divided(x: Any, y: Any) -> Any:
    if isinstance(y, Structured):
        raise NotStructuredError
    return _times(x, 1 / y)


def _power(x: LowRank, exponent: Any) -> Any:
    if exponent != 2:
        raise NotStructuredError
    return Entrywise.of(x, x)


def _item(x: LowRank, index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) > x.ndim or not all(type(i) in (int, slice) for i in parts):
        raise NotStructuredError
    base = x.base[index]
    if x.ndim == 1:
        return x.to_parts(base, x.left, x.right[:, parts[0]])
    row, column = (*parts, slice(None))[:2]
    left, right = x.left[row], x.right[:, column]
    if type(row) is slice and type(column) is int:
        return x.to_parts(base, right, left.mT)
    return x.to_parts(base, left, right)


def _reshaped(func: Any, x: LowRank, *args: Any, **options: Any) -> Any:
    """The same shape, or the only row or column of a matrix."""
    shape = func(x.base, *args, **options).shape
    if shape == x.shape:
        return x
    if shape != (x.numel(),) or x.ndim != 2 or 1 not in x.shape:
        raise NotStructuredError
    return _item(x, 0) if x.shape[0] == 1 else _item(x, (slice(None), 0))


def _converted(func: Any, x: Any, *args: Any, **options: Any) -> Any:
    """Another type or device, which may be named by a structured tensor."""
    args = tuple(y.shared if isinstance(y, Structured) else y for y in args)
    if not isinstance(x, LowRank):
        return func(x, *args, **options)
    return x.to_parts(*(func(part, *args, **options) for part in (x.base, x.left, x.right)))


def _swapped(x: LowRank, one: int, other: int) -> Any:
    return x if one % x.ndim == other % x.ndim else _transpose(x)


# --- sums, norms and angles -----------------------------------------------------------------------


def _sum(x: LowRank | Entrywise, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    if options:
        raise NotStructuredError
    dims = _dims(x, dim)
    if len(dims) == x.ndim:
        found = _total(x)
    elif isinstance(x, Entrywise):
        flip = _transpose if dims == [0] else lambda x: x
        found = _dots(flip(x.one), flip(x.other))
    else:
        y = _transpose(x) if dims == [0] else x
        found = x.to_parts(y.base.sum(-1), y.right.sum(-1), y.left.mT)
    if not keepdim:
        return found
    found = few_entries(found)
    for d in dims:
        found = found.unsqueeze(d)
    return found


def _dims(x: Tensor, dim: Any) -> list[int]:
    if dim is None or dim == ():
        return list(range(x.ndim))
    return sorted(d % x.ndim for d in ([dim] if isinstance(dim, int) else dim))


def _total(x: LowRank | Entrywise) -> Tensor:
    if isinstance(x, Entrywise):
        return _dots(x.one, x.other).sum()
    left = x.left.sum(0) if x.ndim == 2 else x.left
    return x.base.sum() + left @ x.right.sum(-1)


def _mean(x: LowRank | Entrywise, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    count = math.prod(x.shape[d] for d in _dims(x, dim))
    return _sum(x, dim, keepdim, **options) / count


def _dots(a: LowRank, b: LowRank) -> Tensor:
    """The inner products of rows with rows."""
    one = (a.left * (b.base @ a.right.mT)).sum(-1)
    other = one if a is b else (b.left * (a.base @ b.right.mT)).sum(-1)
    return (
        (a.base * b.base).sum(-1)
        + one
        + other
        + ((a.left @ (a.right @ b.right.mT)) * b.left).sum(-1)
    )


def _length(x: LowRank, dim: Any = None, keepdim: bool = False) -> Tensor:
    return _sum(Entrywise.of(x, x), dim, keepdim).sqrt()


def _norm(
    x: LowRank, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: Any = None,
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    if p not in ("fro", 2, None) or out is not None or dtype is not None:
        raise NotStructuredError
    return _length(x, dim, keepdim)


def _linalg_norm(
    x: LowRank, ord: Any = None, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    # of a matrix, 2 is the largest singular value
    if ord not in (None, "fro") and not (ord == 2 and len(_dims(x, dim)) == 1):
        raise NotStructuredError
    return _norm(x, 2, dim, keepdim, dtype=dtype)


def _matrix_norm(
    x: LowRank, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False
) -> Tensor:
    return _linalg_norm(x, ord, dim, keepdim)


def _vector_norm(
    x: LowRank, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    return _norm(x, ord, dim, keepdim, dtype=dtype)


def _cosine(a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Tensor:
    like = a if isinstance(a, LowRank) else b
    if dim % like.ndim != like.ndim - 1:
        raise NotStructuredError
    a, b = _lifted(a, like), _lifted(b, like)
    return _dots(a, b) / (_length(a, -1).clamp_min(eps) * _length(b, -1).clamp_min(eps))


def _normalized(x: LowRank, p: Any = 2, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    return _divided(x, _norm(x, p, dim, keepdim=True).clamp_min(eps))


def _without(operation: Operation) -> Operation:
    """An operation that need not know which of torch's functions it stands for."""
    return lambda func, *args, **options: operation(*args, **options)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    product = _matmul(x, weight.mT)
    return product if bias is None else product + bias


_SUMS = {"sum": _without(_sum), "mean": _without(_mean)}
Entrywise.operations = _SUMS
LowRank.operations = {
    **_SUMS,
    **dict.fromkeys(("T", "mT", "t", "adjoint"), _without(_transpose)),
    **dict.fromkeys(("matmul", "mm", "mv", "dot"), _without(_matmul)),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _without(_swapped)),
    "linear": _without(_linear),
    "addmm": lambda func, x, a, b, *, beta=1, alpha=1: torch.add(
        x if beta == 1 else beta * x, _matmul(a, b), alpha=alpha
    ),
    "add": _without(_add),
    "sub": lambda func, a, b, alpha=1: _add(a, b, -alpha),
    "neg": lambda func, x: _times(x, -1),
    **dict.fromkeys(("mul", "multiply"), _without(_times)),
    **dict.fromkeys(("div", "true_divide", "divide"), _without(_divided)),
    "square": lambda func, x: Entrywise.of(x, x),
    "pow": _without(_power),
    "__getitem__": _without(_item),
    "unbind": lambda func, x, dim=0: tuple(
        _item(x if dim % x.ndim == 0 else _transpose(x), i) for i in range(x.shape[dim])
    ),
    **dict.fromkeys(("reshape", "view", "flatten", "squeeze", "ravel"), _reshaped),
    **dict.fromkeys(("contiguous", "clone"), lambda func, x, **options: x),
    **dict.fromkeys(("to", "float", "double", "type_as"), _converted),
    "norm": _without(_norm),
    "linalg_norm": _without(_linalg_norm),
    "linalg_matrix_norm": _without(_matrix_norm),
    "linalg_vector_norm": _without(_vector_norm),
    "cosine_similarity": _without(_cosine),
    "normalize": _without(_normalized),
}

"""Statistics drawn at random: expressions in parameters, each with a bound on its rounding error.

An `Expression` is a function of the parameters, as `tl.track` takes it. `Expression.bounded` gives
the same in float64 with a bound on how far any evaluation in the expression's own types may be from
it, whatever the order of its sums: running error analysis (Higham, *Accuracy and Stability of
Numerical Algorithms*, chapters 3 and 4), operation by operation. Where nothing is rounded (entries,
signs, integers), the bound is 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32, torch.float64)


@dataclass(frozen=True)
class Bounded:
    """A tensor as computed, its value in float64, and a bound on the difference of the two."""

    computed: Tensor
    value: Tensor
    error: Tensor

    @property
    def most(self):
        """Absolute values, of whatever is computed too."""
        return self.value.abs() + self.error


def unit(dtype):
    """Relative and absolute rounding error of a type: u, and what underflow adds."""
    if not dtype.is_floating_point:
        return 0.0, 0.0
    info = torch.finfo(dtype)
    return info.eps / 2, info.smallest_normal * info.eps


def gamma(n, u):
    """Relative error of a sum of n products, in any order."""
    assume(n * u < 0.5)
    return n * u / (1 - n * u)


# --- operations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """A function of one or two tensors, and what it makes of errors.

    Args:
        name: for people.
        do: on tensors of any type.
        error: of the result, from the arguments as `Bounded`, u and what underflow adds.
        fits: whether it can be applied to these tensors.
    """

    name: str
    do: Callable[..., Tensor]
    error: Callable[..., Tensor]
    fits: Callable[..., bool] = field(default=lambda *x: True)


def exact(name, do, fits=lambda x: True):
    """Moves entries, and changes nothing but signs."""
    return Op(name, do, lambda x, u, tiny: do(x.error).abs(), fits)


def weighted(name, do, count, fits=lambda x: True):
    """A sum of ``count(x)`` terms with weights >= 0."""

    def error(x, u, tiny):
        n = count(x.value) + 2
        return do(x.error) + gamma(n, u) * do(x.most) + n * tiny

    return Op(name, do, error, fits)


def product(name, do, count=lambda a, b: 1):
    """Bilinear, with weights >= 0, in sums of ``count(a, b)`` products."""

    def error(a, b, u, tiny):
        n = count(a.value, b.value) + 3
        spread = do(a.value.abs(), b.error) + do(a.error, b.value.abs()) + do(a.error, b.error)
        return spread + gamma(n, u) * do(a.most, b.most) + n * tiny

    return Op(name, do, error)


def twice(op):
    """A product of a tensor with itself."""
    return Op(
        op.name,
        lambda x: op.do(x, x),
        lambda x, u, tiny: op.error(x, x, u, tiny),
        lambda x: x.numel() <= 16,
    )


def cast(dtype):
    bound = min(torch.finfo(dtype).max / 8, 1e4)

    def error(x, u, tiny):
        return x.error + u * x.most + tiny

    return Op(str(dtype), lambda x: x.clamp(-bound, bound).to(dtype), error)


def _rows(x):
    return x.reshape(len(x), -1)


def _norm_error(x, u, tiny):
    n = x.value.numel() + 3
    return x.error.norm() + gamma(n, u) * x.most.norm() + math.sqrt(n * tiny) + tiny


def _directions(x):
    """Numbers >= 0 that every type has."""
    return (torch.arange(1, 2 * x.shape[-1] + 1).reshape(-1, 2) / 4).to(x.dtype)


def _not_empty(x):
    return x.numel() > 0


def _has_dims(x):
    return x.ndim > 0


def _has_rows(x):
    return x.ndim > 0 and x.numel() > 0


_OUTER = product("outer", lambda a, b: torch.outer(a.flatten()[:4], b.flatten()[:4]))
_TIMES = product("times", lambda a, b: a * b.flatten()[:1].sum(), lambda a, b: 3)
_DOT = product(
    "dot",
    lambda a, b: (a.flatten()[: b.numel()] * b.flatten()[: a.numel()]).sum(),
    lambda a, b: min(a.numel(), b.numel()),
)
_SQUARE = product("square", lambda a, b: a * b)
_GRAM = product("gram", lambda a, b: _rows(a) @ _rows(b).T, lambda a, b: a.numel())
_PLUS = Op(
    "plus",
    lambda a, b: a + b.flatten()[:1].sum(),
    lambda a, b, u, tiny: (
        _PLUS.do(a.error, b.error) + gamma(4, u) * _PLUS.do(a.most, b.most) + tiny
    ),
)

#: of matrices: their last bits depend on how many are computed at once
PRODUCTS = [
    weighted("overlaps", lambda x: x @ _directions(x), lambda x: x.shape[-1], _has_rows),
    Op("gram", twice(_GRAM).do, twice(_GRAM).error, lambda x: _has_rows(x) and x.numel() <= 240),
]
UNARY = [
    *PRODUCTS,
    exact("flatten", lambda x: x.reshape(-1)),
    exact("minus", lambda x: -x),
    exact("abs", lambda x: x.abs()),
    exact("relu", lambda x: x.relu()),
    exact("double", lambda x: 2 * x),
    exact("first", lambda x: x[0], _has_rows),
    exact("every second", lambda x: x[..., ::2], _has_dims),
    exact("turned", lambda x: x.movedim(0, -1), _has_dims),
    exact("flipped", lambda x: x.flip(0), _has_dims),
    exact("expanded", lambda x: x.expand(2, *x.shape), lambda x: x.numel() <= 16),
    exact("largest", lambda x: x.amax(), _not_empty),
    exact("numpy", lambda x: torch.from_numpy(np.negative(x.numpy())), lambda x: _numpy(x)),
    weighted("sum", lambda x: x.sum(), lambda x: x.numel()),
    weighted("column sums", lambda x: x.sum(0), lambda x: len(x), _has_dims),
    weighted("mean", lambda x: x.mean(), lambda x: x.numel(), _not_empty),
    weighted("cumulative", lambda x: x.cumsum(0), lambda x: len(x), _has_dims),
    weighted("third", lambda x: x / 3, lambda x: 1),
    Op("tanh", torch.tanh, lambda x, u, tiny: x.error + 8 * u * x.most.tanh() + tiny),
    Op("norm", lambda x: x.norm(), _norm_error),
    twice(_SQUARE),
    twice(_OUTER),
    *map(cast, FLOATS),
]
BINARY = [_OUTER, _TIMES, _DOT, _PLUS]


def _numpy(x):
    # torch.from_numpy of a numpy scalar, and bfloat16 in numpy, do not exist
    return x.ndim > 0 and x.dtype != torch.bfloat16


def _no_error(x, u, tiny):
    return torch.zeros_like(x.value)


def _counted(do):
    return lambda x, u, tiny: torch.zeros_like(do(x.value), dtype=torch.float64)


def sharp(name, do, fits=lambda x: True):
    """Jumps: for parameters themselves only, whose values have no error; results have none."""
    return Op(name, do, _counted(do), fits)


#: only for parameters themselves
SHARP = [
    sharp("positive", lambda x: x > 0),
    sharp("how many", lambda x: (x > 0).sum()),
    sharp("sign", lambda x: x.sign()),
    sharp("eighths", lambda x: (8 * x).round().long()),
    sharp("longs", lambda x: (x.double() * 2**40).round().clamp(-(2**52), 2**52).long() + 1),
    sharp("shorts", lambda x: (8 * x).round().clamp(-(2**15), 2**15 - 1).short()),
    sharp("bytes", lambda x: (8 * x).round().clamp(0, 255).to(torch.uint8)),
    sharp("by the sign", lambda x: -x if x.flatten()[0].item() > 0 else x, _not_empty),
    sharp("where", lambda x: torch.where(x > 0, x, -2 * x)),
    sharp("as a list", lambda x: torch.tensor(x.tolist(), dtype=x.dtype)),
    Op(
        "masked sum",
        lambda x: x[x > 0].sum(),
        lambda x, u, tiny: gamma(x.value.numel() + 2, u) * x.value.relu().sum() + tiny,
    ),
]
#: nothing can be done with these types but to convert them
LAST = [cast(torch.float8_e4m3fn), cast(torch.float8_e5m2)]


# --- expressions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expression:
    """An operation on other expressions, or a parameter, whose name is then ``what``."""

    what: Op | str
    of: tuple = ()

    def __call__(self, parameters):
        if isinstance(self.what, str):
            return parameters[self.what]
        return self.what.do(*(one(parameters) for one in self.of))

    def bounded(self, parameters):
        """As `Bounded`, entries as they are in the parameters."""
        if isinstance(self.what, str):
            parameter = parameters[self.what].detach().clone()
            # what the documentation of tl.track says of half precision
            given = parameter.float() if parameter.dtype in HALF else parameter
            return Bounded(given, given.double(), torch.zeros_like(given, dtype=torch.float64))
        of = [one.bounded(parameters) for one in self.of]
        computed = self.what.do(*(one.computed for one in of))
        value = self.what.do(*(one.value for one in of)).double()
        result = Bounded(computed, value, self.what.error(*of, *unit(computed.dtype)))
        if computed.is_floating_point() and value.numel():
            assume(float(result.most.max()) < torch.finfo(computed.dtype).max / 8)
        return result

    def __repr__(self):
        if isinstance(self.what, str):
            return self.what
        return f"{self.what.name}({', '.join(map(repr, self.of))})"


@st.composite
def expressions(draw, parameters, binary=True):
    """Of some of ``parameters``, {name: tensor}."""
    result = Expression(draw(st.sampled_from(list(parameters))))
    first = draw(st.none() | st.sampled_from(SHARP) | st.sampled_from(PRODUCTS))
    for op in [first, *draw(st.lists(st.sampled_from(UNARY), max_size=3))]:
        value = result.bounded(parameters).computed
        if op is not None and op.fits(value) and (op is first or value.is_floating_point()):
            result = Expression(op, (result,))
    if not result.bounded(parameters).computed.is_floating_point():
        return result
    if binary and draw(st.booleans()):
        other = draw(expressions(parameters, binary=False))
        if other.bounded(parameters).computed.is_floating_point():
            result = Expression(draw(st.sampled_from(BINARY)), (result, other))
    if binary and draw(st.integers(0, 5)) == 0:
        result = Expression(draw(st.sampled_from(LAST)), (result,))
    return result

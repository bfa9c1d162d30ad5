"""The checks of jaxtyping's import hook at a tenth of their time, which is a part of every test's.

``jaxtyping.jaxtyped`` binds a call's arguments to the signature, checks them, calls the function,
and checks them again beside the result, which takes 30 to 50 microseconds. Here beartype wraps the
function itself. What it finds wrong is said by ``jaxtyping.jaxtyped``, in its words.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
from typing import Any

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping._decorator import _destring_annotation
from jaxtyping._storage import pop_shape_memo, push_shape_memo

# a warning points to the first line outside the package and its checker, and torch.compile looks
# functions up in the module of that name
_here = sys.modules[__name__]
__name__ = "jaxtyping.checked"
sys.modules[__name__] = _here

_explained = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """Check types and shapes of arguments and results, as ``jaxtyping.jaxtyped`` does."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return _explained(function, typechecker=typechecker)
    return _quick(function, typechecker) if function.__annotations__ else function


def _quick(function: Any, typechecker: Any) -> Any:
    checked = beartype(_resolved(function))

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})  # sizes are the same within a call
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintParamViolation:
            pass
        finally:
            pop_shape_memo()
        return _explained(function, typechecker=typechecker)(*args, **kwargs)

    return wrapped


def _resolved(function: Any) -> Any:
    """The same function with annotations that are no strings; those without meaning are Any."""
    names = function.__code__, function.__globals__, function.__name__
    copy = types.FunctionType(*names, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__module__ = function.__module__
    copy.__annotations__ = {
        name: _destring_annotation(annotation, function.__globals__)
        for name, annotation in function.__annotations__.items()
    }
    return copy

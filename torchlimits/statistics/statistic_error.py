"""`StatisticError`: a statistic's function failed; its message says what the function was given."""

from __future__ import annotations

from torchlimits import _checks
from torchlimits.statistics.quadratic import Parameters
from torchlimits.statistics.reads import ReadRecorder


class StatisticError(ValueError):
    r"""A statistic's function failed; the message has its name and the parameters it was given.

    Its cause (``__cause__``) is the function's own exception.

    Example:
        >>> import torch
        >>> from torchlimits import SummaryStatistics
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


def given(parameters: Parameters) -> str:
    """What a statistic was given, for a message: names, shapes and types."""
    known = parameters.known() if isinstance(parameters, ReadRecorder) else parameters
    return f"it was given {_checks.shapes(known)}"


def failed(name: str, error: Exception, parameters: Parameters) -> StatisticError:
    """The error to raise for one that a statistic's function raised."""
    names = list(parameters)
    if isinstance(error, KeyError) and error.args and error.args[0] not in names:
        what = f"asked for parameter {error}, the model has {names}: use one of these names"
    else:
        what = f"failed with {type(error).__name__}: {error}"
        if "NoneType" in str(error):
            what += " (the gradient of a parameter is not its .grad but p['<its name>.grad'])"
    return StatisticError(f"statistic {name!r} {what}; {given(parameters)}")

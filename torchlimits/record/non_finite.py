"""`NonFiniteStatistic`: raised when training diverged, with everything recorded before that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from torchlimits.trajectory import Trajectory


class NonFiniteStatistic(ValueError):
    """Raised when a statistic became NaN or infinite: most often, SGD diverged.

    Attributes:
        step: the optimizer step after which it was so.
        name: the name of the statistic.
        value: its value, NaN or infinite.
        trajectory: all that was recorded before that step.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
        >>> try:
        ...     with tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()}):
        ...         for _ in range(5):
        ...             model(torch.ones(8, 3)).square().mean().backward()
        ...             optimizer.step()
        ... except NonFiniteStatistic as error:
        ...     print(error.name, error.step, error.trajectory.steps.tolist())
        norm 1 [0]
    """

    trajectory: Trajectory | None = None

    def __init__(self, name: str, step: int, value: float) -> None:
        self.name, self.step, self.value = name, step, value
        super().__init__(
            f"statistic {name} is {value} after step {step}: training diverged (lower the step "
            f"size) or the statistic is not defined there; everything before step {step} is kept"
        )

    def __reduce__(self) -> tuple[type, tuple[str, int, float]]:
        return type(self), (self.name, self.step, self.value)


def finite_rows(values: Tensor, undefined: Mapping[int, Sequence[int]]) -> int:
    """How many rows of (..., T, k) come before the first one that is not finite in every run.

    Args:
        values: the rows.
        undefined: for some rows, the columns that have no value there and may be NaN.
    """
    finite = _finite(values, undefined).movedim(-2, 0).flatten(1).all(dim=-1)
    return len(finite) if bool(finite.all()) else int((~finite).nonzero()[0])


def _finite(values: Tensor, undefined: Mapping[int, Sequence[int]]) -> Tensor:
    finite = values.isfinite()
    for row, columns in undefined.items():
        if row < values.shape[-2]:
            finite[..., row, columns] = True
    return finite


def non_finite(
    names: list[str], step: int, row: Tensor, undefined: Sequence[int]
) -> NonFiniteStatistic:
    """The error for the first entry of a row (..., k) that is not finite and should be."""
    finite = _finite(row[..., None, :], {0: undefined})[..., 0, :]
    flat = row.reshape(-1, row.shape[-1])
    run, column = (~finite.reshape(flat.shape)).nonzero()[0].tolist()
    label = names[column] + (f" (run {run})" if len(flat) > 1 else "")
    return NonFiniteStatistic(label, step, float(flat[run, column]))

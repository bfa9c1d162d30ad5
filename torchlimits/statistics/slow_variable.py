"""`slow_variable`: statistics of the variable whose steps have no memory of momentum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits.statistics.adam_memory import lag
from torchlimits.statistics.quadratic import Parameters, near
from torchlimits.statistics.reads import ReadRecorder
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

#: the slow variable of parameter "weight" is read as "weight.slow_variable"
KEY = "slow_variable"
_SUFFIX = f".{KEY}"


def has_slow_variable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the slow variable of this optimizer's parameters is known.

    Args:
        optimizer: any.

    Example:
        >>> weights, optim = [torch.nn.Parameter(torch.zeros(2))], torch.optim
        >>> has_slow_variable(optim.AdamW(weights)), has_slow_variable(optim.NAdam(weights))
        (True, False)
    """
    # what derives from Adam may do something else; SGD's kinds change its gradients alone
    adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    return adam or isinstance(optimizer, torch.optim.SGD)


def slow_value(
    parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Any] | None
) -> Tensor:
    r"""The slow variable y of a parameter w, by what its optimizer keeps now.

    Under SGD it is :math:`y = w - \eta\,\beta/(1-\beta)\, b`, with the momentum buffer b and the
    present learning rate :math:`\eta`; with Nesterov's momentum :math:`\beta^2` takes the place of
    :math:`\beta` above the line. Under Adam it is :math:`y = w - \eta\,\kappa_s D\, m`, see
    `slow_variable`. Before the first step, y is w.

    Args:
        parameter: w.
        group: its parameter group in a `torch.optim.SGD`, `torch.optim.Adam` or
            `torch.optim.AdamW`.
        state: what the optimizer keeps for it, or None.

    Example:
        >>> group = {"lr": 0.1, "momentum": 0.5, "nesterov": False}
        >>> slow_value(torch.ones(2), group, {"momentum_buffer": torch.tensor([1.0, 2.0])})
        tensor([0.9000, 0.8000])
    """
    # the shift is small beside w: half precision would round it away
    w = parameter.detach()
    w = w.to(torch.promote_types(w.dtype, torch.float32))
    shift = _of_adam if "betas" in group else _of_sgd
    coming = shift(group, state, w.dtype) if state else None
    return w if coming is None else w - group["lr"] * coming


def _of_sgd(
    group: Mapping[str, Any], state: Mapping[str, Any], dtype: torch.dtype
) -> Tensor | None:
    """What a momentum buffer will still add, over the learning rate."""
    buffer, beta = state.get("momentum_buffer"), float(group["momentum"])
    if buffer is None or not beta:
        return None
    return buffer.detach().to(dtype) * (beta ** (2 if group["nesterov"] else 1) / (1 - beta))


def _of_adam(
    group: Mapping[str, Any], state: Mapping[str, Any], dtype: torch.dtype
) -> Tensor | None:
    """What a first moment will still add, over the learning rate, if D stays as it is."""
    (beta1, beta2), step = map(float, group["betas"]), int(state["step"])
    if dtype.is_complex:
        raise TypeError(
            "expected real parameters for Adam's slow variable, got complex ones: Adam takes their "
            "real and imaginary parts for parameters; record the statistics of the parameters"
        )
    if not step or not beta1:
        return None
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].detach().to(dtype)
    divisor = (second / (1 - beta2**step)).sqrt() + group["eps"]
    return lag(beta1, step) * state["exp_avg"].detach().to(dtype) / divisor


def slow_variable(
    statistics: SummaryStatistics | Mapping[str, StatisticFunction],
) -> SummaryStatistics:
    r"""The same statistics, of the slow variable of momentum instead of the parameters.

    With momentum :math:`\beta` (dampening :math:`\tau`, buffer b, learning rate :math:`\eta`) the
    parameters w carry a memory of past gradients, which their statistics show. The slow variable

    .. math:: y = w - \frac{\eta\beta}{1-\beta}\, b, \qquad
        y \leftarrow y - \eta\,\frac{1-\tau}{1-\beta}\, \nabla L(w)

    takes the steps of plain SGD, exactly and from the first step on (Nesterov's momentum:
    :math:`\beta^2` above the line), but with the gradient at w. So its statistics change by drift
    and corrector alone, which is what `tl.Probe` decomposes. As w and y are
    :math:`O(1/(n(1-\beta)))` apart, so is either's mean from the limit that ``dynamics.solve``
    predicts; the names stay the same, and both can be compared with it.

    What is exact: one learning rate, any weight decay, any settings that differ between parameter
    groups. Where a scheduler changes the learning rate, y is that of the present one, and a change
    by :math:`\Delta\eta` moves it once by :math:`\Delta\eta\,\beta/(1-\beta)\, b`: all changes
    together by no more than w and y differ. With dampening, torch's first buffer is the whole
    gradient, so that the first step alone is :math:`\eta/(1-\beta)` times it.

    Adam's and AdamW's first moment m is such a memory, too. After s steps, with the second moment
    :math:`\hat v`, :math:`D = 1/(\sqrt{\hat v} + \epsilon)`, coupled decay :math:`\lambda` and
    decoupled decay :math:`\omega`,

    .. math:: y = w - \eta\,\kappa_s D\, m, \qquad
        y \leftarrow y - \eta\, W_s D\, (\nabla L(w) + \lambda w) - \eta\,\omega\, w,

    .. math:: \kappa_s = \sum_{l \ge 1} \frac{\beta_1^l}{1 - \beta_1^{s+l}}, \qquad
        W_s = (1 - \beta_1) \Bigl(\frac{1}{1 - \beta_1^s} + \kappa_s\Bigr)

    as long as D stays what it is, which it does up to :math:`O(1 - \beta_2)` a step. The correction
    for the empty first moment makes W 3.01, 1.25 and 1.003 at steps 1, 10 and 50
    (:math:`\beta_1 = 0.9`).

    A single one can be read by name: ``p["weight.slow_variable"]``. Buffers, gradients and frozen
    parameters are what they are. So are all parameters where there is no optimizer to be read: for
    plain ``{name: tensor}``, the statistics are those of the parameters given.

    Args:
        statistics: of the parameters: a `SummaryStatistics`, or ``{name: function}``.

    Raises:
        TypeError: if they are neither.
        ValueError: at `tl.track`, a `StatisticError` if the optimizer of a parameter is not a
            `torch.optim.SGD`, `torch.optim.Adam` or `torch.optim.AdamW`, whose memory is known.

    Example:
        >>> import torch, torchlimits as tl
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
        >>> slow = tl.statistics.slow_variable({"w": lambda p: p["weight"].sum()})
        >>> before = model.weight.item()
        >>> with tl.track(model, optimizer, slow) as tracker:
        ...     for _ in range(3):
        ...         model.weight.grad = torch.ones(1, 1)
        ...         optimizer.step()
        >>> tracker.trajectory()["w"] - before  # steps of lr / (1 - 0.5)
        tensor([ 0.0000, -0.2000, -0.4000, -0.6000], dtype=torch.float64)
    """
    given = SummaryStatistics.of(statistics)
    dims = given.parameter_dims
    if dims is not None:
        dims = {**dims, **{name + _SUFFIX: count for name, count in dims.items()}}
    return SummaryStatistics(
        {name: _AtSlow(function) for name, function in given.functions.items()},
        symmetric=given.symmetric,
        indices=given.indices,
        parameter_dims=dims,
    )


class _AtSlow:
    """A statistic that is given slow variables under the names of their parameters."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def near(self, parameters: Parameters) -> _AtSlow:
        return _AtSlow(near(self.function, _renamed(parameters)))

    def bound(self, module: nn.Module) -> _AtSlow:
        bound = getattr(self.function, "bound", None)
        return self if bound is None else _AtSlow(bound(module))

    def __call__(self, parameters: Parameters) -> Tensor:
        return self.function(_renamed(parameters))


def _renamed(parameters: Parameters) -> Parameters:
    if type(parameters) is not dict:
        return ReadRecorder(_Slow(parameters), {})
    slow = {n.removesuffix(_SUFFIX): x for n, x in parameters.items() if n.endswith(_SUFFIX)}
    return {**{n: x for n, x in parameters.items() if not n.endswith(_SUFFIX)}, **slow}


class _Slow(Mapping[str, Tensor]):
    """Tensors by name, and in place of a parameter its slow variable where there is one."""

    def __init__(self, tensors: Parameters) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._tensors[name + _SUFFIX]
        except KeyError:
            return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

"""`explain_rate`: is a learning rate below, at or above critical for a model and its data?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits._text import Table, Tabular
from torchlimits.estimation.conditions.step_size import CRITICAL, MEANING
from torchlimits.estimation.first_layer import FirstLayer

#: samples below this number say nothing
_LEAST = 20


@dataclass(frozen=True)
class RateExplanation(Tabular):
    r"""What `explain_rate` found. Printed, it is a table; in notebooks, too.

    Attributes:
        kind: the regime, ``"subcritical"``, ``"critical"`` or ``"supercritical"``.
        layer: the name of the first layer.
        dim: its number of inputs, N.
        lr: the learning rate, times (1 - dampening)/(1 - momentum).
        batch_size: B, of the loader's first batch.
        samples: how many were looked at.
        step_size: c = lr N.
        trace: E|x|^2, which is N for inputs with entries of size 1.
        largest: lr lambda_max, with the largest eigenvalue of E[x x^T].
        ratio: the size of the corrector of the Gram matrix W W^T over that of its drift; infinity
            where the drift does not differ from 0.
        ratio_error: its standard error; NaN then.
        gain: the learning rate over that at which a step on one sample moves the sample's own
            prediction past its optimum by as much as it was off; None if the loss cannot be
            differentiated twice.
        gain_error: its standard error, or None.
        assumed: what was taken for granted, a sentence each.

    Example:
        >>> found = RateExplanation("critical", "0", 1000, 0.001, 1, 512, 1.0, 1000.0, 0.003, 0.4,
        ...                         0.02, 0.5, 0.01, ["Inputs are independent."])
        >>> found.sentence.split(": ")[0]
        'critical'
        >>> print(found.text(width=60).splitlines()[-1])
        Inputs are independent.
        >>> found.html().count("<tr>")
        6
    """

    kind: Literal["subcritical", "critical", "supercritical"]
    layer: str
    dim: int
    lr: float
    batch_size: int
    samples: int
    step_size: float
    trace: float
    largest: float
    ratio: float
    ratio_error: float
    gain: float | None
    gain_error: float | None
    assumed: list[str]

    @property
    def sentence(self) -> str:
        """The answer in words."""
        if self.ratio == float("inf"):
            corrector = "the corrector is all that moves the Gram matrix of the weights in the mean"
        else:
            corrector = (
                f"the corrector is {self.ratio:.2g} ± {self.ratio_error:.1g} of the size of the "
                "drift of the Gram matrix of the weights"
            )
        gain = ""
        if self.gain is not None:
            gain = f", and the learning rate is {100 * self.gain:.2g} % of the stability limit"
        layer = f"'{self.layer}'" if self.layer else "the model"
        return (
            f"{self.kind}: {MEANING[self.kind]}. At the present weights of {layer} "
            f"{corrector}{gain}."
        )

    def text(self, width: int | None = None) -> str:
        """The table as text, without a line longer than ``width`` where words allow that.

        Args:
            width: in characters.
        """
        return self._table().text(width)

    def html(self) -> str:
        """The table as HTML, as notebooks show it."""
        return self._repr_html_()

    def _table(self) -> Table:
        def shown(value: float | None, error: float | None = None) -> str:
            if value is None:
                return "not known"
            known = error is not None and error == error
            return f"{value:.3g}" + (f" ± {error:.1g}" if known else "")

        rows = [
            ["", "value", "meaning"],
            ["c = lr N", shown(self.step_size), "of order 1 where steps are critical, and inputs "
             "have entries of size 1"],
            ["lr E|x|^2", shown(self.lr * self.trace), "the same whatever the size of the inputs"],
            ["lr lambda_max", shown(self.largest), "well below 1 where the limit of small steps is "
             "good along the largest eigenvector"],
            ["corrector / drift", shown(self.ratio, self.ratio_error), "sizes of what noise and "
             "gradient do to W W^T in a unit of time"],
            ["gain", shown(self.gain, self.gain_error), "lr over the largest stable one: at 1, "
             "noise feeds itself"],
        ]  # fmt: skip
        title = (
            f"{self.sentence}\n(N = {self.dim}, lr (1 - dampening)/(1 - momentum) = "
            f"{self.lr:.3g}, batches of {self.batch_size}, {self.samples} samples)"
        )
        return Table(rows, title=title, below=self.assumed, prose=True)


def explain_rate(
    model: nn.Module, loss: Callable[[Any, Any], Tensor],
    loader: Iterable[Any], optimizer: torch.optim.Optimizer, *, samples: int = 512,
) -> RateExplanation:  # fmt: skip
    r"""Say whether a learning rate is below, at or above critical for a model and its data.

    With the inputs x of the first layer W, of dimension N, and the gradients g of each sample's
    loss in its output, a step of SGD with learning rate lr and batches of B changes the Gram matrix
    in the mean, per unit of lr, by

    .. math::
        -\big(E[g (W x)^T] + E[(W x) g^T] + 2 \alpha\, W W^T\big)
        + \frac{lr}{B} E\big[g g^T |x|^2\big],

    drift and corrector (with momentum, lr (1 - dampening)/(1 - momentum) takes the place of lr).
    Their sizes are Frobenius norms, estimated without the bias that noise would give them, from
    products of different samples. Below a ratio of 0.05 the rate is called subcritical. The gain is
    :math:`lr E[|x|^2 h] / (2 B)`, with h the largest curvature of each sample's loss in the layer's
    output: for least squares it is lr tr(Lambda)/(2 B), which is 1 where the risk begins to
    diverge. From 1 on, the rate is called supercritical.

    Source: sections 2 and 9 of the theory (docs/theory), arXiv 2206.04030.

    Args:
        model: its first layer must be an nn.Linear; what comes before it may only reshape.
        loss: loss(output, target), the mean over a batch.
        loader: gives batches (x, y), as a DataLoader does; those that are needed are taken.
        optimizer: a `torch.optim.SGD` that holds the layer's weight.
        samples: how many samples to look at.

    Raises:
        ValueError: if the model's first layer is another, it cannot take the inputs, the loss is
            not a mean or not finite, the optimizer does not hold the weight, or there are fewer
            than 20 samples.
        TypeError: if the optimizer is not SGD, or batches are not pairs.

    Example:
        >>> import torch, torchlimits as tl
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(600, 100, generator=generator)
        >>> data = torch.utils.data.TensorDataset(x, x[:, :1])
        >>> model = torch.nn.Linear(100, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.004)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=1)
        >>> def loss(output, target):
        ...     return (output - target).square().mean() / 2
        >>> found = tl.explain_rate(model, loss, loader, optimizer)
        >>> found.kind, round(found.gain, 1)
        ('critical', 0.2)
        >>> print(found)  # doctest: +ELLIPSIS
        critical: gradient flow plus the population corrector, ...
    """
    _checks.positive_int("samples", samples)
    x, y, batch_size = _drawn(loader, samples)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        x, y = x.to(parameter.device), y.to(parameter.device)
    mixing = [type(m).__name__ for m in model.modules() if _differs_in_training(m)]
    was = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        first = FirstLayer.of(model, x)
        lr, decay = _rate(optimizer, first.layer.weight)
        g, curvature = first.gradients(model, loss, x, y)
    finally:
        for name, module in model.named_modules():
            module.training = was[name]
    return _explained(
        first, x.detach().flatten(1).double(), g, curvature, lr, decay, batch_size, mixing
    )


def _explained(
    first: FirstLayer, x: Float[Tensor, "n N"], g: Float[Tensor, "n K"], curvature: Tensor | None,
    lr: float, decay: float, batch_size: int, mixing: list[str],
) -> RateExplanation:  # fmt: skip
    n, dim = x.shape
    weight = first.layer.weight.detach().double()
    squares = x.square().sum(1)
    ratio, error = _ratio(g, x @ weight.mT, squares, weight, decay)
    ratio, error = ratio * lr / batch_size, error * lr / batch_size
    gain = gain_error = None
    if curvature is not None:
        gains = lr / (2 * batch_size) * squares * curvature
        gain, gain_error = float(gains.mean()), float(gains.std()) / n**0.5
    kind: Literal["subcritical", "critical", "supercritical"] = "critical"
    if gain is not None and gain >= 1:
        kind = "supercritical"
    elif ratio < CRITICAL[0]:
        kind = "subcritical"
    assumed = [
        f"Assumed: samples are independent, each is seen once, and the {n} that were looked at are "
        "like the others; weights do not change meanwhile, and buffers of momentum have settled."
    ]
    if mixing:
        assumed.append(f"Measured in model.eval(), for the sake of {', '.join(sorted({*mixing}))}.")
    if dim > n / 2:
        assumed.append(
            f"lambda_max of {n} samples in dimension {dim} is too large: take more samples."
        )
    smaller = x.mT @ x if dim < n else x @ x.mT
    largest = float(torch.linalg.eigvalsh(smaller)[-1]) / n
    return RateExplanation(
        kind, first.name, dim, lr, batch_size, n, lr * dim, float(squares.mean()), lr * largest,
        ratio, error, gain, gain_error, assumed,
    )  # fmt: skip


def _ratio(
    g: Float[Tensor, "n K"], h: Float[Tensor, "n K"], squares: Float[Tensor, " n"],
    weight: Float[Tensor, "K N"], decay: float,
) -> tuple[float, float]:  # fmt: skip
    """|E g g^T |x|^2| over |E g h^T + E h g^T + 2 decay W W^T|, and its standard error.

    Squares of norms are means of products of different samples, which noise does not bias; their
    errors are those of U-statistics.
    """
    gram = weight @ weight.mT
    gg, hh, gh = g @ g.mT, h @ h.mT, g @ h.mT
    corrector = squares[:, None] * squares * gg.square()
    own = 4 * decay * ((g @ gram) * h).sum(1)
    drift = 2 * gg * hh + 2 * gh * gh.mT + own + own[:, None]
    drift = drift + 4 * decay**2 * gram.square().sum()
    (top, top_each), (bottom, bottom_each) = _mean_of_pairs(corrector), _mean_of_pairs(drift)
    if top <= 0:
        return 0.0, 0.0
    # two standard errors, which are 2 std / sqrt(n) for means of pairs
    if bottom <= 0 or bottom < 4 * float(bottom_each.std()) / len(g) ** 0.5:
        return float("inf"), float("nan")
    ratio = (top / bottom) ** 0.5
    each = top_each / top - bottom_each / bottom
    return ratio, ratio * float(each.std()) / len(g) ** 0.5


def _mean_of_pairs(kernel: Float[Tensor, "n n"]) -> tuple[float, Float[Tensor, " n"]]:
    """The mean over pairs of different samples, and for each sample the mean over its pairs."""
    n = len(kernel)
    each = (kernel.sum(1) - kernel.diagonal()) / (n - 1)
    return float(each.mean()), each


def _rate(optimizer: object, weight: Tensor) -> tuple[float, float]:
    """lr (1 - dampening)/(1 - momentum) and the weight decay of the group that holds the weight."""
    if not isinstance(optimizer, torch.optim.SGD):
        raise TypeError(
            f"expected a torch.optim.SGD, got {type(optimizer).__name__}, whose steps are not "
            "proportional to the gradient: problem.dynamics(optimizer) predicts others where the "
            "problem is known"
        )
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            if group["maximize"]:
                raise ValueError("expected a loss to be minimized, got maximize=True: negate it")
            beta = float(group["momentum"])
            dampening = float(group["dampening"]) if beta else 0.0
            return float(group["lr"]) * (1 - dampening) / (1 - beta), float(group["weight_decay"])
    raise ValueError(
        "expected an optimizer that holds the weight of the model's first layer, got none of its "
        "groups with it: make it of model.parameters()"
    )


def _drawn(loader: Iterable[Any], samples: int) -> tuple[Tensor, Tensor, int]:
    """So many inputs and labels, and the size of the loader's first batch."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    found = 0
    for batch in loader:
        pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if not pair or not all(isinstance(part, Tensor) for part in batch):
            raise TypeError(
                "expected batches (x, y) of two tensors from the loader, got "
                f"{type(batch).__name__}: wrap it, ((b['x'], b['y']) for b in loader)"
            )
        xs.append(batch[0])
        ys.append(batch[1])
        found += len(batch[0])
        if found >= samples:
            break
    if found < _LEAST:
        raise ValueError(f"expected at least {_LEAST} samples from the loader, got {found}")
    return torch.cat(xs)[:samples], torch.cat(ys)[:samples], len(xs[0])


def _differs_in_training(module: nn.Module) -> bool:
    """Whether a module does something else in training, and is in it."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    drops = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
    return module.training and isinstance(module, (*norms, *drops))

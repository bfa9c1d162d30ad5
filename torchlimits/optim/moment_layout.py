"""`MomentLayout`: the order and names of second moments beside the statistics of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits.contracts.gradient_field import GradientField
from torchlimits.optim.adaptive_settings import AdaptiveSettings
from torchlimits.optim.muon_settings import MuonSettings
from torchlimits.optim.second_moment import SECOND_MOMENTS, SecondMoment
from torchlimits.optim.sgd import SGDSettings
from torchlimits.statistics.entry_names import entry_names
from torchlimits.statistics.summary import SummaryStatistics

Settings = AdaptiveSettings | SGDSettings | MuonSettings

#: what stands for a parameter that does not move
_STILL = (0.0,) * 7


class Options(NamedTuple):
    """The options of some parameters, as tensors that fit their entries.

    Attributes:
        speed: rho, how many times the reference's learning rate.
        ridge: lambda, coupled.
        decay: omega, decoupled.
        eps: what is added to the root.
        memory: beta_2.
        sign: 1 where the loss is minimised, -1 where it is maximised; 0 where nothing moves.
        initial: the second moment of a fresh optimizer.
    """

    speed: Tensor
    ridge: Tensor
    decay: Tensor
    eps: Tensor
    memory: Tensor
    sign: Tensor
    initial: Tensor


class Entries(NamedTuple):
    """A number for each parameter, or row of W, as second moments have them.

    Attributes:
        rows: one for each row of W, of all coordinates but axes, ``(..., K)``.
        axes: of the coordinates of W that are axes, ``(..., K, J)``.
        bias: ``(..., K)``.
        theta: of the head's entries, ``(..., P)``.
    """

    rows: Tensor
    axes: Tensor
    bias: Tensor
    theta: Tensor


@dataclass(frozen=True, eq=False)
class MomentLayout:
    r"""The second moments that an optimizer keeps, in the order of u, and the options with them.

    They are :math:`(v_{rows}, v_{axes}, v_b, v_\theta, w)`, each of parameters that move, under
    the names that torch and the recorder have for them (``first.weight.exp_avg_sq[i]``, the mean
    over the coordinates of row i); w = 1 - beta_2^s after s steps, where the optimizer corrects
    for its start. Parameters that SGD or Muon trains have none.

    Args:
        kind: one of `SECOND_MOMENTS`, or "" if there are none.
        reference: the settings of the group that gives the time.
        settings: those of each parameter; None if it does not move.
        base: the field of the statistics.
        axes: J, the number of coordinates that are axes.
    """

    kind: str
    reference: Settings
    settings: Mapping[str, Settings | None]
    base: GradientField
    axes: int
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def rule(self) -> SecondMoment:
        """How second moments are kept."""
        return SECOND_MOMENTS[self.kind] if self.kind else SecondMoment()

    @property
    def memory(self) -> float:
        """beta_2 of the parameter whose w is the state."""
        settings = self.kept(self._clocked())
        assert settings is not None
        return settings.memory

    def kept(self, name: str) -> AdaptiveSettings | None:
        """The settings of a parameter that has second moments; None if it has not.

        Args:
            name: of the parameter.
        """
        settings = self.settings.get(name)
        return settings if isinstance(settings, AdaptiveSettings) else None

    @property
    def width(self) -> int:
        """K."""
        return self.base.width

    def options(self, like: Tensor) -> tuple[Options, Options, Options]:
        """The options of W and b, of shape (), and of theta, ``(P,)``.

        Args:
            like: on the device and in the dtype.
        """
        key = (like.device, like.dtype)
        if key not in self._known:
            names = [self.base.weight, self.base.bias or "", *self.base.head]
            rows = [self._row(self.settings.get(name)) for name in names]
            values = torch.tensor(rows, dtype=like.dtype, device=like.device)
            self._known[key] = tuple(
                Options(*some.unbind(-1)) for some in (values[0], values[1], values[2:])
            )
        return self._known[key]

    def _row(self, settings: Settings | None) -> tuple[float, ...]:
        if settings is None:
            return _STILL
        ratio = float(settings.step_size / self.reference.step_size)
        if isinstance(settings, MuonSettings):
            return (ratio, 0.0, settings.decay, 0.0, 1.0, 1.0, 0.0)
        if isinstance(settings, SGDSettings):
            speed = ratio * float(settings.drift_factor)
            return (speed, float(settings.weight_decay), 0.0, 0.0, 1.0, settings.sign, 0.0)
        return (
            ratio * settings.speed, settings.weight_decay, settings.decay, settings.eps,
            settings.memory, settings.sign, settings.initial,
        )  # fmt: skip

    def option(self, name: str, like: Tensor) -> Float[Tensor, " V"]:
        """One of the options for each second moment.

        Args:
            name: a field of `Options`.
            like: on the device and in the dtype.
        """
        W, bias, head = (getattr(options, name) for options in self.options(like))
        K = self.width
        return self.gather(Entries(W.expand(K), W.expand(K, self.axes), bias.expand(K), head))

    @property
    def moving(self) -> list[int]:
        """The entries of theta that have second moments."""
        return [i for i, name in enumerate(self.base.head) if self.kept(name)]

    @property
    def sizes(self) -> list[int]:
        """The number of rows', axes', biases' and theta's second moments, and of w."""
        K, W = self.width, self.kept(self.base.weight) is not None
        bias = self.base.bias is not None and self.kept(self.base.bias) is not None
        sizes = [K * W, K * self.axes * W, K * bias, len(self.moving)]
        return [*sizes, int(self.rule.corrected and any(sizes))]

    def gather(self, entries: Entries) -> Float[Tensor, "*batch V"]:
        """One vector of second moments, without w."""
        rows, axes, bias, theta = self.sizes[:4]
        parts = [
            *([entries.rows] if rows else []),
            *([entries.axes.flatten(-2)] if axes else []),
            *([entries.bias] if bias else []),
            *([entries.theta[..., self.moving]] if theta else []),
        ]
        return torch.cat(parts, dim=-1) if parts else entries.rows[..., :0]

    def spread(self, vector: Float[Tensor, "*batch V"]) -> Entries:
        """The inverse of `gather`; 0 where there is no second moment."""
        lead, K = vector.shape[:-1], self.width
        whole = [(K,), (K, self.axes), (K,), (len(self.base.head),)]
        parts = list(vector.split(self.sizes[:4], dim=-1))
        theta = vector.new_zeros(*lead, *whole[3])
        theta[..., self.moving] = parts[3]
        parts[3] = theta
        return Entries(
            *(
                part.unflatten(-1, shape) if part.shape[-1] else part.new_zeros(*lead, *shape)
                for part, shape in zip(parts, whole, strict=True)
            )
        )

    def scales(self, vector: Float[Tensor, "*batch V"]) -> Entries:
        """What each parameter's gradient is multiplied by.

        Args:
            vector: that of parameters with second moments; others have their speed.
        """
        rows, axes, bias, theta = self.spread(vector)
        W, b, head = self.options(vector)
        if self.kept(self.base.weight) is None:
            rows, axes = rows + W.speed, axes + W.speed
        if self.base.bias is None or self.kept(self.base.bias) is None:
            bias = bias + b.speed
        alone = [not self.kept(name) for name in self.base.head]
        return Entries(rows, axes, bias, theta + head.speed * head.speed.new_tensor(alone))

    @property
    def names(self) -> list[str]:
        """The names of the second moments, in the order of u, and of w."""
        shapes = self._shapes().items()
        return [entry for name, shape in shapes for entry in entry_names(name, shape, False)]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        K, key, base = self.width, self.rule.key, self.base
        rows, axes, bias, _, corrected = self.sizes
        head = {name: shape for name, shape in base.head_shapes.items() if self.kept(name)}
        return {
            **({f"{base.weight}.{key}": (K,)} if rows else {}),
            **({f"{base.weight}.{key}.axes": (K, self.axes)} if axes else {}),
            **({f"{base.bias}.{key}": (K,)} if bias else {}),
            **{f"{name}.{key}": shape for name, shape in head.items()},
            **({"bias_correction2": ()} if corrected else {}),
        }

    def statistics(self, places: Sequence[int]) -> SummaryStatistics:
        """The second moments as statistics that the recorder reads from the optimizer's state.

        Args:
            places: the numbers of the coordinates of x that are axes.
        """
        weight, functions, dims = self.base.weight, {}, {}
        for name, shape in self._shapes().items():
            if name == "bias_correction2":
                clock = self._clocked()
                functions[name] = partial(
                    _correction, clock, f"{clock}.{self.rule.key}", self._dims(clock),
                    self.memory,
                )  # fmt: skip
            elif name.startswith(f"{weight}."):
                source = f"{weight}.{self.rule.key}"
                mean = name == source
                functions[name] = partial(_mean_but if mean else _at, source, [*places])
                dims[source] = 2
            else:
                functions[name] = partial(_entries, name)
                dims[name] = len(shape)
        return SummaryStatistics(functions, parameter_dims=dims)

    def _clocked(self) -> str:
        """A parameter with second moments, with the reference's settings if it has some."""
        kept = [name for name in self.settings if self.kept(name)]
        return next((name for name in kept if self.settings[name] == self.reference), kept[0])

    def _dims(self, name: str) -> int:
        """The dimensions of a parameter without replicas."""
        one_row = name == self.base.bias
        return 1 if one_row else len(self.base.head_shapes.get(name, (0, 0)))


def _correction(
    clock: str, second: str, dims: int, memory: float, p: Mapping[str, Tensor]
) -> Tensor:
    """w = 1 - beta_2^s, without the rounding of 1 - beta_2; the steps of replicas are one number.

    Args:
        clock, second, dims: a parameter, its second moment and the dimensions of both.
        memory: beta_2.
        p: the tensors.
    """
    like = p[second]
    steps = p[f"{clock}.step"].double().expand(like.shape[: like.ndim - dims])
    return -torch.expm1(steps * torch.tensor(memory, dtype=torch.float64).log())


def _mean_but(source: str, places: list[int], p: Mapping[str, Tensor]) -> Tensor:
    """The means of rows, without the columns that are axes."""
    values = p[source]
    rest = values.shape[-1] - len(places)
    return (values.sum(-1) - values[..., places].sum(-1)) / rest if places else values.mean(-1)


def _at(source: str, places: list[int], p: Mapping[str, Tensor]) -> Tensor:
    return p[source][..., places]


def _entries(source: str, p: Mapping[str, Tensor]) -> Tensor:
    return p[source]

"""`Layers`: what SGD does to each parameter of a network, where its groups differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torchlimits.optim.held_parameters import HeldParameter, Shape, Shapes
from torchlimits.optim.listed import listed
from torchlimits.optim.normalized_sgd import NormalizedSGD
from torchlimits.optim.sgd import SGDSettings, clock, parameter_groups


@dataclass(frozen=True)
class Layers:
    r"""Settings of each parameter, in the limit time of a reference parameter group.

    A parameter with learning rate lr' and q' = (1 - tau')/(1 - beta') moves
    :math:`\rho = q' lr' / lr` times as fast as under plain SGD with the reference's lr: statistics
    drift by the rho of their own parameter, each with its own ridge. The corrector of R, quadratic
    in the step of W, is :math:`c_\delta \rho_W^2 g / B`; the covariance of one step has a factor
    rho for the parameter of its row and one for that of its column.

    Args:
        reference: settings of the parameter group whose learning rates add up to the limit time,
            the first that is trained.
        settings: those of each parameter by its name, ``"first.weight"``; None if the optimizer
            does not hold it or it requires no gradient, so that it stays where it is.

    Raises:
        ValueError: if the reference's learning rate is 0.

    Example:
        >>> reference, faster = SGDSettings(1.0), SGDSettings(2.0, momentum=0.5)
        >>> layers = Layers(reference, {"first.weight": faster, "first.bias": None})
        >>> layers.speeds, layers.ridges
        ({'first.weight': 4.0, 'first.bias': 0.0}, {'first.weight': 0.0, 'first.bias': 0.0})
    """

    reference: SGDSettings
    settings: Mapping[str, SGDSettings | None]

    def __post_init__(self) -> None:
        # gradient flow of some parameters, at one speed, needs no step size
        differ = any(s not in (None, self.reference) for s in self.settings.values())
        if self.reference.step_size == 0 and differ:
            raise ValueError(
                "expected a learning rate > 0 in a parameter group, got 0 in all: limit time, the "
                "sum of learning rates, would stand still"
            )

    @classmethod
    def of(
        cls, optimizer: object, *, parameters: Mapping[str, Shape], dims: Iterable[int], dim: int,
        batch_size: int = 1, model: nn.Module | None = None,
    ) -> Layers | SGDSettings:  # fmt: skip
        """Read them from an SGD; the plain settings if all parameters have those of the reference.

        Which parameter is which is known from ``model``; or from the names in an optimizer that
        was built from ``model.named_parameters()``; or from shapes, in the order in which they
        come, as long as all parameters of one shape have the same settings.

        Args:
            optimizer: holds the network's parameters, or some of them.
            parameters: name -> shape without the dimensions of replicas; None stands for N.
            dims: the numbers that N may be.
            dim: N in c_delta = lr * N.
            batch_size: B.
            model: the network that the optimizer trains.

        Raises:
            TypeError: if the optimizer is not SGD.
            ValueError: if it trains none of the parameters, or others too, or it cannot be told
                which is which.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(5, 2)
            >>> optimizer = torch.optim.SGD([model.weight], lr=0.1)
            >>> shapes = {"weight": (2, None), "bias": (2,)}
            >>> Layers.of(optimizer, parameters=shapes, dims={5}, dim=5).speeds
            {'weight': 1.0, 'bias': 0.0}
        """
        groups = parameter_groups(optimizer, sign=True)
        if isinstance(listed(optimizer)[0], NormalizedSGD):
            raise ValueError(
                "expected torch.optim.SGD for a network, got NormalizedSGD: its limit is known to "
                "this package for SpikedTensor only (recording works: tl.track)"
            )
        settings = [SGDSettings.of_group(group, dim, batch_size) for group in groups]
        found = settings_of(groups, settings, parameters=parameters, dims=dims, model=model)
        reference = settings[clock(groups)]
        if all(s == reference for s in found.values()):
            return reference
        return cls(reference, found)

    @property
    def speeds(self) -> dict[str, float | Tensor]:
        """rho of each parameter."""
        lr = self.reference.step_size
        return {
            name: s.drift_factor * (s.step_size / lr if lr else 1.0) if s else 0.0
            for name, s in self.settings.items()
        }

    @property
    def ridges(self) -> dict[str, float | Tensor]:
        """alpha of each parameter."""
        return {name: s.weight_decay if s else 0.0 for name, s in self.settings.items()}

    @property
    def signs(self) -> dict[str, float]:
        """1, or -1 where the loss is maximised, for each parameter."""
        return {name: s.sign if s else 1.0 for name, s in self.settings.items()}

    def check_beside(self, *, ridge: float | Tensor, momentum: float | Tensor) -> None:
        """Do the check of `SGDSettings.check_beside` for the parameters that move.

        Args:
            ridge, momentum: as in that method.
        """
        alike: dict[tuple[float | Tensor, float | Tensor], list[str]] = {}
        for name, s in self.settings.items():
            if s is not None:
                alike.setdefault((s.weight_decay, s.momentum), []).append(name)
        for names in alike.values():
            settings = self.settings[names[0]]
            assert settings is not None
            of = f" of {', '.join(names)}"
            settings.check_beside(ridge=ridge, momentum=momentum, layer=of)

    def plain(self) -> Layers:
        """The same settings as numbers, without the graph of any tensor."""
        settings = {name: s and s.plain() for name, s in self.settings.items()}
        return Layers(self.reference.plain(), settings)

    def describe(self) -> dict[str, Any]:
        """The settings of all parameters in one flat dict."""
        result: dict[str, Any] = {}
        for name, settings in self.settings.items():
            key = self._key(name)
            if settings is None:
                result[key] = "does not move"
                continue
            result.update({f"{key}.{what}": value for what, value in settings.describe().items()})
        return result

    def _key(self, name: str) -> str:
        """The parameter's name, or its layer's name if the layer has nothing but a weight."""
        layer, _, kind = name.rpartition(".")
        alone = not any(n != name and n.startswith(f"{layer}.") for n in self.settings)
        return layer if layer and kind == "weight" and alone else name


def settings_of(
    groups: Sequence[Mapping[str, Any]], settings: Sequence[Any], *,
    parameters: Mapping[str, Shape], dims: Iterable[int], model: nn.Module | None,
) -> dict[str, Any]:  # fmt: skip
    """The settings of each parameter of a network; None for parameters that do not move.

    Args:
        groups: the parameter groups of an optimizer.
        settings: those of each group.
        parameters, dims, model: as in `Layers.of`.

    Raises:
        ValueError: as `Layers.of`.
    """
    held = [one for group, s in zip(groups, settings, strict=True) for one in _held(group, s)]
    return Shapes(parameters, dims).settings(held, model)


def _held(group: Mapping[str, Any], settings: Any) -> list[HeldParameter]:
    parameters = group["params"]
    # since torch 2.6, of an optimizer that was built from named_parameters()
    names: list[str | None] = group.get("param_names") or [None] * len(parameters)
    return [
        HeldParameter(p, settings if p.requires_grad else None, name)
        for p, name in zip(parameters, names, strict=True)
    ]

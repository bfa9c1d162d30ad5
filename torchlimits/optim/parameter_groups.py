"""`Layers`: what SGD does to each layer of a two-layer network, where its groups differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchlimits.optim.normalized_sgd import NormalizedSGD
from torchlimits.optim.sgd import SGDSettings, clock, parameter_groups


@dataclass(frozen=True)
class Layers:
    r"""Settings of the layers W and v, in the limit time of a reference parameter group.

    A layer with learning rate lr' and q' = (1 - tau')/(1 - beta') moves
    :math:`\rho = q' lr' / lr` times as fast as plain SGD of the reference's lr: v drifts by
    rho_v, m and R by rho_W, each layer with its own ridge. The corrector of R, quadratic in the
    step of W, is :math:`c_\delta \rho_W^2 g / B`; the covariance of one step has a factor rho for
    the layer of its row and one for that of its column.

    Args:
        reference: of the parameter group the sum of whose learning rates is the limit time, the
            first that is trained.
        first, second: of W and v; None where the optimizer does not hold the layer, which then
            stays where it is.

    Raises:
        ValueError: if the reference's learning rate is 0.
    """

    reference: SGDSettings
    first: SGDSettings | None
    second: SGDSettings | None

    def __post_init__(self) -> None:
        if self.reference.step_size == 0:
            raise ValueError(
                "expected a learning rate > 0 in a parameter group, got 0 in all: limit time, the "
                "sum of learning rates, would stand still"
            )

    @classmethod
    def of(
        cls, optimizer: object, *, width: int, dims: set[int], dim: int, batch_size: int = 1
    ) -> Layers | SGDSettings:
        """Read them from an SGD; plain settings where both layers have those of the reference.

        Args:
            optimizer: holds W, shape ``(..., K, N)``, and v, ``(..., 1, K)``, or one of them.
            width: K.
            dims: the N that W may have.
            dim: N in c_delta = lr * N.
            batch_size: B.

        Raises:
            TypeError: if the optimizer is not SGD.
            ValueError: if it holds neither layer, or one of them in groups that differ.
        """
        groups = parameter_groups(optimizer)
        if isinstance(optimizer, NormalizedSGD):
            raise ValueError(
                "expected torch.optim.SGD for a mixture, got NormalizedSGD: its limit is known to "
                "this package for SpikedTensor only (recording works: tl.track)"
            )
        settings = [SGDSettings.of_group(group, dim, batch_size) for group in groups]
        first = _of_layer(groups, settings, {(width, N) for N in dims})
        second = _of_layer(groups, settings, {(1, width)})
        if first is None and second is None:
            raise ValueError(
                f"expected an optimizer that holds W of shape (..., {width}, {max(dims)}) or v of "
                f"shape (..., 1, {width}), got one that holds neither: build it from the "
                "parameters of problem.model()"
            )
        reference = settings[clock(groups)]
        if first == second == reference:
            return reference
        return cls(reference, first, second)

    @property
    def speeds(self) -> tuple[float, float]:
        """rho_W and rho_v."""
        first, second = (
            0.0 if layer is None else layer.step_size * layer.drift_factor
            for layer in (self.first, self.second)
        )
        return first / self.reference.step_size, second / self.reference.step_size

    @property
    def ridges(self) -> tuple[float, float]:
        """alpha_W and alpha_v."""
        first, second = self.first, self.second
        return (first.weight_decay if first else 0.0), (second.weight_decay if second else 0.0)

    @property
    def signs(self) -> tuple[float, float]:
        """1, or -1 where the loss is maximised, for W and v."""
        first, second = self.first, self.second
        return (first.sign if first else 1.0), (second.sign if second else 1.0)

    def check_beside(self, *, ridge: float, momentum: float) -> None:
        """Check as `SGDSettings.check_beside` does, for the layers that move."""
        for layer, name in ((self.first, "W"), (self.second, "v")):
            if layer is not None:
                layer.check_beside(ridge=ridge, momentum=momentum, layer=f" of {name}")

    def describe(self) -> dict[str, Any]:
        """The settings of both layers in one flat dict."""
        result: dict[str, Any] = {}
        for layer, name in ((self.first, "first"), (self.second, "second")):
            if layer is None:
                result[name] = "does not move"
                continue
            result.update({f"{name}.{key}": value for key, value in layer.describe().items()})
        return result


def _of_layer(
    groups: list[dict[str, Any]], settings: list[SGDSettings], shapes: set[tuple[int, int]]
) -> SGDSettings | None:
    """The settings of the groups that hold a parameter of one of the shapes."""
    held = {
        s
        for group, s in zip(groups, settings, strict=True)
        for p in group["params"]
        if p.requires_grad and tuple(p.shape[-2:]) in shapes
    }
    if len(held) > 1:
        raise ValueError(
            f"expected one parameter of shape (..., {', '.join(map(str, max(shapes)))}), got "
            "several in parameter groups that differ: give the optimizer of one network"
        )
    return held.pop() if held else None

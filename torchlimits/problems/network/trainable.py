"""`TrainableNetwork`: the data, network and loss of a `NetworkProblem`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.problems.data.blocks import FEW, Blocks
from torchlimits.problems.network import (
    checks,
    head_checks,
    label_laws,
    law_checks,
)
from torchlimits.problems.network.block_layout import BlockLayout
from torchlimits.problems.network.components import GaussianComponents
from torchlimits.problems.network.directions import coordinates_of
from torchlimits.problems.network.from_data import filled
from torchlimits.problems.network.head import Head
from torchlimits.problems.network.labels import LabelLaw
from torchlimits.problems.network.layout import Layout
from torchlimits.problems.network.module import Copies, Network, has_bias
from torchlimits.problems.network.sample_loss import Loss, SampleLoss
from torchlimits.problems.network.setting import Setting
from torchlimits.problems.network.starts import restarted
from torchlimits.problems.problem import Trainable
from torchlimits.statistics.summary import SummaryStatistics

Labels = Tensor | LabelLaw | Callable[[Tensor, Tensor], Tensor]


class TrainableNetwork(Trainable):
    """The part of a `NetworkProblem` that training needs; that class adds the theory.

    Args:
        dim, width, head, loss, labels, snr, means, directions, weights, label_noise, label_flips,
            bias, ridge, covariance, blocks, device, dtype: as in `NetworkProblem`, which is what
            users make.

    Raises:
        ValueError, TypeError: as `NetworkProblem`.
    """

    #: the user's own module, whose copies start as its parts do; None for W ~ N(0, I/N), b = 0
    module: nn.Module | None = None
    #: m and R are those of W divided by this; the entries of W start at N(0, 1/N) times this
    _scale: float = 1.0

    def __init__(
        self, *, dim: int, width: int, head: nn.Module, loss: Loss, labels: Labels | None = None,
        snr: float | Tensor | None = None,
        means: Float[Tensor, "A N"] | None = None, directions: Float[Tensor, "d N"] | None = None,
        weights: object = None, label_noise: float | None = None, label_flips: object = None,
        bias: bool = True, ridge: float | Tensor = 0.0, covariance: object = None,
        blocks: int | str | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        checks.is_module("head", head)
        checks.has_values(head, "head.")
        checks.is_flag("bias", bias)
        checks.is_loss(loss)
        width = _checks.positive_int("width", width)
        network = Network(_checks.positive_int("dim", dim), width, head, bias=bias)
        own = {"dim": dim, "width": width, "head": network.head, "bias": bias}
        self._made_by = partial(type(self), **own)
        self._begin(
            network, "first", loss, labels, snr=snr, means=means, directions=directions,
            weights=weights, label_noise=label_noise, label_flips=label_flips, ridge=ridge,
            covariance=covariance, blocks=blocks, device=device, dtype=dtype,
        )  # fmt: skip

    def _begin(
        self, network: nn.Module, first: str, loss: Loss, labels: Labels | None, **given: Any
    ) -> None:
        """Set up everything for a module whose linear first layer has a name."""
        labels, given = filled(labels, given)
        snr, ridge = given["snr"], given["ridge"]
        self._snr = _checks.graph_or_positive("snr", snr, "x = c_a + snr^(-1/2) z")
        self._ridge = _checks.graph_or_non_negative("ridge", ridge, "it is alpha, the weight decay")
        self.snr: float = _checks.plain(self._snr)
        self.ridge: float = _checks.plain(self._ridge)
        # copies and pickles are of the numbers
        given |= {"snr": self.snr, "ridge": self.ridge}
        self._given: dict[str, Any] = {"loss": loss, "labels": labels, **given}
        self.template, self.first, self.loss_function = network, first, loss
        layer = network.get_submodule(first)
        assert isinstance(layer, nn.Linear)
        self.width, N = layer.out_features, layer.in_features
        self.device = _checks.device(given["device"] or "cpu")
        self.dtype = checks.real_dtype(given["dtype"] or torch.get_default_dtype())
        means = checks.means(given["means"], N)
        self.covariance = checks.covariance(given["covariance"], N, len(means), given["blocks"])
        self.components = GaussianComponents(means, self.snr, given["weights"], self.covariance)
        self.means, self.weights = self.components.means, self.components.weights
        self.directions = checks.directions(given["directions"], self.means)
        self.coordinates = coordinates_of(self.means, self.directions)
        checks.room(N, self.width, len(self.directions))
        head = Head(network, first)
        names: dict[str, Any] = {
            "weight": _named(first, "weight"), "scale": self._scale,
            "bias": _named(first, "bias") if has_bias(layer) else None,
        }  # fmt: skip
        layout = Layout(head.shapes, self.width, len(self.directions), **names)
        spanned = self.directions
        if self.covariance is not None:
            layout = self._block_layout(head.shapes, given["blocks"], names)
            spanned = layout.blocks.directions
        self.statistics = layout.statistics(spanned)
        output = head_checks.checked(head, network, self.width)
        losses = SampleLoss(loss)
        self.labels = self._label_law(losses, output)
        reads = label_laws.reads(self.labels, len(self.directions))
        if _checks.requires_grad(self._snr) and len(reads):
            raise NotImplementedError(
                "expected snr as a number where labels read x_parallel, got a tensor that requires "
                "a gradient: that through the labels is not known; give float(snr)"
            )
        self.setting = Setting(
            layout=layout, head=head, losses=losses, labels=self.labels,
            coordinates=self.coordinates, shares=self._shares(),
            reads=reads, snr=self._snr,
        )  # fmt: skip
        self._outputs = output.ndim - 1

    def _block_layout(
        self, shapes: Mapping[str, tuple[int, ...]], most: int | str | None, names: dict[str, Any]
    ) -> BlockLayout:
        """The layout with the covariance's blocks; see `NetworkProblem`."""
        assert self.covariance is not None
        count = None if most == "all" else FEW if most is None else most
        blocks = Blocks.of(self.covariance, self.directions, count)  # pyright: ignore
        return BlockLayout(shapes, self.width, len(blocks.directions), blocks=blocks, **names)

    @cached_property
    def overall(self) -> SummaryStatistics:
        """The statistics over all blocks: those that a problem without a covariance has.

        `NetworkDynamics.overall` predicts them.
        """
        return self.layout.whole.statistics(self.directions)

    def _label_law(self, losses: SampleLoss, output: Tensor) -> LabelLaw:
        """The law of the labels, checked against the loss."""
        made = partial(
            label_laws.made, self._given["labels"], noise=self._given["label_noise"],
            flips=self._given["label_flips"], coordinates=self.coordinates,
            output=tuple(output.shape[1:]),
        )  # fmt: skip
        law = made()
        target = law_checks.labels(law, self.coordinates, self.snr)
        each = torch.arange(len(target), device="cpu") % len(output)
        law_checks.loss(losses, output[each], target)
        noisy = self._given["label_noise"] > 0
        if noisy and law_checks.is_quadratic(losses, output[each], target):
            return made(points=label_laws.FEW_POINTS)
        return law

    def _shares(self) -> Float[Tensor, " A"]:
        A = len(self.means)
        equal = torch.full((A,), 1 / A, dtype=torch.float64, device="cpu")
        return equal if self.weights is None else self.weights

    def __reduce__(self) -> tuple[Any, ...]:
        # made anew from the arguments, as statistics are functions, which cannot be pickled
        return partial(self._made_by, **self._given), ()

    @property
    def dim(self) -> int:
        """N."""
        return self.means.shape[1]

    @property
    def layout(self) -> Layout:
        """The order and names of the statistics."""
        return self.setting.layout

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        return self.setting.layout.names

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.means)} components, dim={self.dim}, "
            f"width={self.width}, {len(self.names)} statistics, snr={self.snr:g}, "
            f"ridge={self.ridge:g})"
        )

    def model(
        self, *, replicas: tuple[int, ...] = (), generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> nn.Module:  # fmt: skip
        """A network at its random start; see `Trainable.model`.

        W ~ N(0, I/N), b = 0; parts of the head that have ``reset_parameters()`` are initialised by
        it; other parameters and frozen ones keep the values that they were given with.
        """
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)

        def one() -> nn.Module:
            network = copy.deepcopy(self.template)
            whole = self.module is None
            first = self.first if whole else None
            restarted(network, first, generator, device, scale=self._scale)
            return network.to(device=device, dtype=dtype)

        if not replicas:
            return one()
        networks = [dict(one().named_parameters()) for _ in range(prod(replicas))]
        stacked = {
            name: torch.stack([n[name].detach() for n in networks]).unflatten(0, replicas)
            for name in networks[0]
        }
        template = copy.deepcopy(self.template).to(device=device, dtype=dtype)
        return Copies(template, stacked, replicas)

    def sample(
        self, batch: int, *, replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch N"], Tensor]:  # fmt: skip
        """Fresh data (x, y): inputs and their labels; see `Trainable.sample`."""
        _checks.positive_int("batch", batch)
        device = _checks.device(device or self.device)
        _checks.generator(generator, device)
        shape = (*replicas, batch)
        x, component = self.components.inputs(
            shape, generator=generator, device=device, dtype=dtype or self.dtype
        )
        flat = (x @ self._directions_beside(x).mT).flatten(0, -2)
        y = self.labels.sample(flat, component.flatten(), generator)
        return x, y.unflatten(0, shape)

    def _directions_beside(self, x: Tensor) -> Float[Tensor, "d N"]:
        key = (x.device, x.dtype)
        known: dict[Any, Tensor] = self.__dict__.setdefault("_moved", {})
        if key not in known:
            known[key] = self.directions.to(x)
        return known[key]

    def loss(self, output: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """The mean over the batch, *summed* over replicas; see `Trainable.loss`."""
        depth = output.ndim - 1 - self._outputs
        if depth < 0 or output.shape[: depth + 1] != target.shape[: depth + 1]:
            raise ValueError(
                "expected output and target with the same replicas and batch, got "
                f"{tuple(output.shape)} and {tuple(target.shape)}"
            )
        if not depth:
            return self.loss_function(output, target)
        pairs = (x if depth == 1 else x.flatten(0, depth - 1) for x in (output, target))
        return torch.func.vmap(self.loss_function)(*pairs).sum()

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, which JSON can hold; noise, flips and weights only if any."""
        given = self._given
        loss = getattr(self.loss_function, "__name__", type(self.loss_function).__name__)
        facts: dict[str, Any] = {
            "components": len(self.means), "dim": self.dim, "width": self.width, "snr": self.snr,
            "ridge": self.ridge, "head": " ".join(str(self.template).split()), "loss": loss,
        }  # fmt: skip
        if given["label_noise"]:
            facts["label_noise"] = given["label_noise"]
        if given["label_flips"] is not None:
            facts["label_flips"] = torch.as_tensor(given["label_flips"]).tolist()
        if self.covariance is not None:
            facts["covariance"] = repr(self.covariance)
        return facts if self.weights is None else {**facts, "weights": self.weights.tolist()}


def _named(first: str, parameter: str) -> str:
    return f"{first}.{parameter}" if first else parameter

"""`TrainableMixture`: the data, network and loss of a `GaussianMixture`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.contracts.kernel import Gradients, Kernel, NoKernelError
from torchlimits.problems.mixture.components import Components
from torchlimits.problems.mixture.gradients import of_network
from torchlimits.problems.mixture.layout import mixture_layout
from torchlimits.problems.network import directions as axes
from torchlimits.problems.network.layout import Layout
from torchlimits.problems.problem import Trainable
from torchlimits.problems.two_layer import TwoLayerNetwork, logistic_loss

M = TypeVar("M", bound="TrainableMixture")


class TrainableMixture(Trainable):
    """The part of a `GaussianMixture` that training needs; that class adds the theory.

    Args:
        means, labels, width, snr, ridge, weights, directions, device, dtype: as in
            `GaussianMixture`, which is what users make.

    Raises:
        ValueError: as `GaussianMixture`.
    """

    def __init__(
        self, means: Float[Tensor, "A N"], labels: Float[Tensor, " A"] | Sequence[int], *,
        width: int, snr: float | Tensor, ridge: float | Tensor = 0.0,
        weights: Float[Tensor, " A"] | Sequence[float] | None = None,
        directions: Float[Tensor, "d N"] | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self._snr = snr if _checks.plain(snr) == inf else _checks.graph_or_positive("snr", snr)
        self._ridge = _checks.graph_or_non_negative("ridge", ridge, "it is alpha, the weight decay")
        self.ridge: float = _checks.plain(self._ridge)
        self.components = data = Components(means, labels, _checks.plain(self._snr), weights)
        self.means, self.labels, self.snr, self.weights = (
            data.means, data.labels, data.snr, data.weights
        )  # fmt: skip
        self.width = _checks.positive_int("width", width)
        self.device = _checks.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        count = len(self.means)
        if self.dim < count + width:
            raise ValueError(
                f"expected dim >= number of means + width = {count} + {width} = {count + width}, "
                f"got dim={self.dim}: enlarge dim or shrink the network"
            )
        if directions is None:
            self.directions = axes.distinct_up_to_sign(self.means)
        else:
            self.directions = _checks.float64("directions", directions)
        self.coordinates = axes.coordinates_of(self.means, self.directions)
        self.statistics = self.layout.statistics(self.directions)

    def __reduce__(self) -> tuple[Any, ...]:
        # made anew from the arguments, as statistics are functions, which cannot be pickled
        return partial(type(self), **self._options()), (self.means, self.labels)

    @classmethod
    def binary(
        cls: type[M], dim: int, width: int = 2, *, snr: float | Tensor,
        ridge: float | Tensor = 0.0,
        weights: Float[Tensor, " A"] | Sequence[float] | None = None,
        directions: Literal["axis", "random"] = "axis", generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> M:  # fmt: skip
        """The binary mixture: +mu (label 1), -mu (label 0), |mu| = 1; d = 1.

        Args:
            dim: N.
            width: K.
            snr, ridge, weights, device, dtype: as in `GaussianMixture`.
            directions: whether mu is the first axis, or uniform on the sphere (from ``generator``).
            generator: draws a random mu.

        Example:
            >>> import torchlimits as tl
            >>> tl.GaussianMixture.binary(dim=100, snr=2.0, weights=[0.7, 0.3])
            GaussianMixture(2 components, dim=100, width=2, snr=2, ridge=0, weights=[0.7, 0.3])
        """
        (mu,) = axes.unit_directions(1, dim, directions, generator)
        options: dict[str, Any] = {"ridge": ridge, "weights": weights, "device": device}
        return cls(torch.stack([mu, -mu]), [1, 0], width=width, snr=snr, dtype=dtype, **options)

    @classmethod
    def xor(
        cls: type[M], dim: int, width: int = 4, *, snr: float | Tensor,
        ridge: float | Tensor = 0.0,
        weights: Float[Tensor, " A"] | Sequence[float] | None = None,
        directions: Literal["axis", "random"] = "axis", generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> M:  # fmt: skip
        """The XOR mixture: +-mu (label 1), +-nu (label 0), mu and nu orthonormal; d = 2.

        Args:
            dim, width, snr, ridge, weights, generator, device, dtype: as in `binary`.
            directions: whether mu, nu are the first two axes, or uniformly random.

        Example:
            >>> import torchlimits as tl
            >>> tl.GaussianMixture.xor(dim=100, snr=2.0)
            GaussianMixture(4 components, dim=100, width=4, snr=2, ridge=0)
        """
        mu, nu = axes.unit_directions(2, dim, directions, generator)
        means = torch.stack([mu, -mu, nu, -nu])
        options: dict[str, Any] = {"ridge": ridge, "weights": weights, "device": device}
        return cls(means, [1, 1, 0, 0], width=width, snr=snr, dtype=dtype, **options)

    @property
    def dim(self) -> int:
        """N."""
        return self.means.shape[1]

    @property
    def layout(self) -> Layout:
        """The order and names of the statistics."""
        return mixture_layout(self.width, len(self.directions))

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        return self.layout.names

    def __repr__(self) -> str:
        shares = ""
        if self.weights is not None:
            shares = f", weights=[{', '.join(f'{w:g}' for w in self.weights.tolist())}]"
        return (
            f"GaussianMixture({len(self.means)} components, dim={self.dim}, width={self.width}, "
            f"snr={self.snr:g}, ridge={self.ridge:g}{shares})"
        )

    def model(
        self, *, replicas: tuple[int, ...] = (), generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> TwoLayerNetwork:  # fmt: skip
        """A network at the Gaussian start v ~ N(0, 1), W ~ N(0, I/N); see `Trainable.model`."""
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        return TwoLayerNetwork(
            self.dim, self.width, replicas=replicas, generator=generator, device=device, dtype=dtype
        )

    def sample(
        self, batch: int, *, replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch N"], Float[Tensor, "*replicas batch"]]:  # fmt: skip
        """Fresh data (x, y): inputs and their labels; see `Trainable.sample`."""
        _checks.positive_int("batch", batch)
        device = _checks.device(device or self.device)
        _checks.generator(generator, device)
        shape, dtype = (*replicas, batch), dtype or self.dtype
        return self.components.sample(shape, generator=generator, device=device, dtype=dtype)

    def loss(
        self, output: Float[Tensor, "*replicas batch"], target: Float[Tensor, "*replicas batch"]
    ) -> Float[Tensor, ""]:
        """Binary cross-entropy of the logits ``output`` and the labels; see `Trainable.loss`."""
        return logistic_loss(output, target)

    def kernel(
        self, model: TwoLayerNetwork, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
    ) -> Kernel:
        """SGD on fresh data as one kernel for several steps, which `train` takes on CUDA.

        Args:
            model: made by `model`, with one leading dimension, in float32, on CUDA.
            optimizer: torch.optim.SGD over the model.
            batch_size: the number of fresh samples in a step.
            seed: the seed of the data.

        Raises:
            NoKernelError: if there is no kernel: without Triton, in another dtype, with Nesterov's
                momentum, with weights, or for large networks with momentum or batches.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
            >>> model = problem.model(replicas=(10,), dtype=torch.float64)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> try:
            ...     problem.kernel(model, optimizer, batch_size=1, seed=0).advance(64)
            ... except ValueError:  # NoKernelError, in float64
            ...     print("captured steps instead")
            captured steps instead
        """
        self._check_own(model, "model", "sample", "loss")
        try:
            from torchlimits.problems.mixture.kernel import MixtureSGD
        except ImportError as error:
            raise NoKernelError(
                f"expected Triton, which comes with PyTorch for CUDA: {error}"
            ) from error
        return MixtureSGD(self.components, model, optimizer, batch_size=batch_size, seed=seed)

    def gradients(self, model: TwoLayerNetwork) -> Gradients:
        """The gradients of `loss` in closed form, which `train` takes on the CPU.

        Args:
            model: made by `model`, with one leading dimension.

        Returns:
            A function of x and y, made by `sample`, that sets ``.grad`` of both layers, as
            ``loss(model(x), y).backward()`` does, to rounding.

        Raises:
            NoKernelError: if model or loss are not a mixture's own.

        Example:
            >>> import torchlimits as tl
            >>> problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
            >>> model = problem.model(replicas=(10,))
            >>> problem.gradients(model)(*problem.sample(1, replicas=(10,)))
            >>> model.first.weight.grad.shape
            torch.Size([10, 2, 50])
        """
        self._check_own(model, "model", "loss")
        return of_network(model)

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, which JSON can hold; the weights only if they differ."""
        names = ("dim", "width", "snr", "ridge")
        facts = {"components": len(self.means), **{name: getattr(self, name) for name in names}}
        return facts if self.weights is None else {**facts, "weights": self.weights.tolist()}

    def _options(self) -> dict[str, Any]:
        """The problem's arguments, besides means and labels."""
        names = ("width", "snr", "ridge", "weights", "directions", "device", "dtype")
        return {name: getattr(self, name) for name in names}

    def _check_own(self, model: TwoLayerNetwork, *names: str) -> None:
        own = [name for name in names if self._overrides(name)]
        if own or model.activation is not torch.relu:
            raise NoKernelError(
                "expected a mixture's own model, data and loss, whose steps are known in closed "
                f"form, got others: {own or 'activation'}"
            )

    def _overrides(self, name: str) -> bool:
        """Whether a subclass or this object has replaced a method."""
        return name in vars(self) or getattr(type(self), name) is not getattr(
            TrainableMixture, name
        )

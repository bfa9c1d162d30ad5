"""`GaussianMixture`: a two-layer ReLU network classifying a Gaussian mixture (binary, XOR, any)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from torchlimits import _checks
from torchlimits.contracts.kernel import Kernel, NoKernelError
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.dynamics.reduced_chain import Recursion
from torchlimits.experiments import success
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.problems.mixture import expectations, small_noise
from torchlimits.problems.mixture.chain import MixtureChain
from torchlimits.problems.mixture.dynamics import MixtureDynamics, MixtureODE
from torchlimits.problems.mixture.small_noise import FixedPointComponent, SmallNoiseDynamics
from torchlimits.problems.place import DeviceAndType, Place
from torchlimits.problems.two_layer import TwoLayerNetwork
from torchlimits.statistics import gram, overlaps, second_layer
from torchlimits.statistics.summary import SummaryStatistics

#: orthonormality and "in the span" are checked to this
_TOLERANCE = 1e-6
#: methods that the kernel does the work of
_OF_THE_KERNEL = ("model", "sample", "loss")
#: models drawn together by `starts`
_AT_ONCE = 256


class GaussianMixture:
    r"""Classify :math:`X = c_a + Z/\sqrt\lambda`, a uniform, by a two-layer ReLU network.

    Data: :math:`Z \sim N(0, I_N)`; component a has mean c_a and label y_a in {0, 1}; the means lie
    in the span of orthonormal directions e_1 ... e_d. Network: `TwoLayerNetwork`, K hidden units.
    Loss: binary cross-entropy of the logit; the ridge (alpha/2)(\|v\|^2 + \|W\|^2) is
    ``weight_decay=alpha`` in torch.optim.SGD.

    Summary statistics: ``v[i]``; ``m[i,j]`` = <W_i, e_j>; ``R[i,j]``, i <= j, the Gram matrix of
    the neurons' parts orthogonal to all e_j. In all K + K d + K (K + 1)/2.

    Source: sections 4 (binary) and 5 (XOR) of arXiv 2206.04030.

    Args:
        means: the c_a as rows, shape ``(A, N)``.
        labels: the y_a, shape ``(A,)``.
        width: K >= 1.
        snr: lambda in (0, inf]; at inf the data are the means themselves.
        ridge: alpha >= 0.
        directions: the e_j as orthonormal rows, shape ``(d, N)``; by default the means themselves,
            each once and +-c counted once, which then have to be orthonormal.
        device, dtype: of the data, until a model has been made.

    Raises:
        ValueError: if the means are not in the span of orthonormal directions, N is smaller than
            the number of means + K, labels are not 0 or 1, or a number is out of its range.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.xor(dim=100, width=4, snr=10.0, ridge=0.1)
        >>> len(problem.statistics.names_of(dict(problem.model().named_parameters())))
        22
        >>> x, y = problem.sample(3)
        >>> x.shape, y.shape, problem.loss(problem.model()(x), y).shape
        (torch.Size([3, 100]), torch.Size([3]), torch.Size([]))
        >>> start = problem.starts(1)[0]
        >>> problem.dynamics(step_size=1.0, level=-1).solve(start, [0.0, 0.5])
        Trajectory(22 statistics, 2 times, t = 0 ... 0.5, runs=1)
        >>> problem.reduced_chain(step_size=1.0).run(start, 10)  # SGD itself, without vectors
        Trajectory(22 statistics, 11 times, t = 0 ... 0.1, runs=1)
        >>> problem.success_probability(), problem.describe()["snr"]
        (0.09375, 10.0)
        >>> limit = problem.small_noise()
        >>> limit.fixed_point_components()[0]
        FixedPointComponent((0, 1, 2, 3), stable, dimension 0)
        >>> optimum = torch.tensor([1.0, 1, -1, -1, 1, 0, -1, 0, 0, 1, 0, -1, *[0] * 10])
        >>> limit.is_optimal(optimum), limit.accuracy(optimum)
        (tensor(True), tensor(1., dtype=torch.float64))
    """

    def __init__(
        self,
        means: Float[Tensor, "A N"],
        labels: Float[Tensor, " A"] | Sequence[int],
        *,
        width: int,
        snr: float,
        ridge: float = 0.0,
        directions: Float[Tensor, "d N"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.means = _checks.float64("means", means)
        self.labels = _checks.float64("labels", labels)
        self.width = _checks.positive_int("width", width)
        self.snr = math.inf if snr == math.inf else _checks.positive("snr", snr)
        self.ridge = _checks.non_negative("ridge", ridge, "it is alpha, the weight decay")
        self.device = _checks.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        _check_components(self.means, self.labels, self.width)
        if directions is None:
            self.directions = _distinct_up_to_sign(self.means)
        else:
            self.directions = _checks.float64("directions", directions)
        self.coordinates = _coordinates(self.means, self.directions)
        self.statistics = _mixture_statistics(self.directions)
        self._means_like: dict[DeviceAndType, tuple[Tensor, Tensor]] = {}
        self._place = Place(self.device, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # made anew from its arguments: statistics are functions, which cannot be pickled
        options = {
            "width": self.width, "snr": self.snr, "ridge": self.ridge,
            "directions": self.directions, "device": self.device, "dtype": self.dtype,
        }  # fmt: skip
        return partial(type(self), **options), (self.means, self.labels)

    @classmethod
    def binary(
        cls,
        dim: int,
        width: int = 2,
        *,
        snr: float,
        ridge: float = 0.0,
        directions: Literal["axis", "random"] = "axis",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> GaussianMixture:
        """The binary mixture: +mu (label 1), -mu (label 0), |mu| = 1; d = 1.

        Args:
            dim: N.
            width: K.
            snr, ridge, device, dtype: as in `GaussianMixture`.
            directions: mu is the first axis, or uniform on the sphere (from ``generator``).
            generator: of a random mu.

        Example:
            >>> import torchlimits as tl
            >>> tl.GaussianMixture.binary(dim=100, snr=2.0)
            GaussianMixture(2 components, dim=100, width=2, snr=2, ridge=0)
        """
        (mu,) = _unit_directions(1, dim, directions, generator)
        return cls(
            torch.stack([mu, -mu]),
            [1, 0],
            width=width,
            snr=snr,
            ridge=ridge,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def xor(
        cls,
        dim: int,
        width: int = 4,
        *,
        snr: float,
        ridge: float = 0.0,
        directions: Literal["axis", "random"] = "axis",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> GaussianMixture:
        """The XOR mixture: +-mu (label 1), +-nu (label 0), mu and nu orthonormal; d = 2.

        Args:
            dim: N.
            width: K.
            snr, ridge, device, dtype: as in `GaussianMixture`.
            directions: mu, nu are the first two axes, or uniformly random (from ``generator``).
            generator: of random mu, nu.

        Example:
            >>> import torchlimits as tl
            >>> tl.GaussianMixture.xor(dim=100, snr=2.0)
            GaussianMixture(4 components, dim=100, width=4, snr=2, ridge=0)
        """
        mu, nu = _unit_directions(2, dim, directions, generator)
        return cls(
            torch.stack([mu, -mu, nu, -nu]),
            [1, 1, 0, 0],
            width=width,
            snr=snr,
            ridge=ridge,
            device=device,
            dtype=dtype,
        )

    @property
    def dim(self) -> int:
        """N."""
        return self.means.shape[1]

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        return mixture_names(self.width, len(self.directions))

    def __repr__(self) -> str:
        return (
            f"GaussianMixture({len(self.means)} components, dim={self.dim}, width={self.width}, "
            f"snr={self.snr:g}, ridge={self.ridge:g})"
        )

    def model(
        self,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TwoLayerNetwork:
        """A network at the Gaussian start v ~ N(0, 1), W ~ N(0, I/N).

        Args:
            replicas: leading dimensions of independent networks in one module.
            generator: of the start; on the device of the model.
            device, dtype: by default the problem's.
        """
        device = _checks.device(device or self.device)
        _checks.generator(generator, device)
        network = TwoLayerNetwork(
            self.dim,
            self.width,
            replicas=replicas,
            generator=generator,
            device=device,
            dtype=dtype or self.dtype,
        )
        self._place.follow(network.first.weight)
        return network

    def sample(
        self,
        batch: int,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch N"], Float[Tensor, "*replicas batch"]]:
        """Fresh data (x, y), on the device and in the dtype of the last model that there is.

        Args:
            batch: samples for each network.
            replicas: leading dimensions of independent networks.
            generator: of the data; on the device of the model.

        Raises:
            ValueError, TypeError: if batch is no int >= 1, or the generator on another device.
        """
        _checks.positive_int("batch", batch)
        device, dtype = self._place.now
        _checks.generator(generator, device)
        means, labels = self._on(device, dtype)
        shape = (*replicas, batch)
        component = torch.randint(len(means), shape, generator=generator, device=device)
        x = torch.randn(*shape, self.dim, generator=generator, device=device, dtype=dtype)
        # a product with indicators, in place: means[component] has as many numbers as the noise
        chosen = F.one_hot(component.flatten(), len(means)).to(dtype)
        x.view(-1, self.dim).addmm_(chosen, means, beta=self.snr**-0.5)
        return x, labels[component]

    def loss(
        self, output: Float[Tensor, "*replicas batch"], target: Float[Tensor, "*replicas batch"]
    ) -> Float[Tensor, ""]:
        """Binary cross-entropy of the logits: mean over the batch, *summed* over replicas.

        The sum makes one SGD step of the whole one step of every replica. Without the ridge, which
        is the optimizer's weight decay.

        Args:
            output: the logits, shape ``(*replicas, batch)``.
            target: the labels 0 or 1, of the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"expected output and target of one shape, got {tuple(output.shape)} and "
                f"{tuple(target.shape)}: the model returns one logit an input"
            )
        total = F.binary_cross_entropy_with_logits(output, target, reduction="sum")
        batch = target.shape[-1]
        return total / batch if batch > 1 else total

    def kernel(
        self, model: TwoLayerNetwork, optimizer: torch.optim.SGD, *, batch_size: int, seed: int
    ) -> Kernel:
        """SGD on fresh data as one kernel for several steps, which `train` takes on CUDA.

        Args:
            model: of `model`, with one leading dimension, in float32, on CUDA.
            optimizer: torch.optim.SGD over it.
            batch_size: fresh samples of a step.
            seed: of the data.

        Raises:
            NoKernelError: if there is none: without Triton, in another dtype, with Nesterov's
                momentum, or for large networks with momentum or batches.

        Example:
            >>> import torch, torchlimits as tl
            >>> from torchlimits.contracts.kernel import NoKernelError
            >>> problem = tl.GaussianMixture.binary(dim=50, snr=2.0)
            >>> model = problem.model(replicas=(10,), dtype=torch.float64)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> try:
            ...     problem.kernel(model, optimizer, batch_size=1, seed=0).advance(64)
            ... except NoKernelError:  # in float64
            ...     print("captured steps instead")
            captured steps instead
        """
        own = [name for name in _OF_THE_KERNEL if self._overrides(name)]
        if own or model.activation is not torch.relu:
            raise NoKernelError(
                "expected a mixture's own model, data and loss, which is what the kernel computes, "
                f"got others: {own or 'activation'}"
            )
        try:
            from torchlimits.problems.mixture.kernel import MixtureSGD
        except ImportError as error:
            raise NoKernelError(
                f"expected Triton, which comes with PyTorch for CUDA: {error}"
            ) from error
        return MixtureSGD(self, model, optimizer, batch_size=batch_size, seed=seed)

    def dynamics(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step_size: float | None = None,
        momentum: float = 0.0,
        batch_size: int = 1,
        schedule: ScheduleLike | None = None,
        dim: int | None = None,
        level: int = 0,
    ) -> MixtureODE:
        """The effective dynamics that go with an SGD optimizer, or with c_delta = lr * N.

        Args:
            optimizer: a `torch.optim.SGD`, whose options are read, for each layer those of its
                parameter group; limit time is the sum of the first group's learning rates. (Its
                weight decay is the ridge of the prediction; a warning if not the problem's.) A
                layer that it does not hold does not move.
            step_size: c_delta, instead of an optimizer; the ridge is then the problem's.
            momentum: with ``step_size``.
            batch_size: fresh samples averaged in one step.
            schedule: c_delta(t), a function of limit time that replaces c_delta, or the
                optimizer's LR scheduler, stepped after every step; see
                `torchlimits.optim.schedule`.
            dim: N, if not the problem's; 10^9 takes no more memory.
            level: accuracy of the Gaussian expectations, see `MixtureDynamics`.

        Returns:
            `MixtureDynamics`, or `SmallNoiseDynamics` at snr = inf.

        Raises:
            ValueError: if not exactly one of optimizer and step_size is given, or their values
                are out of range.
            TypeError: if the optimizer is not SGD.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        layers = None
        if optimizer is None or step_size is not None:
            settings = SGDSettings.chosen(
                optimizer,
                dim=dim,
                ridge=self.ridge,
                step_size=step_size,
                momentum=momentum,
                batch_size=batch_size,
            )
        else:
            found = Layers.of(
                optimizer, width=self.width, dims={self.dim, dim}, dim=dim, batch_size=batch_size
            )
            if isinstance(found, Layers):
                found.check_beside(ridge=self.ridge, momentum=momentum)
                settings, layers = found.reference, found
            else:
                found.check_beside(ridge=self.ridge, momentum=momentum, stacklevel=3)
                settings = found
        place: dict[str, Any] = {
            "width": self.width,
            "snr": self.snr,
            "dim": dim,
            "settings": settings,
            "layers": layers,
            "schedule": Schedule.of(schedule, optimizer, dim),
        }
        if self.snr == math.inf:
            return SmallNoiseDynamics(self.coordinates, self.labels, **place)
        return MixtureDynamics(self.coordinates, self.labels, level=level, **place)

    def reduced_chain(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step_size: float | None = None,
        momentum: float = 0.0,
        batch_size: int = 1,
        dim: int | None = None,
    ) -> MixtureChain:
        """The exact law of SGD's statistics at dimension N, drawn without N-vectors.

        See `ReducedChain.run`; errors are those of `dynamics`.

        Args:
            optimizer, step_size, momentum, batch_size, dim: as in `dynamics`; Nesterov's momentum
                and dampening are read from the optimizer.
        """
        dynamics = self.dynamics(
            optimizer, step_size=step_size, momentum=momentum, batch_size=batch_size, dim=dim
        )
        dynamics.check_plain("the reduced chain")
        recursion = Recursion.of(dynamics.settings, dynamics.dim, optimizer)
        if dynamics.dim < len(self.directions) + 1:
            raise ValueError(
                f"expected dim > {len(self.directions)}, the number of directions, got {dim}"
            )
        return MixtureChain(dynamics, recursion)

    def diffusive(self, at: Float[Tensor, " k"], step_size: float = 1.0) -> LinearDiffusion:
        """The diffusive limit of sqrt(N) (u - u*) around a fixed point of the ballistic one.

        On the quarter circles (binary) and pairs of rings (XOR) at snr = inf, that is for
        `small_noise`, these are Propositions 4.3 and 5.1 of arXiv 2206.04030. See
        `EffectiveDynamics.diffusive`, also for what it raises.

        Args:
            at: u*, shape ``(k,)``.
            step_size: c_delta.

        Example:
            >>> import torchlimits as tl
            >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0, ridge=0.1).small_noise()
            >>> point = next(c for c in problem.fixed_point_components() if c.dimension).point()
            >>> problem.diffusive(point).names == problem.names
            True
        """
        return self.dynamics(step_size=step_size).diffusive(at)

    def starts(
        self, count: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "S k"]:
        """Statistics at the start of so many models of `model`, ``(S, k)``, float64, on the CPU.

        Args:
            count: S.
            generator: of the starts, on the CPU.

        Example:
            >>> import torch, torchlimits as tl
            >>> tl.GaussianMixture.xor(dim=100, snr=10.0).starts(1000).shape
            torch.Size([1000, 22])
        """
        _checks.positive_int("count", count)
        drawn = []
        # a model's weights are N/K times as many numbers: not all models at once
        for done in range(0, count, _AT_ONCE):
            some = (min(_AT_ONCE, count - done),)
            model = self.model(replicas=some, generator=generator, device="cpu")
            with torch.no_grad():
                drawn.append(self.statistics(dict(model.named_parameters())).double())
        return torch.cat(drawn)

    def random_start(
        self, v: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
        """Mean and covariance of u at the start of `model`, W ~ N(0, I/N), for a given v.

        For ``dynamics.solve(mean, times, band=True, initial_covariance=covariance)``; v itself, of
        order 1, is no fluctuation. m ~ N(0, 1/N); R is Wishart with mean (N - d)/N.

        Example:
            >>> import torch, torchlimits as tl
            >>> u, P = tl.GaussianMixture.binary(dim=100, snr=2.0).random_start(torch.ones(2))
            >>> u.tolist()
            [1.0, 1.0, 0.0, 0.0, 0.99, 0.0, 0.99]
            >>> P.diagonal()[2:5]
            tensor([0.0100, 0.0100, 0.0198], dtype=torch.float64)
        """
        K, d = self.width, len(self.directions)
        v = _checks.float64("v", v)
        if v.shape != (K,):
            raise ValueError(f"expected v of shape ({K},), got {tuple(v.shape)}")
        share = (self.dim - d) / self.dim
        eye = torch.eye(K, dtype=torch.float64, device="cpu")
        i, j = torch.triu_indices(K, K, device="cpu")
        zero = v.new_zeros(K * d)
        variances = [0 * v, zero + 1 / self.dim]
        variances.append(share / self.dim * (1 + eye[i, j]))
        mean = torch.cat([v, zero, share * eye[i, j]])
        return mean, torch.diag(torch.cat(variances))

    def small_noise(self) -> GaussianMixture:
        """The same problem at snr = infinity, whose dynamics and fixed points are closed forms."""
        return GaussianMixture(
            self.means,
            self.labels,
            width=self.width,
            snr=math.inf,
            ridge=self.ridge,
            directions=self.directions,
            device=self.device,
            dtype=self.dtype,
        )

    def fixed_point_components(self) -> list[FixedPointComponent]:
        """All components of fixed points at snr = infinity (binary, XOR); stable ones first.

        Raises:
            ValueError: at finite snr, or if no closed form is known; see `small_noise.components`.
        """
        if self.snr != math.inf:
            raise ValueError(
                f"expected snr = inf, got {self.snr:g}: call small_noise() first for the closed "
                "form, or dynamics(...).fixed_points() for this snr"
            )
        return small_noise.components(self.coordinates, self.labels, self.width, self.ridge)

    def is_optimal(self, u: Float[Tensor, "*batch k"]) -> Bool[Tensor, "*batch"]:
        """Whether the network with statistics u classifies every mean right, shape ``(...)``.

        The logit at every c_a has the sign of its label (a logit of 0, no neuron, is wrong). At
        the paper's fixed points that is the optimal classifier.

        Args:
            u: shape ``(..., k)``.

        Raises:
            ValueError: if u is of another shape.
        """
        if u.shape[-1:] != (len(self.names),):
            raise ValueError(f"expected u of shape (..., {len(self.names)}), got {tuple(u.shape)}")
        K = self.width
        v, m = u[..., :K], u[..., K : K + K * len(self.directions)].unflatten(-1, (K, -1))
        h = m @ self.coordinates.to(u).mT
        logits = (v[..., :, None] * h.relu()).sum(-2)
        return (logits * (2 * self.labels.to(u) - 1) > 0).all(-1)

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the network with statistics u gives fresh data the right label), shape ``(...)``.

        A logit of 0 counts half. By 2^14 scrambled Sobol points a component, the same ones in
        every call: an error of about 1e-3.

        Args:
            u: shape ``(..., k)``.
        """
        v, m, R = self.dynamics(step_size=0.0).split(u.double().cpu())
        K, d = self.width, len(self.directions)
        engine = torch.quasirandom.SobolEngine(d + K, scramble=True, seed=0)
        uniform = engine.draw(1 if self.snr == math.inf else 2**14, dtype=torch.float64)
        normal = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)) * self.snr**-0.5
        x = self.coordinates[:, None] + normal[:, :d]  # (A, points, d)
        across = normal[:, d:] @ expectations.psd_sqrt(R)  # (..., points, K)
        h = torch.einsum("...kd,apd->...apk", m, x) + across[..., None, :, :]
        logits = torch.einsum("...k,...apk->...ap", v, h.relu())
        right = logits.sign() * (2 * self.labels[:, None] - 1)
        return ((1 + right) / 2).mean((-2, -1))

    def success_probability(self) -> float:
        """P(SGD from a random start ends at an optimal classifier), for N, then snr -> infinity.

        Exact for any width, binary and XOR: each neuron takes one of the A means at random, and
        all have to be taken (`success.exact`). 0 where the ridge leaves no fixed point but 0.
        `success.by_dynamics` and `success.by_sgd` estimate it at finite snr and N.

        Raises:
            ValueError: if the mixture is neither binary nor XOR.
        """
        small_noise.kind_of_mixture(self.coordinates, self.labels)
        means = len(self.means)
        if self.ridge and small_noise.squared_radius(means, self.ridge) <= 0:
            return 0.0
        return success.exact(means, self.width)

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, JSON-able."""
        return {
            "components": len(self.means),
            "dim": self.dim,
            "width": self.width,
            "snr": self.snr,
            "ridge": self.ridge,
        }

    def _overrides(self, name: str) -> bool:
        """Whether a subclass, or this object, has another method."""
        return name in vars(self) or getattr(type(self), name) is not getattr(GaussianMixture, name)

    def _on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        key = (device, dtype)
        if key not in self._means_like:
            self._means_like[key] = (self.means.to(device, dtype), self.labels.to(device, dtype))
        return self._means_like[key]


def mixture_names(width: int, directions: int) -> list[str]:
    """v[i], m[i,j], R[i,j] (i <= j), in the order of u."""
    neurons = range(width)
    return [
        *(f"v[{i}]" for i in neurons),
        *(f"m[{i},{j}]" for i in neurons for j in range(directions)),
        *(f"R[{i},{j}]" for i in neurons for j in range(i, width)),
    ]


def _mixture_statistics(directions: Tensor) -> SummaryStatistics:
    return SummaryStatistics(
        {
            "v": second_layer("second.weight"),
            "m": overlaps("first.weight", directions),
            "R": gram("first.weight", perpendicular_to=directions),
        },
        symmetric=["R"],
        parameter_dims={"first.weight": 2, "second.weight": 2},
    )


def _unit_directions(
    count: int, dim: int, kind: str, generator: torch.Generator | None
) -> Float[Tensor, "count dim"]:
    _checks.positive_int("dim", dim)
    if dim < count:
        raise ValueError(f"expected dim >= {count}, the number of directions, got {dim}")
    if kind == "axis":
        return torch.eye(count, dim, dtype=torch.float64, device="cpu")
    if kind == "random":
        normal = torch.randn(dim, count, generator=generator, dtype=torch.float64, device="cpu")
        return torch.linalg.qr(normal).Q.mT.contiguous()
    raise ValueError(f"expected directions to be 'axis' or 'random', got {kind!r}")


def _check_components(means: Tensor, labels: Tensor, width: int) -> None:
    if means.ndim != 2 or len(means) == 0 or not bool(means.isfinite().all()):
        raise ValueError(
            f"expected means as finite rows of shape (A, N), got shape {tuple(means.shape)}"
        )
    if labels.shape != means.shape[:1]:
        raise ValueError(
            f"expected one label a mean, shape ({len(means)},), got {tuple(labels.shape)}"
        )
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"expected labels 0 or 1, got {labels.unique().tolist()}: relabel them")
    count, dim = means.shape
    if dim < count + width:
        raise ValueError(
            f"expected dim >= number of means + width = {count} + {width} = {count + width}, "
            f"got dim={dim}: enlarge dim or shrink the network"
        )


def _distinct_up_to_sign(means: Tensor) -> Tensor:
    kept: list[Tensor] = []
    for mean in means:
        twin = any((mean - k).norm() < _TOLERANCE or (mean + k).norm() < _TOLERANCE for k in kept)
        if not twin and mean.norm() > _TOLERANCE:
            kept.append(mean)
    if not kept:
        raise ValueError("expected at least one mean that is not zero, or directions=")
    return torch.stack(kept)


def _coordinates(means: Tensor, directions: Tensor) -> Float[Tensor, "A d"]:
    """The means in the basis of the directions, after checking that this makes sense."""
    if directions.ndim != 2 or directions.shape[1] != means.shape[1]:
        raise ValueError(
            f"expected directions of shape (d, {means.shape[1]}), got {tuple(directions.shape)}"
        )
    eye = torch.eye(len(directions), dtype=directions.dtype, device=directions.device)
    defect = (directions @ directions.mT - eye).abs().max()
    if not float(defect) < _TOLERANCE:
        raise ValueError(
            f"expected means along orthonormal directions, got a Gram matrix {float(defect):.2g} "
            "away from the identity: scale the means to length 1 and make them orthogonal, or "
            "give orthonormal rows that span them as directions="
        )
    coordinates = means @ directions.mT
    outside = (means - coordinates @ directions).norm(dim=1).max()
    if float(outside) > _TOLERANCE:
        raise ValueError(
            f"expected means in the span of the directions, got one {float(outside):.2g} outside: "
            "add the missing direction"
        )
    return coordinates

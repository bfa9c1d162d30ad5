"""`SpikedTensor`: recover a direction from noisy tensors by online SGD (order 2: matrix PCA)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.place import DeviceAndType, Place
from torchlimits.problems.spiked.chain import SpikedChain
from torchlimits.problems.spiked.dynamics import SpikedDynamics
from torchlimits.problems.spiked.equator import EquatorDynamics
from torchlimits.problems.spiked.field import NAMES
from torchlimits.statistics.quadratic import Gradient, Parameters, Quadratic, dense
from torchlimits.statistics.summary import SummaryStatistics


class SpikeEstimate(nn.Module):
    """The estimate x of the spike: one parameter ``x``, shape ``(*replicas, n)``.

    Its output is x itself, whatever the input: the data of this problem are the tensors that x is
    compared with in `SpikedTensor.loss`.
    """

    def __init__(self, x: Float[Tensor, "*replicas n"]) -> None:
        super().__init__()
        self.x = nn.Parameter(x)

    def forward(self, features: Tensor | None = None) -> Float[Tensor, "*replicas n"]:
        """x."""
        return self.x


class SpikedTensor:
    r"""Estimate v from :math:`Y = \lambda v^{\otimes k} + W`, W of i.i.d. N(0, 1), by SGD on

    .. math:: L(x; Y) = \|Y - x^{\otimes k}\|^2, \qquad x \in \mathbb{R}^n.

    Summary statistics: ``m`` = <x, v> and ``r2`` = \|x\|^2 - m^2.

    Source: section 3 of arXiv 2206.04030.

    Two samplers, the same law of every SGD step:

    * ``dense`` draws all n^k entries of Y. The ground truth; n^k numbers a step.
    * ``implicit`` draws n normals a step and makes the gradient from them: given x,
      grad L is Gaussian about grad Phi with covariance
      :math:`4 (k R^{2k-2} I + k (k-1) R^{2k-4} x x^T)`, R = \|x\|.

    Args:
        dim: n.
        order: k >= 2; 2 is matrix PCA.
        snr: lambda > 0.
        sampler: ``"dense"`` or ``"implicit"``.
        direction: v: ``"axis"`` (the first), ``"random"`` (from ``generator``) or a unit vector.
        ridge: alpha, the weight decay of the optimizer.
        generator: of a random direction.
        device, dtype: of the data, until a model has been made.

    Raises:
        ValueError: if order < 2, snr <= 0, a number is out of its range, or one dense tensor would
            not fit in memory.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=50, order=3, snr=4.0, sampler="dense")
        >>> model = problem.model()
        >>> features, Y = problem.sample(1)
        >>> Y.shape, problem.loss(model(features), Y).shape
        (torch.Size([1, 50, 50, 50]), torch.Size([]))
        >>> u = torch.tensor([0.6, 0.64])
        >>> problem.dynamics(step_size=1.0).solve(u, [0.0, 1.0])
        Trajectory(2 statistics, 2 times, t = 0 ... 1, runs=1)
        >>> problem.reduced_chain(step_size=0.1).run(u, 10)  # SGD itself, without vectors
        Trajectory(2 statistics, 11 times, t = 0 ... 0.02, runs=1)
        >>> problem.statistics(problem.lift(u)), problem.accuracy(u)
        (tensor([0.6000, 0.6400]), tensor(0.6000))
        >>> problem.describe()
        {'order': 3, 'dim': 50, 'snr': 4.0, 'ridge': 0.0}
    """

    def __init__(
        self,
        dim: int,
        order: int = 2,
        *,
        snr: float,
        sampler: Literal["dense", "implicit"] = "implicit",
        direction: Literal["axis", "random"] | Float[Tensor, " n"] = "axis",
        ridge: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dim = _checks.positive_int("dim", dim)
        self.order = _checks.positive_int("order", order)
        if order < 2:
            raise ValueError(f"expected order >= 2 (2 is matrix PCA), got {order}")
        if dim < 2:
            raise ValueError(f"expected dim >= 2, got {dim}: r2 needs a direction besides v")
        self.snr = _checks.positive("snr", snr)
        self.ridge = _checks.non_negative("ridge", ridge, "it is alpha, the weight decay")
        if sampler not in ("dense", "implicit"):
            raise ValueError(f"expected sampler 'dense' or 'implicit', got {sampler!r}")
        self.sampler = sampler
        self.device = _checks.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        self.direction = _direction(direction, dim, generator)
        self.statistics = SummaryStatistics(
            {"m": _Overlap(self.direction), "r2": _SquaredRadius(self.direction)},
            parameter_dims={"x": 1},
        )
        self._place = Place(self.device, self.dtype)
        # of every place there is a model in: v, lambda v^k, and how many dense tensors fit
        self._directions: dict[DeviceAndType, Tensor] = {}
        self._spikes: dict[DeviceAndType, Tensor] = {}
        self._fitting: dict[DeviceAndType, int] = {}
        if sampler == "dense":
            self._check_memory(1, self.device, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # made anew from its arguments: what is kept for devices stays here
        options = {
            "snr": self.snr, "sampler": self.sampler, "direction": self.direction,
            "ridge": self.ridge, "device": self.device, "dtype": self.dtype,
        }  # fmt: skip
        return partial(type(self), **options), (self.dim, self.order)

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        return list(NAMES)

    def __repr__(self) -> str:
        ridge = f", ridge={self.ridge:g}" * bool(self.ridge)
        return (
            f"SpikedTensor(order={self.order}, dim={self.dim}, snr={self.snr:g}, "
            f"sampler={self.sampler!r}{ridge})"
        )

    def model(
        self,
        *,
        at: tuple[float, float] | None = None,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SpikeEstimate:
        """x at a random start N(0, I/n), or at given values of (m, r2).

        Args:
            at: (m, r2) of the start; the direction orthogonal to v is uniform.
            replicas: leading dimensions of independent estimates in one module.
            generator: of the start; on the device of the model.
            device, dtype: by default the problem's.
        """
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        x = torch.randn(*replicas, self.dim, generator=generator, device=device, dtype=dtype)
        x = x / self.dim**0.5
        if at is not None:
            x = self._placed(x, *at)
        # here, not in the loss: a CUDA graph cannot hold a copy from the host, and what torch.func
        # or torch.compile makes inside must not be kept
        self._directions[x.device, x.dtype] = self.direction.to(x)
        model = SpikeEstimate(x)
        self._place.follow(model.x)
        return model

    def lift(
        self, u: Float[Tensor, " 2"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """x with statistics u = (m, r2), in a uniform direction orthogonal to v.

        Args:
            u: shape ``(2,)``.
            generator: of the direction, on the CPU; None: the same one in every call.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        x = torch.randn(self.dim, generator=generator, dtype=torch.float64, device="cpu")
        m, r2 = u.tolist()
        return {"x": self._placed(x, m, max(r2, 0.0)).to(*self._place.now)}

    def sample(
        self,
        batch: int,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch 0"], Float[Tensor, "*replicas batch ..."]]:
        """Fresh data, on the device and in the dtype of the last model that there is.

        Args:
            batch: samples for each estimate.
            replicas: leading dimensions of independent estimates.
            generator: of the data; on the device of the model.

        Returns:
            Features, of which there are none, and what x is compared with: the tensors Y,
            ``(*replicas, batch, n, ..., n)`` (dense), or n normals each, ``(*replicas, batch, n)``
            (implicit).

        Raises:
            ValueError: if the dense tensors would not fit in memory.
        """
        _checks.positive_int("batch", batch)
        device, dtype = self._place.now
        _checks.generator(generator, device)
        shape = (*replicas, batch)
        features = torch.empty(*shape, 0, device=device, dtype=dtype)
        normal: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        if self.sampler == "implicit":
            return features, torch.randn(*shape, self.dim, **normal)
        self._check_memory(math.prod(shape), device, dtype)
        return features, self._add_spike(torch.randn(*shape, *self._tensor_shape, **normal))

    def loss(
        self, output: Float[Tensor, "*replicas n"], target: Float[Tensor, "*replicas batch ..."]
    ) -> Float[Tensor, ""]:
        """||Y - x^k||^2: mean over the batch, *summed* over replicas.

        With the implicit sampler value and gradient have the law of the dense ones jointly, less
        the ||Y||^2 that x has no influence on.

        Args:
            output: x, shape ``(*replicas, n)``.
            target: the second part of what `sample` returned.

        Raises:
            ValueError: if the shapes do not fit.
        """
        batch_dims = output.ndim  # replicas and batch, in front of the tensor
        entries = (self.dim,) if self.sampler == "implicit" else self._tensor_shape
        expected = (*output.shape[:-1], "batch", *entries)
        if (
            output.shape[-1:] != (self.dim,)
            or target.shape[: batch_dims - 1] != output.shape[:-1]
            or target.shape[batch_dims:] != entries
        ):
            raise ValueError(
                f"expected the output x, shape (*replicas, {self.dim}), and data of shape "
                f"{expected} from this problem's sample(), got {tuple(output.shape)} and "
                f"{tuple(target.shape)}"
            )
        if self.sampler == "implicit":
            return self._implicit_loss(output, target) / target.shape[-2]
        fit = target.flatten(batch_dims)
        for _ in range(self.order):  # <Y, x^k>, one index after the other
            fit = (fit.unflatten(-1, (-1, self.dim)) @ output[..., None, :, None]).squeeze(-1)
        size = output.square().sum(-1) ** self.order
        data = target.square().sum()
        return (data - 2 * fit.sum()) / target.shape[batch_dims - 1] + size.sum()

    def dynamics(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step_size: float | None = None,
        momentum: float = 0.0,
        batch_size: int = 1,
        schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> SpikedDynamics:
        """The effective dynamics that go with an SGD optimizer, or with c_delta = lr * n.

        Args:
            optimizer: a `torch.optim.SGD` or `NormalizedSGD` with one parameter group, whose
                options are read.
            step_size: c_delta, instead of an optimizer; 0 is gradient flow.
            momentum: with ``step_size``.
            batch_size: fresh samples averaged in one step.
            schedule: c_delta(t), a function of limit time that replaces c_delta, or the
                optimizer's LR scheduler, stepped after every step; see
                `torchlimits.optim.schedule`.
            dim: n, if not the problem's; 10^9 takes no more memory.

        Raises:
            ValueError: if not exactly one of optimizer and step_size is given, or their values
                are out of range.
            TypeError: if the optimizer is not SGD.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        settings = self._settings(optimizer, step_size, momentum, batch_size, dim)
        return SpikedDynamics(
            order=self.order,
            snr=self.snr,
            dim=dim,
            settings=settings,
            schedule=Schedule.of(schedule, optimizer, dim),
        )

    def reduced_chain(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step_size: float | None = None,
        momentum: float = 0.0,
        batch_size: int = 1,
        dim: int | None = None,
    ) -> SpikedChain:
        """The exact law of SGD's statistics at dimension n, drawn without n-vectors.

        See `ReducedChain.run`; errors are those of `dynamics`.

        Args:
            optimizer, step_size, momentum, batch_size, dim: as in `dynamics`; Nesterov's momentum
                and dampening are read from the optimizer.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        if dim < 2:
            raise ValueError(f"expected dim >= 2, got {dim}: r2 needs a direction besides v")
        settings = self._settings(optimizer, step_size, momentum, batch_size, dim)
        settings.check_plain("the reduced chain")
        limit = SGDLimit.at_finite_n(settings, optimizer)
        return SpikedChain(order=self.order, snr=self.snr, dim=dim, limit=limit)

    def random_start(self) -> tuple[Float[Tensor, " 2"], Float[Tensor, "2 2"]]:
        """Mean and covariance of (m, r2) at the random start x ~ N(0, I/n) of `model`.

        For ``dynamics.solve(mean, times, band=True, initial_covariance=covariance)``.

        Example:
            >>> import torchlimits as tl
            >>> tl.SpikedTensor(dim=100, order=2, snr=0.5).random_start()[0]
            tensor([0.0000, 0.9900], dtype=torch.float64)
        """
        share = (self.dim - 1) / self.dim
        double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        mean = torch.tensor([0.0, share], **double)
        return mean, torch.diag(torch.tensor([1.0, 2 * share], **double) / self.dim)

    def diffusive(self, at: Float[Tensor, " 2"], step_size: float = 1.0) -> LinearDiffusion:
        """The diffusive limit of sqrt(n) (u - u*) around a fixed point, linear in u~.

        See `EffectiveDynamics.diffusive`; `equator` has the non-linear one around m = 0.

        Args:
            at: u*, shape ``(2,)``.
            step_size: c_delta.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.SpikedTensor(dim=100, order=2, snr=0.5)
            >>> limit = problem.diffusive(torch.tensor([0.0, 1.0], dtype=torch.float64))
            >>> limit.stationary_covariance()[0, 0]  # of sqrt(n) m: 1/(1 - snr)
            tensor(2., dtype=torch.float64)
        """
        return self.dynamics(step_size=step_size).diffusive(at)

    def equator(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        step_size: float | None = None,
        momentum: float = 0.0,
        batch_size: int = 1,
        scaled_snr: float | None = None,
    ) -> EquatorDynamics:
        """The diffusive limit of (sqrt(n) m, r2) at the equator, where random starts are.

        Args:
            optimizer, step_size, momentum, batch_size: as in `dynamics`.
            scaled_snr: Lambda; by default snr * n^(-(k-2)/2), that of this problem.

        Raises:
            ValueError: if a number is out of its range; and as `dynamics`.

        Example:
            >>> import torch, torchlimits as tl
            >>> limit = tl.SpikedTensor(dim=100, order=2, snr=0.5).equator(step_size=1.0)
            >>> limit.drift(torch.tensor([2.0, 2.0]))  # of (sqrt(n) m, r2): to (0, 1)
            tensor([-12., -16.])
        """
        settings = self._settings(optimizer, step_size, momentum, batch_size, self.dim)
        own = self.snr * float(self.dim) ** (-(self.order - 2) / 2)
        strength = own if scaled_snr is None else _checks.non_negative("scaled_snr", scaled_snr)
        return EquatorDynamics(
            order=self.order, scaled_snr=strength, dim=self.dim, settings=settings
        )

    def accuracy(self, u: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        r"""How well x points along the spike: :math:`|m| / \sqrt{m^2 + r_2}`, 0 at x = 0.

        Args:
            u: (m, r2), shape ``(..., 2)``.
        """
        m, r2 = u.unbind(-1)
        radius = (m**2 + r2).sqrt()
        return m.abs() / radius.where(radius > 0, 1.0)

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, JSON-able."""
        return {"order": self.order, "dim": self.dim, "snr": self.snr, "ridge": self.ridge}

    def _settings(
        self,
        optimizer: object,
        step_size: float | None,
        momentum: float,
        batch_size: int,
        dim: int,
    ) -> SGDSettings:
        if isinstance(optimizer, torch.optim.SGD) and len(optimizer.param_groups) > 1:
            raise ValueError(
                "expected one parameter group, got "
                f"{len(optimizer.param_groups)}: a spiked tensor has one parameter, x"
            )
        return SGDSettings.chosen(
            optimizer,
            dim=dim,
            ridge=self.ridge,
            step_size=step_size,
            momentum=momentum,
            batch_size=batch_size,
        )

    # --- the two losses ---------------------------------------------------------------------------

    def _population_loss(self, x: Tensor) -> Tensor:
        """Phi less its constant: R^{2k} - 2 lambda m^k."""
        m = x @ self._direction_beside(x)
        return x.square().sum(-1) ** self.order - 2 * self.snr * m**self.order

    def _implicit_loss(self, x: Tensor, normal: Tensor) -> Tensor:
        """Summed over the batch: Phi(x) + <x, G>, its value corrected to Phi(x) + H(x)."""
        with torch.no_grad():
            noise = self._gradient_noise(x[..., None, :], normal)
            # H is homogeneous of degree k: <x, grad H> = k H, and the loss has H, not k H
            excess = (1 - 1 / self.order) * (noise @ x[..., None]).sum()
        linear = (noise * x[..., None, :]).sum()
        return normal.shape[-2] * self._population_loss(x).sum() + linear - excess

    def _gradient_noise(self, x: Tensor, normal: Tensor) -> Tensor:
        """grad H at x: 2 k R^{k-1} times a normal along x, 2 sqrt(k) R^{k-1} across."""
        k = self.order
        radius = x.norm(dim=-1, keepdim=True)
        unit = x / radius.clamp_min(torch.finfo(x.dtype).tiny)
        along = (normal * unit).sum(-1, keepdim=True) * unit
        return 2 * k**0.5 * radius ** (k - 1) * (normal + (k**0.5 - 1) * along)

    # --- places and memory ------------------------------------------------------------------------

    @property
    def _tensor_shape(self) -> tuple[int, ...]:
        return (self.dim,) * self.order

    def _direction_beside(self, x: Tensor) -> Float[Tensor, " n"]:
        """v on the device and in the dtype of x, without a copy where there was a model."""
        v = self._directions.get((x.device, x.dtype))
        return self.direction.to(x) if v is None else v

    def _placed(self, x: Tensor, m: float, r2: float) -> Tensor:
        _checks.non_negative("r2", r2, "at is (m, r2), and r2 a squared length")
        if not isinstance(m, (int, float)) or not math.isfinite(m):
            raise ValueError(f"expected at=(m, r2) with a finite m, got m={m!r}")
        v = self.direction.to(x)
        across = x - (x @ v)[..., None] * v
        return m * v + r2**0.5 * across / across.norm(dim=-1, keepdim=True)

    def _add_spike(self, noise: Tensor) -> Tensor:
        """W + lambda v^k, in place."""
        if float(self.direction[0]) == 1.0:  # an axis: one entry
            noise[(..., *(0,) * self.order)] += self.snr
            return noise
        key = (noise.device, noise.dtype)
        if key not in self._spikes:
            v = self.direction.to(noise)
            spike = self.snr * v
            for _ in range(self.order - 1):
                spike = spike[..., None] * v
            self._spikes[key] = spike
        return noise.add_(self._spikes[key])

    def _check_memory(self, tensors: int, device: torch.device, dtype: torch.dtype) -> None:
        """ValueError if so many dense tensors, and the spike, do not fit; asked once a size."""
        if tensors <= self._fitting.get((device, dtype), 0):
            return
        entries = self.dim**self.order * (tensors + (float(self.direction[0]) != 1.0))
        needed, free = entries * dtype.itemsize, _free_memory(device)
        if needed > 0.9 * free:
            raise ValueError(
                f"expected dense tensors that fit in the {free / 2**30:.1f} GiB free on {device}, "
                f"got dim={self.dim}, order={self.order}: {tensors} of {self.dim}^{self.order} "
                f"entries need {needed / 2**30:.1f} GiB. Use sampler='implicit', which draws "
                f"{self.dim} normals a step and has the same law"
            )
        self._fitting[device, dtype] = tensors


@dataclass(frozen=True, eq=False)
class _AboutSpike(Quadratic):
    """A statistic of x and a unit vector v."""

    v: Float[Tensor, " n"]
    parameter = "x"

    def near(self, parameters: Parameters) -> _AboutSpike:
        """With v beside x."""
        return replace(self, v=self.v.to(parameters["x"]))


class _Overlap(_AboutSpike):
    """m = <x, v>."""

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch"]:
        x = parameters["x"]
        return x @ self.v.to(x)

    def along(self, parameters: Parameters, gradient: Gradient) -> Float[Tensor, " B"]:
        g = dense(gradient)
        return g @ self.v.to(g)


class _SquaredRadius(_AboutSpike):
    """r2 = |x_perp|^2, x_perp = x - m v: |x|^2 - m^2 would lose all digits where it is small."""

    degree = 2

    def __call__(self, parameters: Parameters) -> Float[Tensor, "*batch"]:
        return self._across(parameters["x"]).square().sum(-1)

    def along(self, parameters: Parameters, gradient: Gradient) -> Float[Tensor, " B"]:
        return 2 * self._across(dense(gradient)) @ self._across(parameters["x"])

    def changes(
        self, parameters: Parameters, gradient: Gradient, centre: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        g = dense(gradient)
        kick, bend = (self._across(h).square().sum(-1) for h in (g, g - centre))
        return self.along(parameters, g), bend, kick

    def _across(self, x: Tensor) -> Float[Tensor, "*batch n"]:
        v = self.v.to(x)
        return x - (x @ v)[..., None] * v


def _direction(
    direction: str | Tensor, dim: int, generator: torch.Generator | None
) -> Float[Tensor, " n"]:
    if isinstance(direction, str):
        if direction == "axis":
            return torch.eye(1, dim, dtype=torch.float64, device="cpu")[0]
        if direction == "random":
            v = torch.randn(dim, generator=generator, dtype=torch.float64, device="cpu")
            return v / v.norm()
        raise ValueError(f"expected direction 'axis', 'random' or a vector, got {direction!r}")
    v = _checks.float64("direction", direction)
    if v.shape != (dim,) or not abs(float(v.norm()) - 1) < 1e-6:
        raise ValueError(
            f"expected direction as a unit vector of shape ({dim},), got shape {tuple(v.shape)} "
            f"and length {float(v.norm()):.6g}: divide it by its norm"
        )
    return v


def _free_memory(device: torch.device) -> int:
    """Bytes that an allocation may take; all of the machine's where the system does not say."""
    if device.type == "cuda":
        # what torch holds and does not use is free to us as well
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""`SpikedTensor`: recover a direction from noisy tensors by online SGD (order 2: matrix PCA)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.optim.adagrad_norm_limit import AdaGradNormLimit, is_adagrad_norm
from torchlimits.optim.listed import Optimizers
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.problems.problem import Problem
from torchlimits.problems.spiked.chain import SpikedChain
from torchlimits.problems.spiked.dynamics import SpikedDynamics
from torchlimits.problems.spiked.equator import EquatorDynamics
from torchlimits.problems.spiked.estimate import SpikeEstimate, spiked_statistics
from torchlimits.problems.spiked.field import NAMES
from torchlimits.problems.spiked.samplers import check_shapes, sampler_of
from torchlimits.problems.spiked.spike import Spike


class SpikedTensor(Problem):
    r"""Estimate v from :math:`Y = \lambda v^{\otimes k} + W`, W i.i.d. N(0, 1), by SGD on

    .. math:: L(x; Y) = \|Y - x^{\otimes k}\|^2, \qquad x \in \mathbb{R}^n.

    Summary statistics: ``m`` = <x, v> and ``r2`` = \|x\|^2 - m^2.

    Source: section 3 of arXiv 2206.04030.

    There are two samplers, with the same law of every SGD step:

    * ``dense`` draws all n^k entries of Y: the ground truth, at n^k numbers a step.
    * ``implicit`` draws n normals a step and makes the gradient from them: given x,
      grad L is Gaussian about grad Phi with covariance
      :math:`4 (k R^{2k-2} I + k (k-1) R^{2k-4} x x^T)`, R = \|x\|.

    Args:
        dim: n.
        order: k >= 2; 2 is matrix PCA.
        snr: lambda > 0; a tensor that requires a gradient gives predictions one.
        sampler: ``"dense"`` or ``"implicit"``.
        direction: v: ``"axis"`` (the first), ``"random"`` (from ``generator``) or a unit vector.
        ridge: alpha, the weight decay of the optimizer; or a tensor, as snr.
        generator: draws a random direction.
        device, dtype: of data and models where none are asked for.

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
        >>> problem.random_start()[0]
        tensor([0.0000, 0.9800], dtype=torch.float64)
        >>> problem.describe()
        {'order': 3, 'dim': 50, 'snr': 4.0, 'ridge': 0.0}
    """

    def __init__(
        self, dim: int, order: int = 2, *, snr: float | Tensor,
        sampler: Literal["dense", "implicit"] = "implicit",
        direction: Literal["axis", "random"] | Float[Tensor, " n"] = "axis",
        ridge: float | Tensor = 0.0,
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.spike = Spike(dim, order, snr, direction, generator)
        self.order, self.snr, self.direction = order, self.spike.snr, self.spike.direction
        self._snr = _checks.graph_or_positive("snr", snr)
        self._ridge = _checks.graph_or_non_negative("ridge", ridge, "it is alpha, the weight decay")
        self.ridge: float = _checks.plain(self._ridge)
        self.device = _checks.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        self.statistics = spiked_statistics(self.direction)
        self.sampler = sampler
        self._data = sampler_of(sampler, self.spike, self.device, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "snr": self.snr, "sampler": self.sampler, "direction": self.direction,
            "ridge": self.ridge, "device": self.device, "dtype": self.dtype,
        }  # fmt: skip
        return partial(type(self), **options), (self.dim, self.order)

    @property
    def dim(self) -> int:
        """n."""
        return self.spike.dim

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
        self, *, at: tuple[float, float] | None = None, replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> SpikeEstimate:  # fmt: skip
        """x at a random start N(0, I/n), or at given values of (m, r2).

        Args:
            at: (m, r2) of the start; the direction orthogonal to v is uniform.
            replicas, generator, device, dtype: as in `Trainable.model`.
        """
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        x = torch.randn(*replicas, self.dim, generator=generator, device=device, dtype=dtype)
        x = x / self.dim**0.5
        if at is not None:
            x = self.spike.placed(x, *at)
        self.spike.keep_beside(x)
        return SpikeEstimate(x)

    def lift(
        self, u: Float[Tensor, " 2"], generator: torch.Generator | None = None, *,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """x with statistics u = (m, r2), in a uniform direction orthogonal to v.

        Args:
            u: shape ``(2,)``.
            generator: draws the direction, on the CPU; None gives the same one in every call.
            device, dtype: those of x, by default the problem's.
        """
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        x = torch.randn(self.dim, generator=generator, dtype=torch.float64, device="cpu")
        x = self.spike.placed(x, float(u[0]), max(float(u[1]), 0.0))
        return {"x": x.to(device or self.device, dtype or self.dtype)}

    def sample(
        self,
        batch: int,
        *,
        replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch 0"], Float[Tensor, "*replicas batch ..."]]:
        """Fresh data, if dense tensors fit in memory (ValueError); see `Trainable.sample`.

        Returns:
            Features, of which there are none, and what x is compared with: the tensors Y,
            ``(*replicas, batch, n, ..., n)`` (dense), or n normals each, ``(*replicas, batch, n)``
            (implicit).
        """
        _checks.positive_int("batch", batch)
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        shape = (*replicas, batch)
        target = self._data.sample(shape, generator=generator, device=device, dtype=dtype)
        return target.new_empty(*shape, 0), target

    def loss(
        self, output: Float[Tensor, "*replicas n"], target: Float[Tensor, "*replicas batch ..."]
    ) -> Float[Tensor, ""]:
        """||Y - x^k||^2; with ``implicit``, in law and less ||Y||^2; see `Trainable.loss`.

        The ``output`` is x, the ``target`` the second part of what `sample` returned.
        """
        check_shapes(output, target, self.dim, self._data.entries)
        return self._data.loss(output, target)

    def dynamics(
        self, optimizer: Optimizers | None = None, *,
        step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> SpikedDynamics:  # fmt: skip
        """The effective dynamics that go with an SGD optimizer, or with c_delta = lr * n.

        Args:
            optimizer: a `torch.optim.SGD`, `NormalizedSGD` or `AdaGradNorm` with one parameter
                group, whose options are read.
            step_size, momentum, batch_size, schedule, dim: as in `Problem.dynamics`.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        if isinstance(optimizer, torch.optim.SGD) and len(optimizer.param_groups) > 1:
            raise ValueError(
                "expected one parameter group, got "
                f"{len(optimizer.param_groups)}: a spiked tensor has one parameter, x"
            )
        plan = Schedule.of(schedule, optimizer, dim)
        place: dict[str, Any] = {"order": self.order, "snr": self._snr, "dim": dim}
        if step_size is None and is_adagrad_norm(optimizer):
            limit = AdaGradNormLimit.of(optimizer, dim, batch_size)
            limit.check_beside(ridge=self._ridge, momentum=momentum)
            dynamics = SpikedDynamics(
                **place, settings=limit.plain.settings, schedule=plan, limit=limit
            )
            dynamics.statistics = self.statistics | limit.statistics("x", dim)
            return dynamics
        settings = SGDSettings.chosen(optimizer, dim, self._ridge, step_size, momentum, batch_size)
        dynamics = SpikedDynamics(**place, settings=settings, schedule=plan)
        dynamics.statistics = self.statistics
        return dynamics

    def reduced_chain(
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> SpikedChain:  # fmt: skip
        """The exact law of SGD's statistics at dimension n; see `Problem.reduced_chain`."""
        return self.dynamics(
            optimizer, step_size=step_size, momentum=momentum, batch_size=batch_size,
            schedule=schedule, dim=dim,
        ).reduced_chain()  # fmt: skip

    def random_start(self) -> tuple[Float[Tensor, " 2"], Float[Tensor, "2 2"]]:
        """Mean and covariance of (m, r2) at the random start x ~ N(0, I/n) of `model`.

        They are made for ``dynamics.solve(mean, times, band=True, initial_covariance=covariance)``.
        """
        share = (self.dim - 1) / self.dim
        double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        mean = torch.tensor([0.0, share], **double)
        return mean, torch.diag(torch.tensor([1.0, 2 * share], **double) / self.dim)

    def diffusive(self, at: Float[Tensor, " 2"], step_size: float = 1.0) -> LinearDiffusion:
        """The diffusive limit of sqrt(n) (u - u*) around a fixed point; `equator` is not linear.

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
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, scaled_snr: float | None = None,
    ) -> EquatorDynamics:  # fmt: skip
        """The diffusive limit of (sqrt(n) m, r2) at the equator, where random starts are.

        Args:
            optimizer, step_size, momentum, batch_size: as in `dynamics`.
            scaled_snr: Lambda; by default snr * n^(-(k-2)/2), the value of this problem.

        Raises:
            ValueError: if a number is out of its range, and as `dynamics`.

        Example:
            >>> import torch, torchlimits as tl
            >>> limit = tl.SpikedTensor(dim=100, order=2, snr=0.5).equator(step_size=1.0)
            >>> limit.drift(torch.tensor([2.0, 2.0]))  # of (sqrt(n) m, r2): to (0, 1)
            tensor([-12., -16.])
        """
        dynamics = self.dynamics(
            optimizer, step_size=step_size, momentum=momentum, batch_size=batch_size
        )
        dynamics.limit.check_at_rest("the diffusive limit at the equator")
        own = self.snr * float(self.dim) ** (-(self.order - 2) / 2)
        strength = own if scaled_snr is None else _checks.non_negative("scaled_snr", scaled_snr)
        return EquatorDynamics(
            order=self.order, scaled_snr=strength, dim=self.dim, settings=dynamics.settings
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
        """The problem's parameters, which JSON can hold."""
        return {"order": self.order, "dim": self.dim, "snr": self.snr, "ridge": self.ridge}

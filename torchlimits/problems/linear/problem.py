"""`LinearModel`: one-pass least squares with inputs of any covariance."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from torchlimits import _checks
from torchlimits.optim.listed import Optimizers, groups_of
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.problems.data.covariance import Covariance
from torchlimits.problems.linear.chain import LeastSquaresChain
from torchlimits.problems.linear.dynamics import LeastSquaresDynamics
from torchlimits.problems.linear.errors import errors as errors_of
from torchlimits.problems.linear.field import LeastSquaresField
from torchlimits.problems.linear.from_data import dim_of, moments_of, noise_of, target_from
from torchlimits.problems.linear.gains import Gains
from torchlimits.problems.linear.levels import Levels
from torchlimits.problems.linear.module import LinearPredictor
from torchlimits.problems.linear.stability import best_step_size, limit_of, plateau
from torchlimits.problems.linear.target import target_of
from torchlimits.problems.problem import Problem


class LinearModel(Problem):
    r"""Least squares by SGD, each sample seen once: w in R^N, inputs of any covariance,

    .. math:: L(w; x, y) = \tfrac12 (\langle w, x \rangle - y)^2, \qquad
        x = \Lambda^{1/2} z, \quad y = \langle w^*, x \rangle + s \xi,

    with z and xi standard normal. Statistics: ``D[l]``, the squared error
    :math:`D_l = |\Pi_l (w - w^*)|^2` in each level :math:`\lambda_l` of Lambda (each distinct
    eigenvalue, in order of first appearance), which has the fraction f_l of the N dimensions. With
    learning rate c/N, momentum beta, q = 1/(1 - beta), batches of B and t = (steps) c/N,

    .. math:: \dot D_l = -2 q \lambda_l D_l + q^2 \frac{c}{B} f_l \lambda_l \, 2\,risk, \qquad
        2\,risk = s^2 + \sum_l \lambda_l D_l.

    N levels of one dimension are allowed: the equation is solved exactly, a full power law too.

    Source: homogenized SGD (Paquette, Paquette, Adlam and Pennington, arXiv 2205.07069).

    Args:
        dim: N; None where the covariance is a `torchlimits.Covariance`, which has one.
        covariance: Lambda: a list of (eigenvalue, fraction), a spectrum ``(N,)``, a matrix
            ``(N, N)`` or a `torchlimits.Covariance`; None for the identity.
        noise: s >= 0, the standard deviation of the labels' noise. It is required, unless the
            covariance is that of data with labels: then None is for what the best linear
            prediction leaves.
        errors: the D_l of w = 0, shape ``(L,)``; w* then has these squares in the levels.
        target: w*, shape ``(N,)``. Without either, it is the best linear
            prediction of data with labels; elsewhere w* has length 1 and the squares f_l.
        fourth_moments: False for the corrector of Gaussian inputs; True for moments measured on the
            data of ``covariance=tl.Covariance.of_data(x, y)``; or measured ones, a pair of
            E[x_i^2 x_m^2], shape ``(N, N)``, and E[eps^2 x_i^2], shape ``(N,)``, with coordinates
            x_i in the eigenbasis and eps what w* leaves of y. They are for predictions beside
            measured data; `sample` stays Gaussian, as are the fluctuations of a band.
        device, dtype: of data and models where none are asked for.

    Raises:
        ValueError: if a number is out of its range, shapes do not fit, or both errors and target
            are given.
        TypeError: if an argument is of another kind.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.LinearModel(dim=400, covariance=[(4.0, 0.25), (1.0, 0.75)], noise=0.5)
        >>> problem.names, problem.initial.tolist(), problem.critical_step_size
        (['D[0]', 'D[1]'], [0.25, 0.75], 1.1428571428571428)
        >>> measured = tl.train(problem, step_size=0.5, time=2.0, runs=3, progress=False)
        >>> predicted = problem.dynamics(step_size=0.5).solve(problem.initial, [0.0, 2.0])
        >>> problem.risk(predicted.values), problem.excess_risk(predicted.values[0])
        (tensor([1.0000, 0.2500], dtype=torch.float64), tensor(0.8750, dtype=torch.float64))
        >>> problem.plateau(step_size=0.5), problem.plateau(step_size=2.0)
        (0.2222222222222222, inf)
        >>> problem.stability_limit(batch_size=4, momentum=0.5)
        2.2857142857142856
        >>> round(problem.optimal_step_size(steps=2000), 3)
        0.308
        >>> x, y = problem.sample(7)
        >>> problem.loss(problem.model()(x), y).shape, problem.dim, problem.describe()["noise"]
        (torch.Size([]), 400, 0.5)
        >>> problem.reduced_chain(step_size=0.5).run(problem.initial, 100, runs=5)
        Trajectory(2 statistics, 101 times, t = 0 ... 0.125, runs=5)
    """

    def __init__(
        self, dim: int | None = None, *, covariance: object = None, noise: float | None = None,
        errors: object = None, target: object = None,
        fourth_moments: bool | tuple[Tensor, Tensor | None] = False,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        dim = _checks.positive_int("dim", dim_of(dim, covariance))
        moments = moments_of(fourth_moments, covariance, noise, errors, target)
        spectrum = [(1.0, 1.0)] if covariance is None else covariance
        self.covariance = Covariance.of(spectrum, dim)
        self.noise = _checks.non_negative(
            "noise", noise_of(noise, covariance), "it is a standard deviation"
        )
        self.device = _checks.device(device or "cpu")
        self.dtype = dtype or torch.get_default_dtype()
        self.levels = Levels.of(self.covariance)
        found = target_of(
            self.covariance, self.levels, errors, target_from(covariance, errors, target)
        )
        self.target, self._squares = found
        self.gains = _gains(moments, self.levels, self.noise)
        self.statistics = errors_of(self.levels, self.target, self.covariance.basis)
        # roots of eigenvalues, eigenvectors and target wherever data are drawn
        self._kept: dict[Any, tuple[Tensor, Tensor | None, Tensor]] = {}

    @property
    def dim(self) -> int:
        """N."""
        return self.covariance.dim

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        return self._field(self.dim).names

    @property
    def initial(self) -> Float[Tensor, " L"]:
        """The D_l of w = 0, at which models start, in float64."""
        return self._squares.clone()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(dim={self.dim}, {len(self.names)} levels from "
            f"{float(self.levels.eigenvalues.min()):.3g} to "
            f"{float(self.levels.eigenvalues.max()):.3g}, noise={self.noise:g})"
        )

    # --- training ---------------------------------------------------------------------------------

    def model(
        self, *, replicas: tuple[int, ...] = (), generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> LinearPredictor:  # fmt: skip
        """x -> <w, x> with w = 0, whose parameter is ``first.weight``; see `Trainable.model`.

        Args:
            replicas, device, dtype: as in `Trainable.model`.
            generator: not used, as the start is not random.
        """
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        self._beside(device, dtype)
        return LinearPredictor(self.dim, replicas=replicas, device=device, dtype=dtype)

    def sample(
        self, batch: int, *, replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, "*replicas batch N"], Float[Tensor, "*replicas batch"]]:  # fmt: skip
        """Fresh inputs and labels; see `Trainable.sample`."""
        _checks.positive_int("batch", batch)
        device, dtype = _checks.device(device or self.device), dtype or self.dtype
        _checks.generator(generator, device)
        roots, basis, target = self._beside(device, dtype)
        normal: dict[str, Any] = {"generator": generator, "device": device, "dtype": dtype}
        x = torch.randn(*replicas, batch, self.dim, **normal) * roots
        if basis is not None:
            x = x @ basis
        return x, x @ target + self.noise * torch.randn(*replicas, batch, **normal)

    def loss(
        self, output: Float[Tensor, "*replicas batch"], target: Float[Tensor, "*replicas batch"]
    ) -> Float[Tensor, ""]:
        """Half the mean square over the batch, *summed* over replicas; see `Trainable.loss`.

        Args:
            output: what the model returned.
            target: y.

        Raises:
            ValueError: if the shapes differ.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"expected output and target of one shape, got {tuple(output.shape)} and "
                f"{tuple(target.shape)}: squeeze the output of an nn.Linear"
            )
        return (output - target).square().sum() / (2 * target.shape[-1])

    def _beside(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Roots of eigenvalues, eigenvectors and target on a device, moved there once."""
        if (device, dtype) not in self._kept:
            basis = self.covariance.basis
            roots = self.covariance.eigenvalues[0].sqrt()
            moved = [x.to(device, dtype) for x in (roots, self.target)]
            kept = None if basis is None else basis.to(device, dtype)
            self._kept[device, dtype] = (moved[0], kept, moved[1])
        return self._kept[device, dtype]

    # --- theory -----------------------------------------------------------------------------------

    def dynamics(
        self, optimizer: Optimizers | None = None, *,
        step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> LeastSquaresDynamics:  # fmt: skip
        """The effective dynamics that go with an SGD optimizer, or with c_delta = lr * N.

        Warns if the risk diverges, or a learning rate is not small beside 1/lambda_max.

        Args:
            optimizer: a `torch.optim.SGD`, whose options are read.
            step_size, momentum, batch_size, schedule, dim: as in `Problem.dynamics`.

        Raises:
            ValueError: if there is a weight decay (it pulls w to 0, and the errors alone do not say
                what that makes of them), lr lambda_max is above 1/2, and as `Problem.dynamics`.
            TypeError: if the optimizer is not SGD.
        """
        return LeastSquaresDynamics(
            *self._read(optimizer, step_size, momentum, batch_size, schedule, dim)
        )

    def reduced_chain(
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> LeastSquaresChain:  # fmt: skip
        """The exact law of SGD's statistics at dimension n; see `Problem.reduced_chain`.

        It holds for large learning rates too, of which `dynamics` warns.
        """
        field, settings, plan = self._read(
            optimizer, step_size, momentum, batch_size, schedule, dim
        )
        return LeastSquaresChain(field, SGDLimit.of(settings).at_finite_n(), plan)

    def risk(self, u: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch"]:
        r"""Half the mean squared error on fresh data, :math:`(s^2 + \sum_l \lambda_l D_l)/2`.

        Args:
            u: the D_l, shape ``(..., L)``.
        """
        return self._field(self.dim).risk(u)

    def excess_risk(self, u: Float[Tensor, "*batch L"]) -> Float[Tensor, "*batch"]:
        """The risk above s^2/2, which w* has.

        Args:
            u: the D_l, shape ``(..., L)``.
        """
        return self._field(self.dim).excess_risk(u)

    @property
    def critical_step_size(self) -> float:
        """c_delta above which the risk diverges for batches of one, 2N / tr Lambda."""
        return self.stability_limit()

    def stability_limit(self, batch_size: int = 1, momentum: float = 0.0) -> float:
        """c_delta above which the risk diverges, 2 B (1 - beta) N / tr Lambda.

        With measured fourth moments it is where their equation has an eigenvalue 0.

        Args:
            batch_size: B.
            momentum: beta.
        """
        return limit_of(self._field(self.dim), SGDSettings(1.0, momentum, batch_size=batch_size))

    def plateau(self, step_size: float, batch_size: int = 1, momentum: float = 0.0) -> float:
        r"""The risk that SGD ends at, infinity where it diverges; for Gaussian inputs

        .. math:: \frac{s^2/2}{1 - c\,tr \Lambda / (2 B (1 - \beta) N)}.

        Args:
            step_size: c_delta = lr * N.
            batch_size: B.
            momentum: beta.
        """
        settings = SGDSettings(step_size, momentum, batch_size=batch_size)
        return plateau(self._field(self.dim), settings)

    def optimal_step_size(self, steps: int, batch_size: int = 1, momentum: float = 0.0) -> float:
        """The constant c_delta = lr * N with the least risk after so many steps from w = 0.

        Learning rates from lr lambda_max = 1/2 on, which `dynamics` refuses, are left out.

        Args:
            steps: their number.
            batch_size: B.
            momentum: beta.
        """
        _checks.positive_int("steps", steps)
        settings = SGDSettings(1.0, momentum, batch_size=batch_size)
        return best_step_size(self._field(self.dim), self.initial, steps, settings)

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, which JSON can hold."""
        return {"dim": self.dim, **self._field(self.dim).describe()}

    def _read(
        self, optimizer: Optimizers | None, step_size: float | Tensor | None,
        momentum: float | Tensor, batch_size: int, schedule: ScheduleLike | None, dim: int | None,
    ) -> tuple[LeastSquaresField, SGDSettings, Schedule | None]:  # fmt: skip
        """Field, settings and schedule that go with the arguments of `dynamics`."""
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        if isinstance(optimizer, (torch.optim.SGD, list, tuple)):
            _check_no_decay(optimizer)
        settings = SGDSettings.chosen(optimizer, dim, 0.0, step_size, momentum, batch_size)
        return self._field(dim), settings, Schedule.of(schedule, optimizer, dim)

    def _field(self, dim: int) -> LeastSquaresField:
        return LeastSquaresField(self.levels, self.gains, self.noise, dim)


def _gains(moments: object, levels: Levels, noise: float) -> Gains:
    return Gains.gaussian(levels, noise) if moments is False else Gains.measured(moments, levels)


def _check_no_decay(optimizer: Optimizers) -> None:
    decays = [float(group.get("weight_decay", 0.0)) for group in groups_of(optimizer)]
    if any(decays):
        raise ValueError(
            f"expected weight_decay 0 for a linear model, got {max(decays):g}: it pulls w to 0 and "
            "not to w*, and the errors D alone do not say what that makes of them; "
            "tl.NetworkProblem has overlaps with the target, and takes it"
        )

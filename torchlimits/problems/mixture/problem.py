"""`GaussianMixture`: a two-layer ReLU network classifying a Gaussian mixture (binary, XOR, any)."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from torchlimits import _checks, _linalg
from torchlimits.dynamics.diffusive import LinearDiffusion
from torchlimits.optim.listed import Optimizers
from torchlimits.optim.mapped_limit import MappedLimit
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.training import Training
from torchlimits.problems.mixture import quality, small_noise, success
from torchlimits.problems.mixture.as_network import as_network
from torchlimits.problems.mixture.chain import MixtureChain
from torchlimits.problems.mixture.dynamics import MixtureDynamics
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.mixture.relu_field import ReluField
from torchlimits.problems.mixture.small_noise import FixedPointComponent
from torchlimits.problems.mixture.small_noise_field import SmallNoiseField
from torchlimits.problems.mixture.trainable import TrainableMixture
from torchlimits.problems.network.dynamics import NetworkDynamics
from torchlimits.problems.network.first_layer_problem import FirstLayerProblem
from torchlimits.problems.problem import Problem


class GaussianMixture(TrainableMixture, FirstLayerProblem, Problem):
    r"""Classify :math:`X = c_a + Z/\sqrt\lambda` by a two-layer ReLU network.

    Data: :math:`Z \sim N(0, I_N)`; component a, drawn by its probability, has mean c_a and label
    y_a in {0, 1}; the means lie in the span of orthonormal directions e_1 ... e_d. Network:
    `TwoLayerNetwork`, K hidden units. Loss: binary cross-entropy of the logit; the ridge
    (alpha/2)(\|v\|^2 + \|W\|^2) is ``weight_decay=alpha`` in torch.optim.SGD.

    Summary statistics: ``v[i]``; ``m[i,j]`` = <W_i, e_j>; ``R[i,j]``, i <= j, the Gram matrix of
    the neurons' parts orthogonal to all e_j. There are K + K d + K (K + 1)/2 of them.

    Source: sections 4 (binary) and 5 (XOR) of arXiv 2206.04030.

    Args:
        means: the c_a as rows, shape ``(A, N)``.
        labels: the y_a, shape ``(A,)``.
        width: K >= 1.
        snr: lambda in (0, inf]; at inf the data are the means themselves. A tensor that requires a
            gradient gives predictions one.
        ridge: alpha >= 0; or a tensor, as snr.
        weights: the probabilities of the components, shape ``(A,)``; by default all the same.
        directions: the e_j as orthonormal rows, shape ``(d, N)``; by default the means themselves,
            each once and +-c counted once, which then have to be orthonormal.
        device, dtype: of data and models where none are asked for.

    Raises:
        ValueError: if the means are not in the span of orthonormal directions, N is smaller than
            the number of means + K, labels are not 0 or 1, weights are not probabilities, or a
            number is out of its range.

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

    def dynamics(
        self, optimizer: Optimizers | None = None, *,
        step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None, level: int = 0, model: nn.Module | None = None,
        clip_norm: float | None = None, clip_value: float | None = None,
    ) -> MixtureDynamics | NetworkDynamics:  # fmt: skip
        """The effective dynamics that go with an optimizer, or with c_delta = lr * N.

        With an optimizer, each layer has the options of its parameter group; limit time is the sum
        of the first group's learning rates. The optimizer's weight decay is the ridge of the
        prediction, with a warning if that is not the problem's. A layer that it does not hold does
        not move.

        Args:
            optimizer, step_size, momentum, batch_size, schedule, dim: as in `Problem.dynamics`.
            level: accuracy of the Gaussian expectations, see `ReluField`; where gradients of
                samples are needed, there are 2^(12 + 2 level) nodes for each component.
            model, clip_norm, clip_value: as in `NetworkProblem.dynamics`.

        Returns:
            `MixtureDynamics` of a `ReluField`, or of a `SmallNoiseField` at snr = inf; for Adam,
            AdamW, RMSprop, Adagrad, `AdaGradNorm`, `SignSGD` and clipped gradients
            `NetworkDynamics` of the same statistics.

        Raises:
            ValueError: with one of these at snr = inf, and as `Problem.dynamics`.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        training = Training(
            dim, optimizer, step_size, momentum, batch_size, model, clip_norm, clip_value
        )
        limit, plan = self._limit(training), Schedule.of(schedule, optimizer, dim)
        field = self._field(dim, level)
        if not isinstance(limit, SGDLimit) or isinstance(limit, MappedLimit):
            if self.snr == math.inf:
                raise ValueError(
                    f"expected a finite snr with {limit.describe()}, got inf: what these do to a "
                    "gradient depends on its noise"
                )
            network = as_network(field, limit, nodes=2 ** (12 + 2 * level))
            return NetworkDynamics.of(network, limit, plan, self.statistics)
        return MixtureDynamics(field, limit, schedule=plan)

    def reduced_chain(
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> MixtureChain:  # fmt: skip
        """The exact law of SGD's statistics at dimension N; see `Problem.reduced_chain`."""
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        training = Training(dim, optimizer, step_size, momentum, batch_size)
        limit, plan = self._limit_of_chain(training), Schedule.of(schedule, optimizer, dim)
        return MixtureChain(self._field(dim), limit, plan)

    def _field(self, dim: int, level: int = 0) -> MixtureField:
        place: dict[str, Any] = {"width": self.width, "snr": self._snr, "dim": dim}
        place |= {"coordinates": self.coordinates, "labels": self.labels, "weights": self.weights}
        if self.snr == math.inf:
            return SmallNoiseField(**place)
        return ReluField(level=level, **place)

    def diffusive(self, at: Float[Tensor, " k"], step_size: float = 1.0) -> LinearDiffusion:
        """The diffusive limit of sqrt(N) (u - u*) around a fixed point of the ballistic one.

        On the quarter circles (binary) and pairs of rings (XOR) at snr = inf, that is for
        `small_noise`, it is that of Propositions 4.3 and 5.1 of arXiv 2206.04030. See
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

    def random_start(
        self, v: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
        """Mean and covariance of u at the start of `model`, W ~ N(0, I/N), for a given v.

        They are made for ``dynamics.solve(mean, times, band=True, initial_covariance=covariance)``;
        v itself, of order 1, is not a fluctuation. m ~ N(0, 1/N); R is Wishart with mean (N - d)/N.

        Args:
            v: the second layer, shape ``(K,)``.

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
        eye = _linalg.packed(torch.eye(K, dtype=torch.float64, device="cpu"))
        zero = v.new_zeros(K * d)
        variances = [0 * v, zero + 1 / self.dim, share / self.dim * (1 + eye)]
        return torch.cat([v, zero, share * eye]), torch.diag(torch.cat(variances))

    def small_noise(self) -> GaussianMixture:
        """The same problem at snr = infinity, whose dynamics and fixed points are closed forms."""
        options = self._options()
        options["snr"] = math.inf
        return GaussianMixture(self.means, self.labels, **options)

    def fixed_point_components(self) -> list[FixedPointComponent]:
        """All components of fixed points at snr = infinity (binary, XOR), stable ones first.

        Raises:
            ValueError: at finite snr, or if no closed form is known: for other mixtures, and with
                weights; see `small_noise.components`.
        """
        if self.snr != math.inf:
            raise ValueError(
                f"expected snr = inf, got {self.snr:g}: call small_noise() first for the closed "
                "form, or dynamics(...).fixed_points() for this snr"
            )
        self._check_equal_weights("fixed points at snr = infinity")
        return small_noise.components(self.coordinates, self.labels, self.width, self.ridge)

    def is_optimal(self, u: Float[Tensor, "*batch k"]) -> Bool[Tensor, "*batch"]:
        """Whether the network with statistics u classifies every mean correctly, shape ``(...)``.

        The logit at every c_a must have the sign of its label (a logit of 0, as without a neuron,
        is wrong); means of weight 0, which are never drawn, do not count. At the paper's fixed
        points such a network is the optimal classifier.

        Args:
            u: shape ``(..., k)``.

        Raises:
            ValueError: if u is of another shape.
        """
        drawn = slice(None) if self.weights is None else self.weights > 0
        return quality.labels_all_means(u, self.coordinates[drawn], self.labels[drawn], self.width)

    def accuracy(self, u: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
        """P(the network with statistics u gives fresh data the right label), shape ``(...)``.

        A logit of 0 counts half. The integral takes 2^14 scrambled Sobol points for each component,
        the same ones in every call, with an error of about 1e-3.

        Args:
            u: shape ``(..., k)``.

        Raises:
            ValueError: if u is of another shape.
        """
        return quality.accuracy(
            u, self.coordinates, self.labels, self.width, snr=self.snr, weights=self.weights
        )

    def success_probability(self) -> float:
        """P(SGD from a random start ends at an optimal classifier) as N, then snr -> infinity.

        It is exact for any width, binary and XOR: each neuron takes one of the A means at random,
        and all have to be taken (`success.exact`). It is 0 if 0 is the only fixed point left by
        the ridge.
        `success.by_dynamics` and `success.by_sgd` estimate it at finite snr and N.

        Raises:
            ValueError: if the mixture is neither binary nor XOR, or has weights.
        """
        self._check_equal_weights("the probability of success")
        small_noise.kind_of_mixture(self.coordinates, self.labels)
        means = len(self.means)
        if self.ridge and small_noise.squared_radius(means, self.ridge) <= 0:
            return 0.0
        return success.exact(means, self.width)

    def _check_equal_weights(self, what: str) -> None:
        if self.weights is not None:
            raise ValueError(
                f"expected components of equal probability for the closed form of {what}, got "
                f"weights={self.weights.tolist()}: use dynamics(...), whose fixed_points() and "
                "solutions are for any weights"
            )

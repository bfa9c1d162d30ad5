"""`NetworkProblem`: any head on a linear first layer, any loss and labels, on Gaussian mixtures."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.optim.adagrad_norm_limit import AdaGradNormLimit
from torchlimits.optim.chosen_limit import NetworkLimit
from torchlimits.optim.limit import OptimizerLimit
from torchlimits.optim.listed import Optimizers, groups_of
from torchlimits.optim.parameter_groups import Layers
from torchlimits.optim.schedule import Schedule, ScheduleLike
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.optim.training import Training
from torchlimits.problems.data.covariance import DataCovariance
from torchlimits.problems.data.report import DataReport
from torchlimits.problems.network import checks, head_checks, kinks, own_module
from torchlimits.problems.network.block_chain import chain_of
from torchlimits.problems.network.block_field import BlockField
from torchlimits.problems.network.chain import NetworkChain
from torchlimits.problems.network.dynamics import NetworkDynamics
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.first_layer_problem import FirstLayerProblem
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.resolution import resolution
from torchlimits.problems.network.sample_loss import Loss
from torchlimits.problems.network.trainable import Labels, TrainableNetwork
from torchlimits.problems.problem import Problem

#: lr times the largest eigenvalue: above the first predictions are off, above the second wrong
_WARNED, _REFUSED = 0.05, 0.5


class NetworkProblem(TrainableNetwork, FirstLayerProblem, Problem):
    r"""Train output = head(W x + b), with any head, loss and labels, on a Gaussian mixture.

    Data: :math:`x = c_a + \lambda^{-1/2} z`, z ~ N(0, I_N), component a drawn by its probability;
    the means c_a, and all that the label reads of x, lie in the span of orthonormal directions
    e_1 ... e_d. Network: a linear first layer of K neurons, then any small `torch.nn.Module`. The
    ridge (alpha/2) on all parameters is ``weight_decay=alpha`` in torch.optim.SGD.

    Summary statistics: every entry of the head's parameters under its own name
    (``head.1.weight[0,2]``); ``b[i]``; ``m[i,j]`` = <W_i, e_j>; ``R[i,j]``, i <= j, the Gram matrix
    of the neurons' parts orthogonal to all e_j. They are closed: the loss depends on W through
    h = W x + b alone, which is Gaussian given a, with a law that b, m and R determine.

    `of` makes the problem of your own module instead.

    Source: Theorem 2.2 of arXiv 2206.04030; sections 4 and 5 there are one head, ReLU and a second
    layer (`GaussianMixture`), and Saad and Solla (1995) the committee machine.

    Args:
        dim: N.
        width: K.
        head: the rest of the network, an `nn.Module` that maps h ``(batch, K)`` to outputs; copied.
            It treats each sample by itself, without randomness. Frozen parameters stay as they are.
        loss: loss(output, target), the mean over a batch, one number.
        labels: a tensor of one label a component, ``(A, ...)``; a function of (x_parallel
            ``(n, d)``, component ``(n,)``); or a `LabelLaw`, an object with methods ``law`` and
            ``sample``. Labels of shape () for outputs of shape (1,) get that dimension.
        snr: lambda > 0. A tensor that requires a gradient gives predictions one, unless labels read
            x_parallel.
        means: the c_a as rows, shape ``(A, N)``; by default one component at 0.
        directions: the e_j as orthonormal rows, ``(d, N)``; by default the means themselves, each
            once and +-c counted once, which then have to be orthonormal.
        weights: the probabilities of the components, ``(A,)``; by default all the same.
        label_noise: standard deviation of normal noise on labels that are real numbers.
        label_flips: of labels that are classes, the probability of being replaced by any other
            class, or a matrix ``(C, C)`` with one row of probabilities a class.
        bias: whether the first layer has biases b.
        ridge: alpha >= 0; or a tensor, as snr.
        covariance: Lambda of the noise, :math:`x = c_a + \lambda^{-1/2} \Lambda^{1/2} z`: a list of
            (eigenvalue, fraction of the dimensions), a spectrum ``(N,)``, a matrix ``(N, N)``, or a
            `Covariance`; with one for each component, spectra ``(A, N)`` or commuting matrices
            ``(A, N, N)``. Statistics are then ``m[l,i,j]`` and ``R[l,i,j]`` of the blocks l of
            equal eigenvalues; `overall` are the sums over them.
            That of data, `Covariance.of_data`, gives what is None of labels, means, directions,
            weights, snr (1) and label_noise: classes are components, and numbers have their best
            linear prediction and its residual.
        blocks: their number. By default each of up to 16 eigenvalues has one, and more are grouped
            into 16, whose error `Blocks` states; ``"all"`` gives each one its own.
        device, dtype: of data and models where none are asked for.

    Raises:
        ValueError: if the head couples samples, draws random numbers or is not finite, the loss is
            not the mean of the losses of samples, labels or means do not fit, the Gram matrix does
            not fit beside the directions (N < d + K), or a number is out of its range.
        TypeError: if head is not a module, or labels are of another kind.

    Example:
        >>> import torch, torchlimits as tl
        >>> from torch import nn
        >>> problem = tl.NetworkProblem(
        ...     dim=100, width=3, head=nn.Sequential(nn.GELU(), nn.Linear(3, 2)),
        ...     loss=nn.functional.cross_entropy, means=torch.eye(2, 100),
        ...     labels=torch.tensor([0, 1]), snr=4.0,
        ... )
        >>> model, (x, y) = problem.model(), problem.sample(5)
        >>> problem.loss(model(x), y).shape, problem.names[0], len(problem.names)
        (torch.Size([]), 'head.1.weight[0,0]', 23)
        >>> start = problem.starts(1)[0]
        >>> problem.dynamics(step_size=1.0).solve(start, [0.0, 0.5])
        Trajectory(23 statistics, 2 times, t = 0 ... 0.5, runs=1)
    """

    @classmethod
    def of(
        cls, model: nn.Module, first: str = "0", *, loss: Loss, labels: Labels | None = None,
        snr: float | Tensor | None = None,
        means: Float[Tensor, "A N"] | None = None, directions: Float[Tensor, "d N"] | None = None,
        weights: object = None, label_noise: float | None = None, label_flips: object = None,
        ridge: float | Tensor = 0.0, covariance: object = None, blocks: int | str | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> NetworkProblem:  # fmt: skip
        """The problem of your own module, in which only the linear layer ``first`` sees x.

        Statistics and predictions carry the module's own parameter names (``2.weight[0,1]``),
        besides b, m and R. A loop that trains the module with `torchlimits.track` can stay as
        it is: ``problem.dynamics(optimizer)`` tells by the parameters themselves which
        learning rate and weight decay each has. The module is left alone, and the problem
        keeps its frozen parameters and buffers as they are now.

        `model` makes copies at new random starts, as the module's parts have them: by their
        ``reset_parameters()``, the first layer's too; what has none keeps its values. All runs of
        ``torchlimits.train(problem, start=model)`` start from the module's own parameters.

        Args:
            model: x ``(batch, N)`` -> outputs; an `nn.Module`. Nothing but a change of shape comes
                before the layer, which is called once; the rest does not see x.
            first: the layer's name among ``model.named_modules()``; ``""`` if the module is an
                `nn.Linear` itself.
            loss, labels, snr, means, directions, weights, label_noise, label_flips, ridge: as in
                the class.
            covariance, blocks: as in the class.
            device, dtype: of data and models where none are asked for; by default the layer's.

        Raises:
            ValueError: as the class; if ``first`` is not part of the module, is not called exactly
                once on x itself, shares parameters with the head or computes them (weight norm);
                if the output depends on x in another way; or if parameters have no values yet.
            TypeError: as the class; if that part is not an `nn.Linear`.

        Example:
            >>> import torch, torchlimits as tl
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(100, 2), nn.Tanh(), nn.Linear(2, 1))
            >>> problem = tl.NetworkProblem.of(
            ...     model, "0", loss=nn.functional.mse_loss, snr=4.0, means=torch.eye(2, 100),
            ...     labels=torch.tensor([1.0, -1.0]),
            ... )
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=1 / 100)
            >>> with tl.track(model, optimizer, problem.statistics) as tracker:
            ...     for _ in range(50):
            ...         x, y = problem.sample(1)
            ...         optimizer.zero_grad()
            ...         nn.functional.mse_loss(model(x), y).backward()
            ...         optimizer.step()
            >>> measured = tracker.trajectory()
            >>> predicted = problem.dynamics(optimizer).solve(measured.initial, measured.times)
            >>> predicted.names[:4]
            ['2.weight[0,0]', '2.weight[0,1]', '2.bias[0]', 'b[0]']
        """
        checks.is_loss(loss)
        network = own_module.copied(model, first).cpu()
        own_module.check_inputs(network, first)
        head_checks.check_parts(network)
        own_module.check_head(network, first)
        layer = network.get_submodule(first)
        assert isinstance(layer, nn.Linear)
        problem = cls.__new__(cls)
        problem.module = model
        # copies and pickles are of the module as it is now
        problem._made_by = partial(cls.of, network, first)
        problem._begin(
            network, first, loss, labels, snr=snr, means=means, directions=directions,
            weights=weights, label_noise=label_noise, label_flips=label_flips, ridge=ridge,
            covariance=covariance, blocks=blocks, device=device or layer.weight.device,
            dtype=dtype or layer.weight.dtype,
        )  # fmt: skip
        return problem

    @property
    def data_report(self) -> DataReport | None:
        """Whether the theory holds for the data of the covariance; None without data.

        ``problem.data_report`` is `DataCovariance.diagnose` without a learning rate.
        """
        data = self._given["covariance"]
        return data.diagnose() if isinstance(data, DataCovariance) else None

    def dynamics(
        self, optimizer: Optimizers | None = None, *,
        step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None, nodes: int = 2**12, seed: int = 0, model: nn.Module | None = None,
        clip_norm: float | None = None, clip_value: float | None = None,
    ) -> NetworkDynamics:  # fmt: skip
        """The effective dynamics that go with an SGD optimizer, or with c_delta = lr * N.

        With an optimizer, each parameter has the options of its group; limit time is the sum of
        the first group's learning rates. The optimizer's weight decay is the ridge of the
        prediction, with a warning if that is not the problem's. A parameter that it does not hold
        does not move.

        Args:
            optimizer, step_size, momentum, batch_size, schedule, dim: as in `Problem.dynamics`.
            nodes: the number of nodes of the Gaussian integrals, for each component.
            seed: the seed of the nodes, where they are Sobol points.
            model: the module whose parameters the optimizer holds; needed only if its groups
                differ, several parameters of the head have one shape, and it is not the module that
                `of` was given.
            clip_norm: the ``max_norm`` of ``torch.nn.utils.clip_grad_norm_`` over the model's
                parameters, if the loop calls it before each step. All that require a gradient
                count; give ``model`` if the optimizer does not train them all.
            clip_value: likewise that of ``torch.nn.utils.clip_grad_value_``.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        training = Training(
            dim, optimizer, step_size, momentum, batch_size, model, clip_norm, clip_value
        )
        limit = self._limit(training)
        if self.covariance is not None:
            self._check_speed(limit, dim)
        field = self._field(dim, _checks.positive_int("nodes", nodes), seed, limit)
        plan = Schedule.of(schedule, optimizer, dim)
        return NetworkDynamics.of(field, limit, plan, self.statistics)

    def reduced_chain(
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None, model: nn.Module | None = None, clip_norm: float | None = None,
    ) -> NetworkChain:  # fmt: skip
        """The exact law of SGD's statistics at dimension N; see `Problem.reduced_chain`.

        Args:
            optimizer, step_size, momentum, batch_size, schedule, dim, model, clip_norm: as in
                `dynamics`.

        Raises:
            ValueError: as `dynamics`, and if N is smaller than d + K + B.
            NotImplementedError: if steps leave the span of weights and batch, as those of
                optimizers with second moments and of `SignSGD` do.
        """
        dim = self.dim if dim is None else _checks.positive_int("dim", dim)
        training = Training(
            dim, optimizer, step_size, momentum, batch_size, model, clip_norm=clip_norm
        )
        limit, plan = self._limit_of_chain(training), Schedule.of(schedule, optimizer, dim)
        return chain_of(self.setting, dim=dim, limit=limit, schedule=plan)

    def _limit(self, training: Training) -> NetworkLimit:
        optimizer = training.optimizer
        if optimizer is None:
            training = replace(training, model=self.template)
        elif training.model is None:
            training = replace(training, model=self._held_by(optimizer))
        limit = super()._limit(training)
        if optimizer is not None or not isinstance(limit, SGDLimit):
            return limit
        return replace(limit, layers=self._unless_frozen(limit.settings))

    def _check_speed(self, limit: OptimizerLimit, dim: int) -> None:
        """Warn or refuse where one step is no small part of the time that weights take to move."""
        assert self.covariance is not None
        lr = _checks.plain(limit.step_size) * limit.speed / dim
        if isinstance(limit, AdaGradNormLimit):
            lr /= limit.initial
        step = lr * self.covariance.largest / self.snr
        if step > _REFUSED:
            raise ValueError(
                f"expected lr lambda_max < {_REFUSED} for a limit, got {step:.3g} (the largest "
                f"eigenvalue of the noise is {self.covariance.largest / self.snr:.3g}): along that "
                "direction steps are not small; take a smaller learning rate"
            )
        if step > _WARNED:
            _checks.warn_user(
                f"lr lambda_max = {step:.2g}: predictions neglect it beside 1 along the directions "
                "of the largest eigenvalues, which relax in about as many steps as its inverse"
            )

    def _unless_frozen(self, settings: SGDSettings) -> Layers | None:
        """Settings for each parameter, if W or b is frozen."""
        trained = {name for name, p in self.template.named_parameters() if p.requires_grad}
        names = self.layout.shapes
        if trained >= {*names}:
            return None
        return Layers(settings, {name: settings if name in trained else None for name in names})

    def _held_by(self, optimizer: Optimizers) -> nn.Module | None:
        """The user's own module, if the optimizer holds parameters of it."""
        if self.module is None:
            return None
        own = {id(p) for p in self.module.parameters()}
        held = any(id(p) in own for group in groups_of(optimizer) for p in group["params"])
        if not held:
            return None
        head_checks.check_parts(self.module)  # it may be in another mode by now
        return self.module

    def _field(
        self, dim: int, nodes: int, seed: int, limit: OptimizerLimit | None = None
    ) -> NetworkField:
        if self.covariance is not None:
            return self._block_field(dim, nodes, seed)
        setting, rule = resolution(self.setting, self.kinks, limit, nodes=nodes, seed=seed)
        return NetworkField(setting, dim=dim, rule=rule, kinks=self.kinks)

    def _block_field(self, dim: int, nodes: int, seed: int) -> BlockField:
        # labels' own nodes are in the coordinates of each piece
        _, rule = resolution(self.setting, self.kinks, None, nodes=nodes, seed=seed)
        return BlockField(self.setting, dim=dim, rule=rule, kinks=self.kinks)

    @cached_property
    def kinks(self) -> Kinks:
        """Where a sample's gradient jumps, found by following the gradient along random lines."""
        return kinks.found(self.setting)

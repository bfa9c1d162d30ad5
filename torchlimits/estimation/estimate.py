"""`estimate`: drift, corrector and diffusion of any statistics of any model, from data."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchlimits import _checks, _random
from torchlimits._exact import exactly
from torchlimits._text import Table, Tabular
from torchlimits.estimation.estimated import Estimated, covariance, standard_error
from torchlimits.estimation.general_increments import GeneralIncrements, Way
from torchlimits.estimation.increments import Increments, QuadraticIncrements, Step
from torchlimits.estimation.motion import Motion
from torchlimits.estimation.per_sample_gradients import PerSampleGradients
from torchlimits.statistics.quadratic import (
    Gradient,
    OuterGradient,
    Quadratic,
    total,
    total_square,
)
from torchlimits.statistics.summary import StatisticFunction, SummaryStatistics

Loss = Callable[..., Tensor]
Sampler = Callable[..., Any]

Found = TypeVar("Found")

#: the samples whose mean gradient stands for grad Phi as the centre of spreads
_PILOT = 128
#: samples in one piece at most
_PIECE = 4096
#: arrays of the size of a batch's gradients that are alive at once
_COPIES = 8


@dataclass(frozen=True, eq=False)
class Estimate(Tabular):
    r"""What `estimate` found at one point x, per unit of limit time, in float64.

    Attributes:
        names: the names of the k statistics.
        u: the statistics at x, shape ``(k,)``.
        drift: -f = -<grad Phi, grad u>, shape ``(k,)``.
        corrector: g = delta Lgen u, shape ``(k,)``.
        diffusion: Sigma = delta J V J^T, shape ``(k, k)``.
        increment: E[u(X_1) - u(x)] / delta of one whole SGD step from x, to all orders in delta.
        increment_covariance: Cov(u(X_1) - u(x)) / delta of the same step, shape ``(k, k)``; where
            statistics are quadratic it differs from ``diffusion`` at every n.
        step_size: delta, the learning rate.
        samples: the number of samples.

    Example:
        >>> import torchlimits as tl
        >>> problem = tl.SpikedTensor(dim=100, order=2, snr=2.0)
        >>> found = tl.estimate(
        ...     problem.model(at=(0.5, 1.0)), problem.loss, problem.sample, problem.statistics,
        ...     step_size=0.01, samples=1000,
        ... )
        >>> found.names, found.drift.value.shape, found.diffusion.standard_error.shape
        (['m', 'r2'], torch.Size([2]), torch.Size([2, 2]))
    """

    names: list[str]
    u: Float[Tensor, " k"]
    drift: Estimated
    corrector: Estimated
    diffusion: Estimated
    increment: Estimated
    increment_covariance: Estimated
    step_size: float
    samples: int

    def __repr__(self) -> str:
        return (
            f"Estimate({len(self.names)} statistics, {self.samples} samples, "
            f"step_size={self.step_size:g})"
        )

    def _table(self) -> Table:
        notes = {
            "u": "the statistic at these parameters",
            "drift -f": "its rate by gradient flow on the population loss ± standard error",
            "corrector g": f"its rate by steps of size {self.step_size:g} beside that ± standard "
            "error",
            "diffusion": "variance that one unit of limit time adds to it ± standard error",
        }
        spread = Estimated(
            self.diffusion.value.diagonal(), self.diffusion.standard_error.diagonal()
        )
        columns = [
            self.names,
            [f"{x:.4f}" for x in self.u.tolist()],
            *(_with_error(e) for e in (self.drift, self.corrector, spread)),
        ]
        return Table([["statistic", *notes], *zip(*columns, strict=True)], notes)


def _with_error(e: Estimated) -> list[str]:
    pairs = zip(e.value.tolist(), e.standard_error.tolist(), strict=True)
    return [f"{x:.4g} ± {s:.2g}" for x, s in pairs]


def estimate(
    model: nn.Module, loss: Loss, sampler: Sampler,
    statistics: SummaryStatistics | Mapping[str, StatisticFunction], *, step_size: float,
    samples: int, weight_decay: float = 0.0, generator: torch.Generator | None = None,
    max_bytes: int = 64 * 2**20,
) -> Estimate:  # fmt: skip
    r"""Estimate drift, corrector and diffusion matrix of statistics u at a model's parameters x.

    .. math::
        f_i = \langle \nabla\Phi, \nabla u_i\rangle, \quad
        g_i = \tfrac{\delta}{2} E\langle \nabla H, \nabla^2 u_i\, \nabla H\rangle, \quad
        \Sigma = \delta J V J^T

    are estimated from the gradients of single samples, whose mean is grad Phi and whose deviations
    from it are grad H. All three values are unbiased. The mean and the covariance of a whole SGD
    step, with its second and higher orders, are estimated as well.

    Source: Theorem 2.2 of arXiv 2206.04030, whose limits these are at finite n.

    Args:
        model: any module that `torch.func.functional_call` takes; its parameters, gradients and
            buffers are left alone. Parameters that need no gradient count as constants.
        loss: ``loss(model_output, target)`` where ``sampler`` returns (input, target), or
            ``loss(model, batch)``, told apart by the name ``model`` of its first parameter. It is
            called with batches of one sample.
        sampler: ``sampler(batch, generator=...)`` returns fresh samples: tensors, or lists and
            dicts of tensors, with the samples in the first dimension, where the model can take
            them. If it has ``device`` and ``dtype``, None by default, it is given the model's.
        statistics: a `SummaryStatistics`, or ``{name: function of the parameters}``. Ready-made
            ones, which know their derivatives, are the fastest; torch.func differentiates others.
        step_size: delta, the learning rate itself.
        samples: the number of samples; errors fall as its inverse square root.
        weight_decay: the optimizer's alpha; the ridge is part of f and of the step.
        generator: handed to the sampler. With one, results are reproducible, dropout in the model
            included, and the global generators are left as they were.
        max_bytes: a rough bound on the memory of gradients and data; results (24 k bytes a
            sample) come on top.

    Returns:
        `Estimate`, each entry with its standard error (asymptotically normal in ``samples``).

    Raises:
        ValueError: if samples < 2, a number is out of its range, the model's output for a sample
            depends on other samples (BatchNorm in training mode), the statistics do not depend on
            trainable parameters, or gradients or statistics are not finite.
        TypeError: if an argument is of a wrong type, or the sampler takes no generator.

    Example:
        >>> import torch, torchlimits as tl
        >>> model, loss = torch.nn.Linear(50, 1, bias=False), torch.nn.functional.mse_loss
        >>> def sampler(batch, generator=None):
        ...     x = torch.randn(batch, 50, generator=generator)
        ...     return x, x[:, :1]
        >>> statistics = {"norm2": lambda p: p["weight"].square().sum()}
        >>> found = tl.estimate(model, loss, sampler, statistics, step_size=1 / 50, samples=1000)
        >>> found.corrector.value.shape, found.diffusion.standard_error.shape
        (torch.Size([1]), torch.Size([1, 1]))
    """
    estimator = Estimator(model, loss, sampler, statistics, max_bytes=max_bytes)
    return estimator(dict(model.named_parameters()), step_size, samples, weight_decay, generator)


class Moments(NamedTuple):
    """The mean of single samples' gradients and of their squares, in a parameter's shape."""

    mean: Tensor
    square: Tensor

    def of_batch(self, size: int, sign: float, pull: Tensor | float) -> Tensor:
        """The mean square of the gradient of a batch, sign times its mean plus a pull.

        Args:
            size: how many samples a batch averages.
            sign: -1 where the loss is maximised.
            pull: what weight decay adds.
        """
        variance = (self.square - self.mean.square()).clamp_min(0)
        return variance / size + (sign * self.mean + pull).square()


class Estimator:
    """Does what `estimate` does at many points of one model, and checks its arguments once.

    Neither V nor a Hessian is built: only <grad u_i, grad L> and quadratic forms of grad^2 u_i.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, sampler: Sampler,
        statistics: SummaryStatistics | Mapping[str, StatisticFunction], *,
        max_bytes: int = 64 * 2**20,
    ) -> None:  # fmt: skip
        statistics = SummaryStatistics.of(statistics)
        self.statistics, self.model = statistics, model
        self.sampler = checked_sampler(sampler, model)
        self.max_bytes = _checks.positive_int("max_bytes", max_bytes)
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
        parameters = dict(model.named_parameters())
        if statistics.batch_dims(parameters):
            raise ValueError("expected one model, got parameters with leading replica dimensions")
        copies = {n: p.detach().clone() for n, p in parameters.items()}
        self.names = statistics.names_of(copies)
        changed = [n for n, p in copies.items() if p._version]
        if changed:
            raise ValueError(
                f"expected statistics that leave parameters alone, got ones that change {changed} "
                "in place: let them change a .clone()"
            )
        trainable = [n for n, p in parameters.items() if p.requires_grad]
        read = [n for n in statistics.parameters_read(parameters) if n in trainable]
        if not read:
            raise ValueError(
                "expected statistics that depend on trainable parameters, got ones that read "
                f"{statistics.parameters_read(parameters)}, of trainable {trainable}"
            )
        self.gradients = PerSampleGradients(model, loss, read)
        self._ways: dict[str, Way] = {}

    def __call__(
        self, parameters: Mapping[str, Tensor], step_size: float, samples: int,
        weight_decay: float = 0.0, generator: torch.Generator | None = None,
        motion: Motion | None = None,
    ) -> Estimate:  # fmt: skip
        """Estimate at parameters that may be others than the model's; see `estimate`.

        Another ``motion`` than plain SGD's comes with its own weight decay.
        """
        delta = _checks.positive("step_size", step_size, "it is delta, the learning rate")
        alpha = _checks.non_negative("weight_decay", weight_decay)
        motion = Motion(alpha) if motion is None else motion
        if _checks.positive_int("samples", samples) < 2:
            raise ValueError("expected at least 2 samples, got 1: one sample has no standard error")
        if not isinstance(generator, (torch.Generator, type(None))):
            raise TypeError(f"expected a torch.Generator, got {type(generator).__name__}")
        parameters = {n: p.detach() for n, p in parameters.items()}
        with exactly(), _random.reproducible(generator):
            return self._estimate(parameters, delta, samples, motion, generator)

    def _estimate(
        self, parameters: dict[str, Tensor], delta: float, samples: int, motion: Motion,
        generator: torch.Generator | None,
    ) -> Estimate:  # fmt: skip
        along, curved, whole, ridge, excess = self.rows(
            parameters, delta, samples, motion, generator
        )
        # the centre is not quite the mean gradient: its contribution to the spread is subtracted
        curvature = (curved.sum(0) - samples * excess) / (samples - 1)
        diffusion, spread = covariance(along, delta), covariance(whole, delta)
        return Estimate(
            names=self.names,
            u=self.statistics(motion.seen(parameters)).double(),
            drift=Estimated(-along.mean(0) - ridge, _error_of_mean(diffusion, delta, samples)),
            corrector=Estimated(delta * curvature, delta * standard_error(curved)),
            diffusion=diffusion,
            increment=Estimated(whole.mean(0), _error_of_mean(spread, delta, samples)),
            increment_covariance=spread,
            step_size=delta,
            samples=samples,
        )

    def on(self, sampler: Sampler) -> Estimator:
        """The same for other data.

        Args:
            sampler: what draws them.
        """
        other = copy.copy(self)
        other.sampler = checked_sampler(sampler, self.model)
        return other

    def moments(
        self, parameters: Mapping[str, Tensor], samples: int, generator: torch.Generator | None
    ) -> dict[str, Moments]:
        """Means and mean squares of the gradients of single samples, entry by entry.

        Args:
            parameters: where.
            samples: how many.
            generator: as in `estimate`.
        """
        parameters = {n: p.detach() for n, p in parameters.items()}
        places = {n: parameters[n] for n in self.gradients.names}
        wide = {n: torch.promote_types(p.dtype, torch.float32) for n, p in places.items()}
        sums, squares = (
            {n: torch.zeros_like(p, dtype=wide[n]) for n, p in places.items()} for _ in range(2)
        )
        with exactly(), _random.reproducible(generator):
            pilot, _ = self._pilot(parameters, samples, Motion(), generator)
            for batch in self._batches(parameters, pilot, samples, Motion(), generator):
                for name, gradient in batch.items():
                    sums[name] += total(gradient)
                    squares[name] += total_square(gradient)
        return {n: Moments(sums[n] / samples, squares[n] / samples) for n in sums}

    def rows(
        self, parameters: dict[str, Tensor], delta: float, samples: int, motion: Motion,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return what the estimates are made of, in float64.

        Returns:
            Three tensors ``(S, k)`` with a row for each sample: J g; the curvature
            (g - c)^T grad^2 u (g - c) / 2 with a centre c near the mean gradient; and
            (u(X_1) - u(x)) / delta. Then come two of shape ``(k,)``: J on the pull of weight decay,
            and the curvature with the mean gradient for g.
        """
        pilot, centre = self._pilot(parameters, samples, motion, generator)
        pulls = motion.pulls(parameters, list(centre))
        step = Step(motion.seen(parameters), centre, delta, pulls)
        increments = self._increments(step)
        sums = {n: torch.zeros_like(c) for n, c in centre.items()}
        parts = []
        for gradients in self._batches(parameters, pilot, samples, motion, generator):
            rows = _merged(i.rows(gradients) for i in increments)
            values = zip(*rows.values(), strict=True)
            parts.append([self.statistics.entries(dict(zip(rows, x, strict=True))) for x in values])
            for name, gradient in gradients.items():
                sums[name] += total(gradient)
        along, curved, whole = (torch.cat(x).double() for x in zip(*parts, strict=True))
        self._check_finite(along, curved, whole)
        rest = {n: t / samples - centre[n] for n, t in sums.items()}
        ridge, excess = (
            self.statistics.entries({n: v[None] for n, v in values.items()})[0].double()
            for values in (
                _merged(i.first(pulls) for i in increments),
                _merged(i.second(rest) for i in increments),
            )
        )
        return along, curved, whole, ridge, excess

    def _increments(self, step: Step) -> list[Increments]:
        """Return them by the functions' own derivatives if they have some, else by torch.func."""
        functions = self.statistics.functions
        own = {n: f for n, f in functions.items() if isinstance(f, Quadratic)}
        others = {n: f for n, f in functions.items() if n not in own}
        increments: list[Increments] = [QuadraticIncrements(n, f, step) for n, f in own.items()]
        if others:
            increments.append(GeneralIncrements(others, step, self._ways, self.max_bytes))
        return increments

    def _pilot(
        self, parameters: dict[str, Tensor], samples: int, motion: Motion,
        generator: torch.Generator | None,
    ) -> tuple[list[tuple[Any, Mapping[str, Gradient] | None]], dict[str, Tensor]]:  # fmt: skip
        """Draw the first samples, which count with the others, and find their mean gradient.

        Their own gradients come with them if they fit in memory all at once.
        """
        size = sum(parameters[n].nbytes for n in self.gradients.names)
        count = min(_PILOT, samples)
        piece = max(1, min(count, self.max_bytes // (_COPIES * size)))
        pilot, sums = [], {n: torch.zeros_like(parameters[n]) for n in self.gradients.names}
        for done in range(0, count, piece):
            batch = self._sample(min(piece, count - done), generator)
            gradients = motion.moved(self.gradients(parameters, batch))
            pilot.append((batch, gradients if piece == count else None))
            for name, gradient in gradients.items():
                sums[name] += total(gradient)
        return pilot, {n: t / count for n, t in sums.items()}

    def _batches(
        self, parameters: dict[str, Tensor], pilot: list[tuple[Any, Mapping[str, Gradient] | None]],
        samples: int, motion: Motion, generator: torch.Generator | None,
    ) -> Iterator[Mapping[str, Gradient]]:  # fmt: skip
        done, piece = 0, 1
        for batch, known in pilot:
            gradients = known or motion.moved(self.gradients(parameters, batch))
            leaves = pytree.tree_leaves(batch)
            count = len(leaves[0])
            size = sum(map(_bytes, gradients.values())) + 2 * sum(x.nbytes for x in leaves)
            piece = max(1, min(_PIECE, self.max_bytes * count // size))
            done += count
            yield gradients
        while done < samples:
            count = min(piece, samples - done)
            yield motion.moved(self.gradients(parameters, self._sample(count, generator)))
            done += count

    def _sample(self, count: int, generator: torch.Generator | None) -> Any:
        return checked_samples(self.sampler(count, generator=generator), count)

    def _check_finite(self, *rows: Tensor) -> None:
        finite = torch.stack([x.sum(0).isfinite() for x in rows]).all(0)
        if not bool(finite.all()):
            name = self.names[int((~finite).nonzero()[0])]
            raise ValueError(
                f"expected finite gradients and statistics, got NaN or infinity along {name}: "
                "training may have diverged, or the statistic has no derivative here"
            )


def _merged(parts: Iterable[Mapping[str, Found]]) -> dict[str, Found]:
    return {name: found for part in parts for name, found in part.items()}


def _bytes(gradient: Gradient) -> int:
    """The memory of a gradient and of the copies that are alive at the same time."""
    if isinstance(gradient, OuterGradient):
        return 2 * (gradient.left.nbytes + gradient.right.nbytes)
    return _COPIES * gradient.nbytes


def _error_of_mean(covariance: Estimated, delta: float, samples: int) -> Tensor:
    return (covariance.value.diagonal() / delta / samples).sqrt()


def checked_sampler(sampler: Sampler, model: nn.Module) -> Sampler:
    """The sampler of a model's data, as a function of batch and generator.

    Parameters ``device`` and ``dtype`` that it has, None by default, are given those of the model's
    first parameter of floating-point numbers, as it is at the time of the call. What it returns is
    taken as it is, without a cast: whether an integer is a class or a number only its author knows.

    Args:
        sampler: what the user gave.
        model: the model.

    Raises:
        TypeError: if it is not a function, or takes no generator.

    Example:
        >>> def sampler(batch, generator=None, dtype=None):
        ...     return torch.randn(batch, 5, generator=generator, dtype=dtype)
        >>> checked_sampler(sampler, nn.Linear(5, 1, dtype=torch.float64))(2).dtype
        torch.float64
    """
    if not callable(sampler):
        raise TypeError(f"expected sampler as a function, got {type(sampler).__name__}")
    try:
        parameters = inspect.signature(sampler).parameters
    except (TypeError, ValueError):
        return sampler
    variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "generator" not in parameters and not variadic:
        raise TypeError(
            f"expected sampler(batch, generator=...), got one that takes {list(parameters)}: give "
            "it a parameter generator, a torch.Generator or None, to draw its samples with"
        )
    asked = [
        name
        for name in ("device", "dtype")
        # any other default is its author's choice
        if name in parameters and parameters[name].default in (None, inspect.Parameter.empty)
    ]

    def placed(batch: int, generator: torch.Generator | None = None) -> Any:
        floats = (p for p in model.parameters() if p.is_floating_point())
        like = next(floats, None) if asked else None
        place = {} if like is None else {name: getattr(like, name) for name in asked}
        return sampler(batch, generator=generator, **place)

    return placed


def checked_samples(batch: Any, count: int) -> Any:
    """Return what a sampler returned, or raise ValueError unless it holds ``count`` samples."""
    leaves = pytree.tree_leaves(batch)
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
    if not leaves or any(not isinstance(s, tuple) or s[:1] != (count,) for s in shapes):
        raise ValueError(
            f"expected the sampler to return {count} samples, tensors with the samples in their "
            f"first dimension, got {', '.join(map(str, shapes))}"
        )
    return batch

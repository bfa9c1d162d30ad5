"""`EmpiricalDynamics`: effective dynamics whose right-hand side is estimated from data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.estimation.empirical_field import BLOCKS, EmpiricalField
from torchlimits.estimation.estimate import Estimate, Estimator, Loss, Sampler, checked_sampler
from torchlimits.estimation.lift import Lift
from torchlimits.estimation.sample_error import Replay, block_error
from torchlimits.optim.sgd import SGDSettings
from torchlimits.optim.sgd_limit import SGDLimit
from torchlimits.statistics.summary import SummaryStatistics
from torchlimits.trajectory import Trajectory

#: rtol and atol of solutions by blocks of the samples: single samples make larger jumps there, and
#: their scatter is larger
_COARSE = 5e-3, 5e-4


class EmpiricalDynamics(EffectiveDynamics):
    r"""The ballistic limit :math:`\dot u = -f(u) + g(u)` of any statistics of any model.

    u is lifted to parameters that have these statistics, and f and g are estimated there
    (`torchlimits.estimate`). That is a prediction where the statistics close (Theorem 2.2 of
    arXiv 2206.04030): where f and g are the same at all parameters with these statistics.
    `torchlimits.closability` says whether they are; `solve` takes a quick look at the first
    solution's start and end, warns where they are not, and says what it saw in
    ``metadata["closability"]``.

    All evaluations share one set of samples and one remainder of the lift, drawn once from
    ``seed``: the right-hand side is a function, smooth to its own error, of order
    samples^(-1/2). What that does to a solution is its `Trajectory.error`, from solutions by blocks
    of the samples; bands and `torchlimits.compare` count it.

    Args:
        model, loss, sampler, statistics: as in `torchlimits.estimate`.
        step_size: c_delta = lr * dim; 0 is gradient flow.
        dim: the dimension n, that of ``model``.
        lift: a function u -> ``{parameter name: tensor}``; by default a `Lift` for the statistics.
        samples: the number of samples, which are held in memory.
        momentum, weight_decay, batch_size: those of torch.optim.SGD.
        seed: the seed of samples and remainder.
        blocks: into how many blocks `solve` divides the samples for the error: together they take
            one to four times as long as the solution. 0 leaves it out.
        places: the parameters with the same statistics that `solve` compares to see whether
            statistics close, at least 3, or 0 for not looking. Without remainders that can be drawn
            from a generator, nobody looks.

    Raises:
        ValueError: if a number is out of its range, or there is no ready-made lift.

    Warns:
        UserWarning: by `solve`, if the statistics do not close.

    Example:
        >>> import torch, torchlimits as tl
        >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
        >>> model = problem.model()
        >>> dynamics = tl.EmpiricalDynamics(
        ...     model, problem.loss, problem.sample, problem.statistics, step_size=1.0, dim=100,
        ...     samples=1000,
        ... )
        >>> start = problem.statistics(dict(model.named_parameters())).detach()
        >>> dynamics.solve(start, [0.0, 0.5, 1.0])
        Trajectory(7 statistics, 3 times, t = 0 ... 1, runs=1)
        >>> dynamics.estimate(start).drift.standard_error.shape
        torch.Size([7])
        >>> dynamics.jacobian(start[None]).shape
        torch.Size([1, 7, 7])
        >>> dynamics.equation(corrector=False)
        'du/dt = -f(u), estimated from 1000 samples'
    """

    field: EmpiricalField
    limit: SGDLimit

    def __init__(
        self, model: nn.Module, loss: Loss, sampler: Sampler,
        statistics: SummaryStatistics | Mapping[str, Any], *, step_size: float, dim: int,
        lift: Callable[..., Mapping[str, Tensor]] | None = None, samples: int = 4096,
        momentum: float = 0.0, weight_decay: float = 0.0, batch_size: int = 1, seed: int = 0,
        blocks: int = 8, places: int = 4,
    ) -> None:  # fmt: skip
        settings = SGDSettings(
            step_size, momentum, weight_decay=weight_decay, batch_size=batch_size
        )
        _checks.positive_int("dim", dim)
        if not callable(lift) and lift is not None:
            raise TypeError(f"expected lift as a function of u, got {type(lift).__name__}")
        data = Replay(checked_sampler(sampler, model), _checks.positive_int("samples", samples))
        estimator = Estimator(model, loss, data, statistics)
        lift = Lift(model, estimator.statistics, seed=seed) if lift is None else lift
        field = EmpiricalField(
            estimator, data, lift, dim=dim, samples=samples, seed=seed, weight_decay=weight_decay
        )
        super().__init__(field, SGDLimit(settings))
        self.samples, self.seed, self.lift = samples, seed, lift
        self.blocks, self.places = _checked_counts(blocks, places)
        self._data = data

    def solve(
        self, u0: Float[Tensor, "*batch k"] | Trajectory,
        times: Float[Tensor, " T"] | Sequence[float] | None = None, *,
        rtol: float | None = None, atol: float | None = None, corrector: bool = True,
        band: bool | Literal["law"] = False,
        initial_covariance: Float[Tensor, "*#batch k k"] | None = None, method: str = "auto",
    ) -> Trajectory:  # fmt: skip
        """Integrate as `EffectiveDynamics.solve` does, with the error of finitely many samples.

        Args:
            u0, times, rtol, atol, corrector, band, initial_covariance, method: as there.

        Returns:
            The predicted `Trajectory`, with its ``error``; ``metadata`` say what that is, and what
            is known of closability.

        Raises:
            ValueError, TypeError, RuntimeError: as there.

        Example:
            >>> import torch, torchlimits as tl
            >>> problem = tl.GaussianMixture.binary(dim=100, snr=2.0)
            >>> dynamics = tl.EmpiricalDynamics(
            ...     problem.model(), problem.loss, problem.sample, problem.statistics,
            ...     step_size=1.0, dim=100, samples=1000,
            ... )
            >>> found = dynamics.solve(problem.starts(1)[0], [0.0, 0.5])
            >>> found.error.shape, found.metadata["error"]
            (torch.Size([2, 7]), 'standard error by 8 blocks of the samples')
        """
        found = super().solve(
            u0, times, rtol=rtol, atol=atol, corrector=corrector, band=band,
            initial_covariance=initial_covariance, method=method,
        )  # fmt: skip
        start = found.initial
        coarse = _COARSE[0] if rtol is None else rtol, _COARSE[1] if atol is None else atol

        def by(data: Replay) -> Tensor:
            part = EffectiveDynamics(self.field.of(data), self.limit)
            return part.solve(
                start, found.times, corrector=corrector, method=method, rtol=coarse[0],
                atol=coarse[1],
            ).values  # fmt: skip

        error, told = block_error(by, self._data, self.blocks)
        facts = {**found.metadata, "error": told, "closability": self._closability(found)}
        return replace(found, error=error, metadata=facts)

    def _closability(self, found: Trajectory) -> str:
        """What a look at the first solution says; a warning where statistics do not close."""
        draws = self.places and "generator" in inspect.signature(self.lift).parameters
        few = self.samples < 2 * BLOCKS or not math.prod(found.values.shape)
        if not draws or few:
            return "nobody has looked whether the statistics close: see torchlimits.closability"
        path = found.run(0)
        ends = {"start": path.initial, "end": path.final}
        seen = {where: self.field.closing(u, self.limit, self.places) for where, u in ends.items()}
        told = ", ".join(f"{closing} at the {where}" for where, closing in seen.items())
        if any(closing.fails for closing in seen.values()):
            _checks.warn_user(
                f"the statistics do not close: du/dt of parameters that share them differs {told}. "
                "What is predicted is that of one kind of parameters; torchlimits.closability "
                "tells more"
            )
            return f"the statistics do not close: du/dt differs {told}"
        return f"a look at {self.places} parameters with the same statistics: du/dt differs {told}"

    def estimate(self, u: Float[Tensor, " k"], step_size: float | None = None) -> Estimate:
        """f, g and Sigma at u, with their standard errors, for plain SGD with batch size 1.

        Args:
            u: shape ``(k,)``.
            step_size: c_delta; by default the settings', or 1 where that is 0.

        Raises:
            ValueError, TypeError: as in `forward`, and as `torchlimits.estimate` does.
        """
        settings = self.limit.settings
        c = (settings.step_size or 1.0) if step_size is None else step_size
        return self.field.estimate(self.checked(u), float(c), float(settings.weight_decay))


def _checked_counts(blocks: int, places: int) -> tuple[int, int]:
    for name, value, least in (("blocks", blocks, 2), ("places", places, 3)):
        if isinstance(value, bool) or not isinstance(value, int) or 0 != value < least:
            raise ValueError(f"expected {name} as 0 or an int >= {least}, got {value!r}")
    return blocks, places

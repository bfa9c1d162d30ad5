"""`Problem`: a model, its data and its loss, with what theory predicts; and `Trainable`."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
from torchlimits.dynamics.reduced_chain import ReducedChain
from torchlimits.optim.listed import Optimizers
from torchlimits.optim.schedule import ScheduleLike
from torchlimits.statistics.summary import SummaryStatistics


@runtime_checkable
class Trainable(Protocol):
    """The part of a `Problem` that `torchlimits.train` needs.

    If a problem also has a number ``ridge``, that is alpha, the weight decay that it is trained
    with; otherwise there is no weight decay.

    Attributes:
        statistics: the summary statistics of its models' parameters.
    """

    statistics: SummaryStatistics

    @property
    def dim(self) -> int:
        """The dimension n of c_delta = lr * n."""
        ...

    def model(
        self, *, replicas: tuple[int, ...] = (), generator: torch.Generator | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> nn.Module:  # fmt: skip
        """A model at its random start.

        Args:
            replicas: leading dimensions of independent models in one module.
            generator: of the start, on the device of the model.
            device, dtype: of the parameters, by default the problem's own.
        """
        ...

    def sample(
        self, batch: int, *, replicas: tuple[int, ...] = (),
        generator: torch.Generator | None = None, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Fresh data (x, y), both of shape ``(*replicas, batch, ...)``.

        Device and dtype are those asked for, whatever those of the model are: for a model that was
        made with ``device=`` or ``dtype=``, ask for the same here.

        Args:
            batch: the number of samples for each model.
            replicas: leading dimensions of independent models.
            generator: of the data, on their device.
            device, dtype: of the data, by default the problem's own, which are those of a model
                that was made without these arguments.

        Raises:
            ValueError: if batch is not an int >= 1, or the generator is on another device.
        """
        ...

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the batch, *summed* over replicas, without the ridge.

        The sum makes one SGD step of the whole module one step of every replica. The ridge is left
        to the optimizer, as its weight decay.

        Args:
            output: what the model returned for x.
            target: y.

        Raises:
            ValueError: if the shapes do not fit.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The problem's parameters, which JSON can hold."""
        ...


@runtime_checkable
class Problem(Trainable, Protocol):
    """A model, its data and its loss, whose summary statistics theory predicts.

    Example:
        >>> import torchlimits as tl
        >>> problem: tl.Problem = tl.SpikedTensor(dim=100, order=2, snr=2.0)
        >>> model, (x, y) = problem.model(), problem.sample(3)
        >>> problem.loss(model(x), y).shape, problem.describe()["snr"]
        (torch.Size([]), 2.0)
        >>> problem.dynamics(step_size=1.0).names == problem.reduced_chain(step_size=1.0).names
        True
    """

    @property
    def names(self) -> list[str]:
        """The names of the summary statistics, in the order of u."""
        ...

    def dynamics(
        self, optimizer: Optimizers | None = None, *,
        step_size: float | Tensor | None = None, momentum: float | Tensor = 0.0,
        batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> EffectiveDynamics:  # fmt: skip
        """The effective dynamics that go with an optimizer, or with c_delta = lr * n.

        Args:
            optimizer: its options are read; limit time is the sum of its learning rates. Several
                that step once for every batch come in a list, in the order in which
                `torchlimits.track` has them; limit time is that of the first.
            step_size: c_delta, instead of an optimizer; 0 is gradient flow, and the ridge is then
                the problem's.
            momentum: with ``step_size``. Both may be tensors of shape () that require a gradient;
                solutions then have one (`EffectiveDynamics.solve`).
            batch_size: the number of fresh samples averaged in one step.
            schedule: c_delta(t), a function of limit time that replaces c_delta, or the
                optimizer's LR scheduler, stepped after every step (a list of them for several
                optimizers); see `torchlimits.optim.schedule`.
            dim: n, if it is not the problem's; 10^9 takes no more memory.

        Raises:
            ValueError: if not exactly one of optimizer and step_size is given, or their values
                are out of range.
            TypeError: if no limit is known for the optimizer.
        """
        ...

    def reduced_chain(
        self, optimizer: Optimizers | None = None, *, step_size: float | None = None,
        momentum: float = 0.0, batch_size: int = 1, schedule: ScheduleLike | None = None,
        dim: int | None = None,
    ) -> ReducedChain:  # fmt: skip
        """The exact law of SGD's statistics at dimension n, drawn without vectors of size n.

        See `ReducedChain.run` and `ReducedChain.law`; arguments and errors are those of `dynamics`.

        Args:
            optimizer, step_size, momentum, batch_size, schedule, dim: as in `dynamics`; Nesterov's
                momentum and dampening are read from the optimizer. A function of limit time gives
                the learning rate of each step at the time at which it begins.
        """
        ...

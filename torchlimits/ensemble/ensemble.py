"""`Ensemble`: the starts, data and steps of replicas of a problem's model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchlimits import _random
from torchlimits._checks import warn
from torchlimits._threads import threads
from torchlimits.contracts.kernel import (
    BrokenKernelError,
    Gradients,
    KnowsGradients,
    NoKernelError,
)
from torchlimits.ensemble.compiled import compiled_gradients
from torchlimits.ensemble.cuda_graph import replayed
from torchlimits.ensemble.data import Data
from torchlimits.ensemble.launches import advanced, kernel_for
from torchlimits.problems.problem import Trainable
from torchlimits.record.tracker import Tracker

#: replicas are drawn and computed in groups: torch's kernels take this many numbers at once and a
#: rest one by one, with other rounding, so that a replica would otherwise depend on their number
_LANES = 32
#: unless a group's numbers in one step are more than these; then every replica is a group
_GROUP_NUMBERS = 2**19
#: numbers that a replica draws at once, for as many steps as they last
_BLOCK_NUMBERS = 2**14


class Ensemble:
    """Starts, data and steps of groups of replicas, all of which depend on the seed and number."""

    def __init__(
        self, problem: Trainable, batch_size: int, seed: int, device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.problem, self.batch_size, self.seed = problem, batch_size, seed
        self.device = device
        #: of models and data
        self.place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.on_cpu = device.type == "cpu"
        parameters, data = self._numbers_of_a_step()
        small = _LANES * (parameters + data) <= _GROUP_NUMBERS
        self.lanes = _LANES if self.on_cpu and small else 1
        self.length = max(1, _BLOCK_NUMBERS // data)

    def _numbers_of_a_step(self) -> tuple[int, int]:
        """How many parameters one replica has, and how many numbers its data."""
        generator = torch.Generator(self.device)
        model = self.problem.model(replicas=(1,), generator=generator, **self.place)
        data = self.problem.sample(
            self.batch_size, replicas=(1,), generator=generator, **self.place
        )
        return sum(p.numel() for p in model.parameters()), sum(d.numel() for d in data)

    def model(self, groups: range) -> nn.Module:
        """All replicas of some groups at their starts, in one module."""
        replicas = (len(groups) * self.lanes,)
        if not self.on_cpu:
            (self._generator,) = _random.generators(self.seed, groups[:1], device=self.device)
            return self.problem.model(replicas=replicas, generator=self._generator, **self.place)
        sources = _random.generators(self.seed, groups)
        parts = [
            self.problem.model(replicas=(self.lanes,), generator=source, **self.place)
            for source in sources
        ]
        model = self.problem.model(replicas=replicas, generator=torch.Generator(), **self.place)
        with torch.no_grad():
            for whole, *pieces in zip(
                model.parameters(), *(part.parameters() for part in parts), strict=True
            ):
                torch.cat(pieces, out=whole)
        return model

    def training(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, tracker: Tracker, groups: range,
        compiled: bool | None, data: Data | None,
    ) -> Generator[None]:  # fmt: skip
        """Step after step, without end; data that are drawn on the CPU come from ``data``."""
        if data is None:
            assert isinstance(optimizer, torch.optim.SGD)
            return self._accelerated(model, optimizer, tracker, groups, compiled)
        gradients = self._closed_form(model) or self._gradients(model)
        if compiled:
            gradients = compiled_gradients(model, self.problem.loss, otherwise=gradients)
        return self._stepping(gradients, optimizer, data)

    def data(self, groups: range) -> Data:
        """The data of all steps of some groups, on the CPU."""
        sample = partial(self.problem.sample, self.batch_size, **self.place)
        sources = _random.generators(self.seed, groups, purpose=1)
        return Data(sample, sources, lanes=self.lanes, length=self.length)

    def _accelerated(
        self, model: nn.Module, optimizer: torch.optim.SGD, tracker: Tracker, groups: range,
        compiled: bool | None,
    ) -> Generator[None]:  # fmt: skip
        """Train by the problem's own kernel, or by steps of autograd and torch.optim in a graph."""
        if compiled is not False:
            # a seed of the data's own: starts are drawn by the same algorithm, which would meet the
            # same numbers under the same key
            (source,) = _random.generators(self.seed, groups[:1], purpose=1)
            seed = int(torch.randint(2**62, (), generator=source, device="cpu"))
            try:
                kernel = kernel_for(
                    self.problem, model, optimizer, batch_size=self.batch_size, seed=seed
                )
            except NoKernelError as error:
                if compiled:
                    raise
                if isinstance(error, BrokenKernelError):
                    warn(f"training goes on by captured steps, which take longer: {error}")
            else:
                return advanced(kernel, tracker)
        gradients = self._gradients(model)
        options: dict[str, Any] = {"replicas": (next(model.parameters()).shape[0],), **self.place}

        def step() -> None:
            x, y = self.problem.sample(self.batch_size, generator=self._generator, **options)
            gradients(x, y)
            optimizer.step()
            # the gradients of eager steps would lie beside the graph's
            optimizer.zero_grad()

        return replayed(step, self._generator, tracker)

    def _stepping(
        self, gradients: Gradients, optimizer: torch.optim.Optimizer, data: Data
    ) -> Generator[None]:
        workers = max(1, torch.get_num_threads() // 2)
        own = max(1, torch.get_num_threads() - workers)
        with closing(data.stream(workers)) as drawn, threads(own):
            for x, y in drawn:
                gradients(x, y)
                optimizer.step()
                yield

    def _closed_form(self, model: nn.Module) -> Gradients | None:
        """The problem's own gradients, where it has some for this model."""
        if not isinstance(self.problem, KnowsGradients):
            return None
        try:
            return self.problem.gradients(model)
        except NoKernelError:
            return None

    def _gradients(self, model: nn.Module) -> Gradients:
        parameters = list(model.parameters())

        def set_all(x: Tensor, y: Tensor) -> None:
            loss = self.problem.loss(model(x), y)
            # zero_grad and Tensor.backward would take a twentieth of the step
            for parameter in parameters:
                parameter.grad = None
            torch.autograd.backward(loss)

        return set_all

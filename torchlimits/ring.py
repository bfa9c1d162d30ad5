"""Rings: where a `Tracker` puts what a step leaves behind until there is enough to evaluate."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from torchlimits.statistics import Parameters, SummaryStatistics

#: a ring on the CPU stays in the cache: a larger one costs more in memory traffic than it saves
_CACHE_BYTES = 2**22
#: no more snapshots are evaluated at once: that would cost time at a flush, and gain none
_MOST = 4096


class Ring(ABC):
    """Room for `capacity` records; `take` returns those since the last `take`, as statistics."""

    def __init__(self, statistics: SummaryStatistics, parameters: Parameters, capacity: int):
        self.statistics = statistics
        self.parameters = dict(parameters)
        self.capacity = capacity
        self.filled = 0
        self.names = statistics.names_of(_exact(self.parameters))

    @property
    def full(self) -> bool:
        """Whether the next `store` has no room."""
        return self.filled >= self.capacity

    def _stacked(self, rows: list[Tensor]) -> tuple[Tensor, ValueError | None]:
        """Rows up to the first of another shape than at step 0, and what to say of that one."""
        k = len(self.names)
        good = list(itertools.takewhile(lambda row: row.shape == (*rows[0].shape[:-1], k), rows))
        stacked = torch.stack(good) if good else torch.empty(0, k)
        if len(good) == len(rows):
            return _runs_first(stacked), None
        return _runs_first(stacked), ValueError(
            f"the statistics changed shape: expected {k} entries "
            f"({', '.join(self.names[:4])} ...) as at step 0, got {rows[len(good)].shape[-1]}: "
            "return tensors of a fixed shape"
        )

    @abstractmethod
    def store(self) -> None:
        """Record the parameters' present values; called after every recorded step."""

    @abstractmethod
    def take(self) -> tuple[Tensor, ValueError | None]:
        """The new records' statistics, (..., T, k) in float64 on the CPU, which makes room.

        If a statistic changed its shape, the records before, and the error.
        """

    @abstractmethod
    def resume(self, records: int) -> None:
        """Forget what was stored; the next record is the one after so many."""


class SnapshotRing(Ring):
    """Copies of the parameters, made by one fused kernel a step, evaluated all at once.

    Matrix products of a batch depend, in the last bits, on the batch's size and on the place in it.
    So every slot is evaluated in every `take`, old copies too, and a record has the slot that its
    number gives it: whenever a flush or a checkpoint comes, the rows are the same bit for bit.
    """

    def __init__(
        self,
        statistics: SummaryStatistics,
        parameters: Parameters,
        capacity: int,
    ) -> None:
        super().__init__(statistics, parameters, capacity)
        self._sources = list(self.parameters.values())
        self._alias()
        self._buffers = [p.expand(capacity, *p.shape).clone() for p in self._detached]
        # the slots' views are made once: making them at every step would cost more than the copy
        self._slots = list(zip(*(buffer.unbind() for buffer in self._buffers), strict=True))
        self._taken = 0  # the slots before hold records that were taken
        self._vectorised = True

    def store(self) -> None:
        """One copy kernel; no autograd, no synchronisation."""
        for parameter, address in zip(self._sources, self._addresses, strict=True):
            if parameter.data_ptr() != address:  # moved, by module.to(...) for instance
                self._alias()
                break
        torch._foreach_copy_(  # type: ignore[reportPrivateImportUsage]
            self._slots[self.filled], self._detached
        )
        self.filled += 1

    def _alias(self) -> None:
        # the same memory without gradient: cheaper at every step than entering no_grad
        self._detached = [p.detach() for p in self._sources]
        self._addresses = [p.data_ptr() for p in self._sources]

    def take(self) -> tuple[Tensor, ValueError | None]:
        """Evaluate the statistics for all snapshots at once."""
        new = slice(self._taken, self.filled)
        self.resume(self.filled)
        with torch.no_grad():
            if self._vectorised:
                try:
                    return _runs_first(self._evaluate(self._stored(slice(None)))[new]), None
                except RuntimeError:
                    # .item(), data-dependent control flow, numpy: fine, one snapshot at a time
                    self._vectorised = False
            rows = range(new.start, new.stop)
            return self._stacked([self.statistics(self._stored(row)) for row in rows])

    def resume(self, records: int) -> None:
        """Go on at the slot of the next record."""
        self._taken = self.filled = records % self.capacity

    def _stored(self, slots: slice | int) -> dict[str, Tensor]:
        buffers = zip(self.parameters, self._buffers, strict=True)
        return _exact({name: buffer[slots] for name, buffer in buffers})

    def _evaluate(self, stored: dict[str, Tensor]) -> Tensor:
        if self.statistics.parameter_dims is not None:
            return self.statistics(stored)
        return torch.func.vmap(self.statistics)(stored)


class EvaluatedRing(Ring):
    """The statistics themselves, evaluated at every step: for models too large to be copied."""

    def __init__(self, statistics: SummaryStatistics, parameters: Parameters) -> None:
        super().__init__(statistics, parameters, capacity=1024)
        self._rows: list[Tensor] = []

    def store(self) -> None:
        """Evaluate now; the values stay on their device until they are taken."""
        with torch.no_grad():
            self._rows.append(self.statistics(_exact(self.parameters)))
        self.filled += 1

    def take(self) -> tuple[Tensor, ValueError | None]:
        """The stored values."""
        rows = self._rows
        self.resume(0)
        return self._stacked(rows)

    def resume(self, records: int) -> None:
        """Forget the stored values."""
        self._rows, self.filled = [], 0


def ring_for(statistics: SummaryStatistics, parameters: Parameters, max_bytes: int) -> Ring:
    """A `SnapshotRing` of at most ``max_bytes``, or an `EvaluatedRing` if no snapshot fits."""
    read = {name: parameters[name] for name in statistics.parameters_read(parameters)}
    size = sum(p.nbytes for p in read.values())
    if size > max_bytes:
        return EvaluatedRing(statistics, parameters)
    on_cpu = all(p.device.type == "cpu" for p in read.values())
    wanted = max(_CACHE_BYTES // size, 1) if on_cpu else _MOST
    return SnapshotRing(statistics, read, capacity=min(max_bytes // size, wanted, _MOST))


def _runs_first(rows: Tensor) -> Tensor:
    """(T, ..., k) as (..., T, k), in float64 on the CPU."""
    return rows.movedim(0, -2).to("cpu", torch.float64)


def _exact(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half-precision parameters in float32, so that sums over many entries keep their digits."""
    half = (torch.float16, torch.bfloat16)
    return {n: p.detach().float() if p.dtype in half else p.detach() for n, p in parameters.items()}

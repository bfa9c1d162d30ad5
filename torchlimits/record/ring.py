"""Rings: where a `Tracker` puts what a step leaves behind until there is enough to evaluate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from torchlimits import _checks
from torchlimits._exact import exactly
from torchlimits.record.own_parameters import OwnParameters, whole
from torchlimits.statistics.summary import StatisticError, SummaryStatistics

#: a ring on the CPU stays in the cache: a larger one costs more in memory traffic than it saves
_CACHE_BYTES = 2**22
#: room for snapshots that is taken on any device
_LEAST_BYTES = 2**26
#: no more snapshots are evaluated at once: that would cost time at a flush, and gain none
_MOST = 4096


class Ring(ABC):
    """Room for `capacity` records; `take` returns those since the last `take`, as statistics.

    Args:
        statistics: what to evaluate.
        parameters: those that the statistics read.
        present: their present values.
        capacity: how many records there is room for.
    """

    def __init__(
        self, statistics: SummaryStatistics, parameters: OwnParameters,
        present: Mapping[str, Tensor], capacity: int,
    ) -> None:  # fmt: skip
        self.statistics, self.parameters = statistics, parameters
        self.capacity, self.filled = capacity, 0
        with exactly():
            self.shapes = statistics.shapes_of(dict(_Exact(present)))
        self.names = statistics.entry_names(self.shapes)
        self._sources = list(parameters.tensors.values())
        self._kinds = [_kind(p) for p in self._sources]

    @property
    def full(self) -> bool:
        """Whether the next `store` has no room."""
        return self.filled >= self.capacity

    def _row(self, parameters: dict[str, Tensor]) -> Tensor:
        """The statistics, shaped as at step 0, or an error that names one of them."""
        row = self.statistics(parameters)
        if row.shape[-1] == len(self.names):
            return row
        now = self.statistics.shapes_of(parameters)
        names = [name for name, shape in now.items() if shape != self.shapes[name]]
        before, after = ({name: shapes[name] for name in names} for shapes in (self.shapes, now))
        raise StatisticError(
            f"statistics changed shape: expected {before} as at step 0, got {after}: return "
            f"tensors of a fixed shape; they were given {_checks.shapes(parameters)}"
        )

    def _stacked(self, rows: list[Tensor]) -> Tensor:
        return _runs_first(
            torch.stack(rows) if rows else torch.empty(0, len(self.names), device="cpu")
        )

    @abstractmethod
    def store(self) -> bool:
        """Record the parameters' present values; called after every recorded step.

        False, and nothing is recorded, if they are of another dtype, device or shape than before or
        were replaced in the model: another ring must take over.
        """

    def gather(self) -> None:
        """Take part when the parameters are gathered for a record that is made elsewhere."""
        for parameter in self._sources:
            whole(parameter)

    def _same_kinds(self) -> bool:
        return self._kinds == [_kind(p) for p in self._sources]

    @abstractmethod
    def take(self) -> tuple[Tensor, Exception | None]:
        """Evaluate the new records and make room; (..., T, k) in float64 on the CPU, and None.

        If a statistic failed or changed its shape: the records before that, and the error.
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
        self, statistics: SummaryStatistics, parameters: OwnParameters,
        present: Mapping[str, Tensor], capacity: int,
    ) -> None:  # fmt: skip
        super().__init__(statistics, parameters, present, capacity)
        self._alias()
        self._buffers = [p.expand(capacity, *p.shape).clone() for p in present.values()]
        # the slots' views are made once: making them at every step would cost more than the copy
        self._slots = list(zip(*(buffer.unbind() for buffer in self._buffers), strict=True))
        self._taken = 0  # the slots before hold records that were taken
        self._vectorised = True

    def store(self) -> bool:
        """Copy the parameters by one kernel, without autograd and without synchronisation."""
        if self.parameters.replaced():
            return False
        for parameter, address in zip(self._sources, self._addresses, strict=True):
            if parameter.data_ptr() != address:  # moved, by module.to(...) for instance
                if not self._same_kinds():
                    return False
                self._alias()
                break
        self._copy(self._detached)
        return True

    def _copy(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(  # type: ignore[reportPrivateImportUsage]
            self._slots[self.filled], values
        )
        self.filled += 1

    def _alias(self) -> None:
        # the same memory without gradient: cheaper at every step than entering no_grad
        self._detached = [p.detach() for p in self._sources]
        self._addresses = [p.data_ptr() for p in self._sources]

    def take(self) -> tuple[Tensor, Exception | None]:
        """Evaluate the statistics for all snapshots at once."""
        new = slice(self._taken, self.filled)
        self.resume(self.filled)
        _await_stores(self._buffers)
        with exactly():
            if self._vectorised:
                try:
                    return self._all_at_once(new), None
                except torch.OutOfMemoryError:
                    pass  # one snapshot at a time this time; there may be room at the next
                except (RuntimeError, TypeError, ValueError):
                    # .item(), data-dependent control flow, numpy: fine, one snapshot at a time;
                    # if a statistic fails, that says where
                    self._vectorised = False
            rows: list[Tensor] = []
            try:
                for row in range(new.start, new.stop):
                    rows.append(self._row(self._stored(row)))
            except (TypeError, ValueError, torch.OutOfMemoryError) as error:
                return self._stacked(rows), error
            return self._stacked(rows), None

    def resume(self, records: int) -> None:
        """Go on at the slot of the next record."""
        self._taken = self.filled = records % self.capacity

    def _stored(self, slots: slice | int) -> dict[str, Tensor]:
        buffers = zip(self.parameters, self._buffers, strict=True)
        return dict(_Exact({name: buffer[slots] for name, buffer in buffers}))

    def _all_at_once(self, new: slice) -> Tensor:
        replicated = self.statistics.parameter_dims is not None
        of_all = self._row if replicated else torch.func.vmap(self._row)
        return _runs_first(of_all(self._stored(slice(None)))[new])


class GatheredRing(SnapshotRing):
    """Copies of parameters that several processes share, gathered for each record."""

    def store(self) -> bool:
        """Gather and copy; all processes have to come here, or to `gather`, at the same step."""
        self._copy([whole(p) for p in self._sources])
        return True


class EvaluatedRing(Ring):
    """The statistics themselves, evaluated at every step: for models too large to be copied.

    It is full after 1024 records, or when they have ``max_bytes``.
    """

    def __init__(
        self, statistics: SummaryStatistics, parameters: OwnParameters,
        present: Mapping[str, Tensor], max_bytes: int,
    ) -> None:  # fmt: skip
        super().__init__(statistics, parameters, present, capacity=1024)
        self._max_bytes = max_bytes
        self._rows: list[Tensor] = []
        self._error: Exception | None = None

    def store(self) -> bool:
        """Evaluate now; the values stay on their device until they are taken."""
        if self.parameters.replaced() or not self._same_kinds():
            return False
        if self._error is None:
            try:
                with exactly():
                    self._rows.append(self._row(dict(_Exact(self.parameters))))
            except (TypeError, ValueError) as error:  # of this record and no later one
                self._error = error
        else:
            self.gather()  # other processes wait for this one
        self.filled += 1
        return True

    @property
    def full(self) -> bool:
        """Whether the rows are as many, or as large, as they may be."""
        held = len(self._rows) * self._rows[-1].nbytes if self._rows else 0
        return super().full or held >= self._max_bytes

    def take(self) -> tuple[Tensor, Exception | None]:
        """Hand over the stored values."""
        rows, error = self._rows, self._error
        self.resume(0)
        _await_stores(rows[-1:])
        return self._stacked(rows), error

    def resume(self, records: int) -> None:
        """Forget the stored values."""
        self._rows, self._error, self.filled = [], None, 0


def ring_for(
    statistics: SummaryStatistics, parameters: OwnParameters, max_bytes: int | None
) -> Ring:
    """Make a `SnapshotRing` of at most ``max_bytes``, or an `EvaluatedRing` if not even two fit.

    Without ``max_bytes``: 64 MiB or, if that is more, a 64th of a CUDA device's memory.
    """
    before = parameters.versions()
    with exactly():
        names = statistics.parameters_read(_Exact(parameters), parameters.tensors)
    read = parameters.select(names)
    changed = [name for name, version in parameters.versions().items() if version != before[name]]
    if changed:
        raise ValueError(
            f"expected statistics that leave the parameters alone, got some that changed {changed} "
            "in place, and the model with them: use x.mul(...) for x.mul_(...), or a .clone()"
        )
    if not read:
        raise ValueError(
            "expected statistics that are functions of the parameters they are given, got some "
            "that read none: use the argument, as in lambda p: p['weight'].norm(), not the model"
        )
    # gathered once, whatever the ring: processes do so together
    present = dict(read)
    statistics = statistics.near(_Exact(present))
    # empty ones take no room
    size = max(sum(p.nbytes for p in present.values()), 1)
    max_bytes = _room(present.values()) if max_bytes is None else max_bytes
    on_cpu = all(p.device.type == "cpu" for p in present.values())
    capacity = min(max_bytes // size, _CACHE_BYTES // size if on_cpu else _MOST, _MOST)
    if capacity < 2:
        return EvaluatedRing(statistics, read, present, max_bytes)
    kind = GatheredRing if read.sharded else SnapshotRing
    try:
        return kind(statistics, read, present, capacity)
    except torch.OutOfMemoryError:
        if max_bytes <= _LEAST_BYTES:
            raise
        return ring_for(statistics, parameters, _LEAST_BYTES)


def _await_stores(stored: Iterable[Tensor]) -> None:
    # the caller's stream need not be that of the steps: the loop may have had one of its own, or
    # go on in another thread
    for device in {x.device for x in stored if x.is_cuda}:
        torch.cuda.synchronize(device)


def _room(present: Iterable[Tensor]) -> int:
    """Bytes for snapshots: large models should not be evaluated at every step."""
    devices = {p.device for p in present if p.is_cuda}
    memory = [torch.cuda.get_device_properties(device).total_memory for device in devices]
    return max([_LEAST_BYTES, *(total // 64 for total in memory)])


def _runs_first(rows: Tensor) -> Tensor:
    """(T, ..., k) as (..., T, k), in float64 on the CPU."""
    return rows.movedim(0, -2).to("cpu", torch.float64)


def _kind(parameter: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return parameter.shape, parameter.dtype, parameter.device


class _Exact(Mapping[str, Tensor]):
    """Half-precision parameters in float32, so that sums over many entries keep their digits."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name].detach()
        half = parameter.dtype in (torch.float16, torch.bfloat16)
        return parameter.float() if half else parameter

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

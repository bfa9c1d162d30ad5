"""Rings: where a `Tracker` puts what a step leaves behind until there is enough to evaluate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from torchlimits import _checks
from torchlimits.record.evaluation import Surroundings, exact
from torchlimits.record.followed import Followed
from torchlimits.record.model_state import ModelState
from torchlimits.record.own_names import unwrapped
from torchlimits.record.replicas import Replicated
from torchlimits.record.trial import Trial, tried
from torchlimits.statistics.statistic_error import StatisticError
from torchlimits.statistics.summary import SummaryStatistics

#: a ring on the CPU stays in the cache: a larger one costs more in memory traffic than it saves
_CACHE_BYTES = 2**22
#: the room that snapshots may take on any device
_LEAST_BYTES = 2**26
#: no more snapshots are evaluated at once: that would cost time at a flush, and gain none
_MOST = 4096


class Ring(ABC):
    """Room for the records of `capacity` consecutive numbers; `take` returns their statistics.

    It does not know which of its records were taken: whoever was interrupted takes them again.

    Args:
        trial: the statistics, and what they read.
        followed: the tensors that they read.
        surroundings: how to evaluate.
        capacity: for how many records there is room.
    """

    def __init__(
        self, trial: Trial, followed: Followed, surroundings: Surroundings, capacity: int
    ) -> None:
        self.followed, self.surroundings, self.capacity = followed, surroundings, capacity
        self.statistics, self.shapes = trial.statistics, trial.shapes
        self.names = self.statistics.entry_names(self.shapes)
        self._columns = _columns_of(trial)
        # the numbers of records without some gradients, and the columns without a value there
        self._undefined: dict[int, list[int]] = {}

    def full(self, first: int, number: int) -> bool:
        """Whether there is no room for record ``number`` beside those since ``first``."""
        return number // self.capacity > first // self.capacity

    def _row(self, tensors: dict[str, Tensor]) -> Tensor:
        """The statistics, shaped as at step 0, or an error that names one of them."""
        row = self.statistics(tensors)
        if row.is_meta:
            values = self.statistics.values_of(tensors).items()
            raise StatisticError(
                "expected statistics to return tensors with values, got "
                f"{[name for name, value in values if value.is_meta]} on the meta device; they "
                f"were given {_checks.shapes(tensors)}"
            )
        if row.shape[-1] == len(self.names):
            return row
        now = self.statistics.shapes_of(tensors)
        names = [name for name, shape in now.items() if shape != self.shapes[name]]
        before, after = ({name: shapes[name] for name in names} for shapes in (self.shapes, now))
        raise StatisticError(
            f"statistics changed shape: expected {before} as at step 0, got {after}: return "
            f"tensors of a fixed shape; they were given {_checks.shapes(tensors)}"
        )

    def _stacked(self, rows: list[Tensor]) -> Tensor:
        if not rows:
            return torch.empty(0, len(self.names), dtype=torch.float64, device="cpu")
        # a statistic may be on another device than it was at first
        return _runs_first(torch.stack([row.to(rows[0].device) for row in rows]))

    def store(self, number: int) -> bool:
        """Record the present values; called after every step that is to be recorded.

        False, and nothing is recorded, if they are of another dtype, device or shape than before or
        were replaced in the model: another ring must take over.

        Args:
            number: the record's number, one more than the last.

        Raises:
            ValueError: if an optimizer does not keep what a statistic reads.
        """
        try:
            values = self.followed.present()
        except KeyError as error:
            raise ValueError(
                f"expected an optimizer that keeps {error}, which a statistic reads, got one that "
                "does not: use a name that is in optimizer.state after a step"
            ) from error
        if values is None:
            return False
        if self.followed.without or self._undefined:
            self.mark(number, self.followed.without)
        self._put(number, values)
        return True

    def mark(self, number: int, without: Iterable[str]) -> None:
        """Note that there are no such gradients at a record, and no statistics that read them."""
        columns = sorted({one for name in without for one in self._columns[name]})
        if columns:
            self._undefined[number] = columns
        else:
            self._undefined.pop(number, None)

    @abstractmethod
    def _put(self, number: int, values: list[Tensor]) -> None:
        """Keep the values, or what the statistics make of them."""

    def take(self, numbers: Sequence[int]) -> tuple[Tensor, Exception | None]:
        """Evaluate records: (..., T, k) in float64 on the CPU, and None.

        If a statistic failed or changed its shape, the records before that, and the error.
        Statistics of gradients that were not there are NaN.
        """
        values, error = self._taken(numbers)
        for row, columns in self.undefined(numbers[: values.shape[-2]]).items():
            values[..., row, columns] = torch.nan
        return values, error

    @abstractmethod
    def _taken(self, numbers: Sequence[int]) -> tuple[Tensor, Exception | None]: ...

    def undefined(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        """The columns that may be NaN at records, by their places among the ``numbers``."""
        known = self._undefined
        if not known:
            return {}
        return {row: known[number] for row, number in enumerate(numbers) if number in known}

    def forget(self, before: float = math.inf) -> None:
        """Forget what is known of records before a number, or of all."""
        for number in [one for one in self._undefined if one < before]:
            del self._undefined[number]


class SnapshotRing(Ring):
    """Copies of the tensors, made by one fused kernel at each step and evaluated all at once.

    Matrix products of a batch depend, in the last bits, on the batch's size and on the place in it.
    So every slot is evaluated in every `take`, old copies too, and a record has the slot that its
    number gives it: whenever a flush or a checkpoint comes, the rows are the same bit for bit.
    """

    def __init__(
        self, trial: Trial, followed: Followed, surroundings: Surroundings, capacity: int,
        present: Iterable[Tensor],
    ) -> None:  # fmt: skip
        super().__init__(trial, followed, surroundings, capacity)
        # not inference tensors, whatever the mode: they are written into at every step
        with torch.inference_mode(False), torch.no_grad():
            self._buffers = [p.expand(capacity, *p.shape).clone() for p in present]
            # the slots' views are made once: that costs more than the copy
            self._slots = list(zip(*(buffer.unbind() for buffer in self._buffers), strict=True))
        self._vectorised = not surroundings.draws

    def _put(self, number: int, values: list[Tensor]) -> None:
        """Copy the tensors by one kernel, without autograd and without synchronisation."""
        # numpy would take two thirds of the time, but `share_memory_` frees the memory of its views
        torch._foreach_copy_(  # type: ignore[reportPrivateImportUsage]
            self._slots[number % self.capacity], values
        )

    def _taken(self, numbers: Sequence[int]) -> tuple[Tensor, Exception | None]:
        """Evaluate the statistics for all snapshots at once."""
        _await_stores(self._buffers)
        slots = [number % self.capacity for number in numbers]
        with self.surroundings.entered():
            if self._vectorised:
                try:
                    return self._all_at_once(slots), None
                except torch.OutOfMemoryError:
                    pass  # one snapshot at a time, this once; next time there may be room
                except (RuntimeError, TypeError, ValueError):
                    # .item(), data-dependent control flow, numpy: fine, one snapshot at a time,
                    # which also says where, if a statistic fails
                    self._vectorised = False
            rows: list[Tensor] = []
            try:
                for slot in slots:
                    with self.surroundings.row():
                        rows.append(self._row(self._stored(slot)))
            except (TypeError, ValueError, torch.OutOfMemoryError) as error:
                return self._stacked(rows), error
            return self._stacked(rows), None

    def _stored(self, slots: slice | int) -> dict[str, Tensor]:
        buffers = zip(self.followed, self._buffers, strict=True)
        return {name: exact(buffer[slots]) for name, buffer in buffers}

    def _all_at_once(self, slots: list[int]) -> Tensor:
        replicated = self.statistics.parameter_dims is not None
        of_all = self._row if replicated else torch.func.vmap(self._row)
        rows = of_all(self._stored(slice(None)))
        # records are consecutive: no copy of the others
        return _runs_first(rows[slots[0] : slots[0] + len(slots)])


class EvaluatedRing(Ring):
    """The statistics themselves, evaluated at every step: for models too large to be copied.

    It is full after 1024 records, or where one more would exceed ``max_bytes``.
    """

    def __init__(
        self, trial: Trial, followed: Followed, surroundings: Surroundings, max_bytes: int
    ) -> None:
        super().__init__(trial, followed, surroundings, capacity=1024)
        self._max_bytes = max_bytes
        self._rows: dict[int, Tensor] = {}
        self._row_bytes = 0
        self._error: tuple[int, Exception] | None = None

    def _put(self, number: int, values: list[Tensor]) -> None:
        """Evaluate now; the values stay on their device until they are taken."""
        if self._error is not None and self._error[0] < number:
            return
        try:
            with self.surroundings.entered(), self.surroundings.row():
                tensors = zip(self.followed, map(exact, values), strict=True)
                row = self._row(dict(tensors))
            self._row_bytes, self._rows[number] = row.nbytes, row
        except (TypeError, ValueError) as error:  # the error of this record and no later one
            self._error = number, error

    def full(self, first: int, number: int) -> bool:
        """Whether the rows are as many as there may be, or one more would be too much."""
        held = (len(self._rows) + 1) * self._row_bytes
        return number - first >= self.capacity or held > self._max_bytes

    def _taken(self, numbers: Sequence[int]) -> tuple[Tensor, Exception | None]:
        """Hand over the stored values."""
        found = [self._rows[number] for number in numbers if number in self._rows]
        _await_stores(found[-1:])
        failed = self._error is not None and self._error[0] in numbers
        return self._stacked(found), self._error[1] if failed and self._error else None

    def forget(self, before: float = math.inf) -> None:
        """Forget the values of records before a number."""
        super().forget(before)
        for number in [one for one in self._rows if one < before]:
            del self._rows[number]
        if self._error is not None and self._error[0] < before:
            self._error = None


def ring_of(
    statistics: SummaryStatistics, state: ModelState, surroundings: Surroundings,
    max_bytes: int | None,
) -> Ring:  # fmt: skip
    """Make a `SnapshotRing` of at most ``max_bytes``, or an `EvaluatedRing` if not even two fit.

    Without ``max_bytes``: 64 MiB or, if that is more, a 64th of a CUDA device's memory.

    Raises:
        ValueError, TypeError: if the statistics cannot be recorded, see `tried`.
    """
    trial = tried(_of_model(statistics, state.model), state, surroundings)
    followed = Followed(state, trial.names, all_there_are=trial.lists)
    # gathered once, whatever the ring: the processes gather together
    present = dict(followed)
    trial = trial.near({name: exact(value) for name, value in present.items()})
    on_cpu = all(p.device.type == "cpu" for p in present.values())
    # empty ones take no room
    size = max(sum(p.nbytes for p in present.values()), 1)
    for room in [_room(present.values()) if max_bytes is None else max_bytes, _LEAST_BYTES]:
        capacity = min(room // size, _CACHE_BYTES // size if on_cpu else _MOST, _MOST)
        if capacity < 2:
            return EvaluatedRing(trial, followed, surroundings, room)
        try:
            return SnapshotRing(trial, followed, surroundings, capacity, present.values())
        except torch.OutOfMemoryError:
            if room <= _LEAST_BYTES:
                raise
    raise AssertionError("unreachable")


def _of_model(statistics: SummaryStatistics, model: nn.Module) -> SummaryStatistics:
    """The statistics of the user's own module: of all copies, if it holds several."""
    own = unwrapped(model)
    return own.statistics(statistics) if isinstance(own, Replicated) else statistics.bound(own)


def _columns_of(trial: Trial) -> dict[str, list[int]]:
    """The columns of the statistics that read each tensor."""
    columns: dict[str, list[int]] = {name: [] for name in trial.names}
    end = 0
    for statistic, shape in trial.shapes.items():
        begin, end = end, end + len(trial.statistics.entry_names({statistic: shape}))
        for name in trial.reads[statistic]:
            columns[name] += range(begin, end)
    return columns


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

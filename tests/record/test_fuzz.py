"""Whatever is recorded, whenever and wherever to: drawn at random, compared with a plain loop.

In CI each test has 50 examples, the same ones every time. For a thousand new ones each (some
minutes), with a line to reproduce what fails::

    pytest tests/record/test_fuzz.py tests/record/test_hostile.py --hypothesis-profile=nightly

or ``HYPOTHESIS_PROFILE=nightly`` in the environment; the profiles are in ``tests/conftest.py``.
"""

import contextlib
import copy
import csv
import gc
import itertools
import math
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from expressions import FLOATS, expressions
from full_disks import files_end_at
from hypothesis import assume, event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import torchlimits as tl
from torchlimits.files import rows as row_layout
from torchlimits.files.rows import STATE_BYTES, Header
from torchlimits.record.recording import Recording

# --- what is trained ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """A parameter to be made."""

    name: str
    shape: tuple
    dtype: torch.dtype
    layout: str
    scale: float

    def make(self, generator):
        """The same numbers in every layout."""
        numbers = torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.scale
        numbers = numbers.to(self.dtype)
        if self.layout == "strided":
            wide = torch.zeros(*self.shape, 2, dtype=self.dtype)
            wide[..., 1] = numbers
            return wide[..., 1]
        if self.layout == "transposed":
            axes = tuple(range(len(self.shape)))[::-1]
            return numbers.permute(axes).contiguous().permute(axes)
        return numbers


@dataclass(frozen=True)
class Training:
    """A loop that can be begun anew: everything in it follows from the number of the step."""

    weights: list
    tied: bool
    rates: list
    momentum: float
    decay: float

    def begin(self):
        """Model and optimizer as they are before step 1."""
        generator = torch.Generator().manual_seed(0)
        model, inner = torch.nn.Module(), torch.nn.Module()
        model.add_module("inner", inner)
        for weight in self.weights:
            parameter = torch.nn.Parameter(weight.make(generator))
            *modules, leaf = weight.name.split(".")
            (inner if modules else model).register_parameter(leaf, parameter)
            if self.tied:
                inner.register_parameter(f"again_{leaf}", parameter)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=self.rates[0], momentum=self.momentum, weight_decay=self.decay
        )
        return model, optimizer

    def take(self, model, optimizer, step):
        """The step of this number."""
        optimizer.param_groups[0]["lr"] = self.rate(step)
        optimizer.zero_grad()
        noise = torch.Generator().manual_seed(step)
        losses = [
            (p - torch.randn(p.shape, generator=noise).to(p.dtype)).square().sum().double() / 2
            for p in model.parameters()
        ]
        sum(losses).backward()
        optimizer.step()

    def rate(self, step):
        """The learning rate of a step."""
        return self.rates[step % len(self.rates)]


_NAMES = ["a", "inner.b", "c"]
# and one whose products may depend in the last bits on how many are computed at once
_SHAPES = st.lists(st.sampled_from([1, 2, 3, 0, 4]), max_size=3) | st.just([8, 30])


@st.composite
def trainings(draw):
    """Of one to three parameters, all sorts."""
    weights = [
        Weight(
            name,
            tuple(draw(_SHAPES)),
            draw(st.sampled_from(FLOATS)),
            draw(st.sampled_from(["plain", "transposed", "strided"])),
            draw(st.sampled_from([1.0, 0.01, 10.0])),
        )
        for name in _NAMES[: draw(st.integers(1, 3))]
    ]
    rates = st.sampled_from([0.1, 0.01, 1 / 3, 0.0, 1e-20])
    return Training(
        weights,
        tied=draw(st.booleans()),
        rates=[draw(st.sampled_from([0.1, 0.3])), *draw(st.lists(rates, max_size=3))],
        momentum=draw(st.sampled_from([0.0, 0.9])),
        decay=draw(st.sampled_from([0.0, 0.1])),
    )


# --- what is recorded, when and where to ----------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A tracked training, event by event."""

    training: Training
    statistics: dict
    every: int
    max_bytes: int
    suffix: str | None
    writer: str | None
    events: list


_EVENTS = {
    **{name: [name] for name in ("step", "flush", "look", "save", "back", "crash", "move")},
    "steps": ["step"] * 3,
    "again": ["save", "step", "step", "flush", "back", "step"],
    "resumed": ["save", "step", "step", "flush", "crash", "step"],
}


@st.composite
def plans(draw):
    """Of all of it."""
    training = draw(trainings())
    parameters = dict(training.begin()[0].named_parameters())
    size = max(sum(p.nbytes for p in parameters.values()), 1)
    return Plan(
        training,
        {f"u{i}": draw(expressions(parameters)) for i in range(draw(st.integers(1, 6)))},
        every=draw(st.sampled_from([1, 1, 2, 3])),
        max_bytes=draw(st.sampled_from([64 * 2**20, 1, size, 3 * size, 8 * size])),
        suffix=draw(st.sampled_from([None, ".npz", ".rows"])),
        writer=draw(st.sampled_from([None, "CSV", "function"])),
        events=[
            event
            for name in draw(st.lists(st.sampled_from(sorted(_EVENTS)), min_size=4, max_size=16))
            for event in _EVENTS[name]
        ],
    )


class Tracked:
    """The tracked training of a plan; what is seen of it is kept in ``seen``."""

    def __init__(self, plan, folder):
        self.plan, self.folder = plan, folder
        self.path = None if plan.suffix is None else folder / f"u{plan.suffix}"
        self.calls, self.seen, self.saved = [], [], None
        self.begin()
        for what in plan.events:
            getattr(self, what)()
        self.tracker.close()

    def begin(self):
        """As a program does at its start."""
        self.model, self.optimizer = self.plan.training.begin()
        self.number = 0
        writers = {"CSV": lambda: tl.CSV(self.folder / "u.csv"), "function": lambda: self.log}
        self.tracker = tl.track(
            self.model,
            self.optimizer,
            self.plan.statistics,
            every=self.plan.every,
            max_bytes=self.plan.max_bytes,
            path=self.path,
            writer=writers.get(self.plan.writer, lambda: None)(),
        )

    def log(self, row, step):
        self.calls.append((step, list(row.values())))

    def step(self):
        self.number += 1
        self.plan.training.take(self.model, self.optimizer, self.number)

    def flush(self):
        self.tracker.flush()

    def look(self):
        """In the middle of the run, at memory and disk."""
        trajectory = self.tracker.trajectory()
        self.seen.append((self.number, trajectory))
        if self.path is not None:
            on_disk = tl.Trajectory.load(self.path.with_name(self.path.name + ".unfinished"))
            assert same(on_disk, trajectory)

    def save(self):
        """A checkpoint."""
        parts = (self.tracker, self.model, self.optimizer)
        self.saved = copy.deepcopy([self.number, *(part.state_dict() for part in parts)])

    def back(self):
        """To the checkpoint, in this program."""
        if self.saved is not None:
            self.number, tracker, model, optimizer = copy.deepcopy(self.saved)
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
            self.tracker.load_state_dict(tracker)

    def crash(self):
        """And go on in another program, from the checkpoint if there is one."""
        self.tracker.remove()
        # as a program that is dead, it has no file open any more
        self.tracker = None
        gc.collect()
        self.begin()
        self.back()

    def move(self):
        """The parameters to other memory, laid out alike: half-precision SGD depends on that."""
        for parameter in self.model.parameters():
            place = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype)
            parameter.data = place.copy_(parameter.data)


def same(first, second):
    return (
        torch.equal(first.steps, second.steps)
        and torch.equal(first.times, second.times)
        and torch.equal(first.values, second.values)
        and first.names == second.names
    )


@dataclass(frozen=True)
class Naive:
    """What a plain loop finds: steps and limit times, values and bounds ``(T, k)``."""

    steps: list
    times: list
    values: torch.Tensor
    errors: torch.Tensor
    names: list

    @classmethod
    def of(cls, plan, steps):
        model, optimizer = plan.training.begin()
        rows, time = [], 0.0
        for step in range(steps + 1):
            lr = plan.training.rate(step) if step else 0.0
            if step:
                plan.training.take(model, optimizer, step)
            if step % plan.every == 0:
                parameters = dict(model.named_parameters())
                found = [one.bounded(parameters) for one in plan.statistics.values()]
                rows.append((step, time + lr, found))
            time += lr
        names = [
            name + (f"[{','.join(map(str, index))}]" if index else "")
            for name, one in zip(plan.statistics, rows[0][2], strict=True)
            for index in itertools.product(*map(range, one.value.shape))
        ]
        return cls(
            [step for step, _, _ in rows],
            [time for _, time, _ in rows],
            torch.stack([torch.cat([one.value.flatten() for one in row]) for _, _, row in rows]),
            torch.stack([torch.cat([one.error.flatten() for one in row]) for _, _, row in rows]),
            names,
        )

    def check(self, trajectory, step):
        """That a trajectory is this one up to a step."""
        rows = sum(one <= step for one in self.steps)
        assert trajectory.names == self.names
        assert trajectory.steps.tolist() == self.steps[:rows]
        assert trajectory.times.tolist() == self.times[:rows]
        # the bound holds for the reference in float64 as well as for what was recorded
        assert ((trajectory.values - self.values[:rows]).abs() <= 2 * self.errors[:rows]).all()


def without_disturbance(plan, steps):
    """The trajectory of a tracked loop in which nothing happens but steps."""
    model, optimizer = plan.training.begin()
    tracker = tl.track(
        model, optimizer, plan.statistics, every=plan.every, max_bytes=plan.max_bytes
    )
    for step in range(1, steps + 1):
        plan.training.take(model, optimizer, step)
    return tracker.trajectory()


def table(path):
    """Names, steps and the rows of numbers of a CSV file."""
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    return names, [[float(number) for number in row] for row in rows]


@pytest.mark.slow
@given(plan=plans())
def test_what_is_recorded_is_what_a_plain_loop_finds(plan):
    # as many steps as there may be; statistics without any entry are refused, see below
    naive = Naive.of(plan, plan.events.count("step"))
    assume(naive.names)
    with tempfile.TemporaryDirectory() as folder:
        check_run(plan, Tracked(plan, Path(folder)), naive)


def check_run(plan, tracked, naive):
    """Everything that is left of a run."""
    final = tracked.tracker.trajectory()
    for number, trajectory in [*tracked.seen, (tracked.number, final)]:
        naive.check(trajectory, number)
    alone, optimizer = plan.training.begin()
    for step in range(1, tracked.number + 1):
        plan.training.take(alone, optimizer, step)
    assert all(map(torch.equal, tracked.model.parameters(), alone.parameters()))
    # evaluated where the parameters are, sums depend in the last bits on the address
    if plan.max_bytes > 1 or "move" not in plan.events:
        assert same(final, without_disturbance(plan, tracked.number))
    if tracked.path is not None:
        assert same(tl.Trajectory.load(tracked.path), final)
        assert not tracked.path.with_name(tracked.path.name + ".unfinished").exists()
    columns = torch.cat([final.steps[:, None], final.times[:, None], final.values], dim=1)
    if plan.writer == "CSV":
        names, rows = table(tracked.folder / "u.csv")
        assert names == ["step", "time", *final.names]
        assert rows == columns.tolist()
    if plan.writer == "function":
        # a call cannot be taken back: of steps that were taken again, the last one counts
        latest = {step: row for step, row in tracked.calls if step <= tracked.number}
        assert [latest[step] for step in final.steps.tolist()] == final.values.tolist()
    event(f"{len(final) > 1}, {'crash' in plan.events}, {plan.writer}, {plan.suffix}")


# --- statistics that stop being finite ------------------------------------------------------------


@given(
    events=st.lists(st.sampled_from(["step", "step", "step", "flush", "look"]), max_size=20),
    poisoned=st.integers(1, 12),
    entry=st.integers(0, 2),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    every=st.integers(1, 3),
    slots=st.integers(0, 4),
    suffix=st.sampled_from([None, ".npz", ".rows"]),
)
def test_a_statistic_that_is_not_finite_ends_the_record_there(
    events, poisoned, entry, value, every, slots, suffix
):
    """And nothing else: rows before are kept, training goes on."""
    training = Training([Weight("a", (3,), torch.float32, "plain", 1.0)], False, [0.1], 0.9, 0.0)
    statistics = {"sum": lambda p: p["a"].square().sum(), "a": lambda p: p["a"]}

    def take(model, optimizer, step):
        if step == poisoned:
            model.get_parameter("a").data[entry] = value
        training.take(model, optimizer, step)

    count = events.count("step")
    first = math.ceil(poisoned / every) * every
    fails = first <= count
    kept = [step for step in range(0, count + 1, every) if not fails or step < first]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        path = None if suffix is None else Path(folder) / f"u{suffix}"
        model, optimizer = training.begin()
        options = {"every": every, "max_bytes": max(12 * slots, 1), "path": path}
        tracker = tl.track(model, optimizer, statistics, **options)
        steps = itertools.count(1)
        actions = {
            "step": lambda: take(model, optimizer, next(steps)),
            "flush": tracker.flush,
            "look": tracker.trajectory,
            "close": tracker.close,
        }
        for what in [*events, "close"]:
            try:
                actions[what]()
            except tl.NonFiniteStatistic as error:
                failures.append(error)
        assert tracker.trajectory().steps.tolist() == kept
        if path is not None:
            assert same(tl.Trajectory.load(path), tracker.trajectory())
    assert [error.step for error in failures] == ([first] if fails else [])
    if fails:
        assert failures[0].name == "sum"
        assert failures[0].trajectory.steps.tolist() == kept
    alone, optimizer = training.begin()
    for step in range(1, count + 1):
        take(alone, optimizer, step)
    assert torch.equal(model.a.nan_to_num(7.0), alone.a.nan_to_num(7.0))


# --- names, and files of trajectories -------------------------------------------------------------

_TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from('a[]/,01"\n\r\t=\0\ud800\udfff')),
    max_size=8,
)


def unwritable(name):
    return any(letter in "\0\r" or "\ud800" <= letter <= "\udfff" for letter in name)


@given(
    shapes=st.dictionaries(_TEXT, st.sampled_from([(), (2,), (1, 2)]), min_size=1, max_size=4),
    writer=st.sampled_from([None, "CSV", "function", "events"]),
    suffix=st.sampled_from([".npz", ".rows"]),
)
def test_names_come_out_as_they_went_in_or_are_refused(shapes, writer, suffix):
    names = [
        name + (f"[{','.join(map(str, index))}]" if index else "")
        for name, shape in shapes.items()
        for index in itertools.product(*map(range, shape))
    ]
    tags = [tl.tensorboard.tag(name) for name in names]
    good = (
        len(set(names)) == len(names)
        and not any(map(unwritable, names))
        and not (writer in ("function", "events") and len(set(tags)) < len(tags))
        and not (writer == "CSV" and {"step", "time", "run"} & set(names))
    )
    calls = []
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {
        name: lambda p, shape=shape: p["weight"].sum().expand(shape)
        for name, shape in shapes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"u{suffix}"
        writers = {
            "CSV": lambda: tl.CSV(Path(folder) / "u.csv"),
            "function": lambda: lambda row, step: calls.append(list(row)),
            "events": lambda: Path(folder) / "log",
        }
        refused = contextlib.nullcontext() if good else pytest.raises(ValueError, match="rename")
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            with (
                refused,
                tl.track(
                    model,
                    optimizer,
                    statistics,
                    path=path,
                    writer=writers.get(writer, lambda: None)(),
                ),
            ):
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
        if good:
            assert tl.Trajectory.load(path).names == names
            assert calls == ([tags, tags] if writer == "function" else [])
        if good and writer == "CSV":
            assert table(Path(folder) / "u.csv")[0] == ["step", "time", *names]
    event(f"{good}, {writer}")


_METADATA = st.dictionaries(
    _TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
        lambda inside: st.lists(inside, max_size=3) | st.dictionaries(_TEXT, inside, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
_NUMBERS = st.one_of(st.floats(), st.floats(width=16), st.integers(-(2**53), 2**53).map(float))


@st.composite
def trajectories(draw):
    """Arguments of a `Trajectory`: any numbers, NaN too, of any type."""
    runs = draw(st.lists(st.integers(0, 2), max_size=2))
    steps = sorted(draw(st.sets(st.integers(0, 2**53), max_size=4)))
    names = draw(st.lists(_TEXT, max_size=3))
    shape = (*runs, len(steps), len(names))

    def array():
        size = math.prod(shape)
        numbers = draw(st.lists(_NUMBERS, min_size=size, max_size=size))
        dtype = draw(st.sampled_from([*FLOATS, torch.int32, torch.int64]))
        whole = [x if math.isfinite(x) and abs(x) < 2**31 else 0.0 for x in numbers]
        numbers = numbers if dtype.is_floating_point else whole
        return torch.tensor(numbers, dtype=torch.float64).to(dtype).reshape(shape)

    times = np.array(steps) * draw(st.sampled_from([1.0, 1e-3, 1 / 3]))
    return {
        "times": torch.from_numpy(times),
        "steps": torch.tensor(steps, dtype=torch.int64),
        "values": array(),
        "names": names,
        "std": draw(st.none() | st.builds(array)),
        "metadata": draw(_METADATA),
    }


def bits(tensor):
    """Also those of NaN."""
    return tensor.shape, tensor.contiguous().numpy().tobytes()


@given(arguments=trajectories())
def test_what_is_saved_is_what_is_loaded(arguments):
    names = arguments["names"]
    if len(set(names)) < len(names) or any(map(unwritable, names)):
        with pytest.raises(ValueError, match="rename"):
            tl.Trajectory(**arguments)
        return
    before = tl.Trajectory(**arguments)
    assert bits(before.values) == bits(arguments["values"].double())
    with tempfile.TemporaryDirectory() as folder:
        before.save(Path(folder) / "u.npz")
        found = [tl.Trajectory.load(Path(folder) / "u.npz")]
        if before.std is None:
            header = Header(before.names, tuple(before.values.shape[:-2]), before.metadata)
            recording = Recording(header, Path(folder) / "u.rows", 2**20)
            recording.append(before.steps.numpy(), before.times.numpy(), before.values)
            recording.write()
            found.append(tl.Trajectory.load(Path(folder) / "u.rows.unfinished"))
        for after in found:
            for field in ("times", "steps", "values"):
                assert bits(getattr(after, field)) == bits(getattr(before, field))
            assert after.names == names
            assert after.metadata == arguments["metadata"]
        assert (found[0].std is None) == (before.std is None)
        if before.std is not None:
            assert bits(found[0].std) == bits(before.std)


@given(data=st.data())
def test_arguments_of_any_shape_make_a_trajectory_or_an_error_that_explains(data):
    rows, columns = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    values = (*data.draw(st.lists(st.integers(0, 2), max_size=2)), rows, columns)
    shape = {"times": (rows,), "steps": (rows,), "values": values, "std": values}
    for key in data.draw(st.lists(st.sampled_from(sorted(shape)), max_size=2)):
        shape[key] = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    arguments = {key: torch.arange(math.prod(one)).reshape(one) for key, one in shape.items()}
    names = [f"u{i}" for i in range(columns)]
    good = (
        len(shape["times"]) == 1
        and shape["steps"] == shape["times"]
        and shape["values"][-2:] == (*shape["times"], len(names))
        and shape["std"] == shape["values"]
    )
    event(f"good: {good}")
    refused = contextlib.nullcontext() if good else pytest.raises(ValueError, match="expected")
    with refused:
        tl.Trajectory(**arguments, names=names)


# --- rows on a disk that fills up, in programs that crash -----------------------------------------


#: bytes that files may grow by, or enough
ROOM = st.none() | st.integers(0, 300)


class Rows(RuleBasedStateMachine):
    """A recording: ``kept`` are the steps that it should have, ``disk`` those in its file."""

    @initialize(
        runs=st.sampled_from([(), (2,)]),
        suffix=st.sampled_from([None, ".npz", ".rows"]),
        memory=st.sampled_from([2**20, 300]),
    )
    def begin(self, runs, suffix, memory):
        self._folder, self._piece = tempfile.TemporaryDirectory(), row_layout.PIECE_BYTES
        # so that rows go to the file in several writes, of which a later one may fail
        row_layout.PIECE_BYTES = 100
        self.header = Header(["m", "R"], runs, {"about": "µ"})
        self.path = None if suffix is None else Path(self._folder.name) / f"u{suffix}"
        self.memory, self.disk, self.aside = memory, [], []
        self.start()

    def teardown(self):
        if hasattr(self, "_folder"):
            self._folder.cleanup()
            row_layout.PIECE_BYTES = self._piece

    def start(self):
        """As a program has it at its start."""
        self.recording = Recording(self.header, self.path, self.memory)
        self.kept, self.said, self.resumed = [], [], False
        self.leftover = self.file

    def rows(self, steps):
        """Times and values, which follow from the steps."""
        times = torch.tensor(steps, dtype=torch.float64) / 3
        shape = (*self.header.runs, len(steps), 2)
        numbers = torch.arange(math.prod(self.header.runs) * 2, dtype=torch.float64)
        return times, numbers.reshape(*shape[:-2], 1, 2) + times[:, None]

    def check(self, trajectory, steps):
        times, values = self.rows(steps)
        assert trajectory.steps.tolist() == steps
        assert torch.equal(trajectory.times, times)
        assert torch.equal(trajectory.values, values)

    @property
    def file(self):
        """Which file there is during the run, or None."""
        path = self.recording.unfinished
        return path.stat().st_ino if path is not None and path.exists() else None

    @contextlib.contextmanager
    def on_disk(self, room):
        """With so much room, or enough; what is written meanwhile is checked and noted."""
        size = self.recording.unfinished.stat().st_size if self.file else 0
        limit = contextlib.nullcontext() if room is None else files_end_at(size + room)
        with warnings.catch_warnings(record=True) as caught, limit:
            warnings.simplefilter("always")
            yield
        self.said += [str(one.message) for one in caught]
        assert room is not None or not caught
        assert sum("training goes on" in str(one.message) for one in caught) <= 1
        found = [step for piece in self.recording.after(-1) for step in piece.steps.tolist()]
        assert found == self.kept
        assert self.recording.newest == (self.kept[-1] if self.kept else -1)
        self.note_written()

    def note_written(self):
        if self.file is None:
            return
        if self.leftover is not None and self.file != self.leftover:
            self.aside += [] if self.resumed else [self.disk]
            self.leftover, self.disk = None, []
        found = tl.Trajectory.load(self.recording.unfinished).steps.tolist()
        # as many of those in memory as there was room for
        assert found == self.kept[: len(found)] or found == self.disk
        self.disk = found
        for number, steps in enumerate(self.aside, 1):
            place = self.recording.unfinished
            self.check(tl.Trajectory.load(place.with_name(f"{place.name}.{number}")), steps)

    @rule(count=st.integers(1, 6), gap=st.integers(1, 3), room=ROOM)
    def append(self, count, gap, room):
        first = self.kept[-1] + gap if self.kept else 0
        steps = [first + gap * i for i in range(count)]
        self.kept = self.kept + steps
        with self.on_disk(room):
            self.recording.append(steps, *self.rows(steps))
            # those that are known already change nothing
            known = self.kept[-count:]
            self.recording.append(known, *self.rows(known))

    @rule(room=ROOM)
    def write(self, room):
        with self.on_disk(room):
            self.recording.write()
        if room is None and self.path is not None and self.kept:
            assert self.disk == self.kept

    @precondition(lambda self: self.kept)
    @rule(after=st.integers(-1, 20))
    def look(self, after):
        with self.on_disk(None):
            self.check(self.recording.trajectory(), self.kept)
        pieces = [piece.steps for piece in self.recording.after(after)]
        later = torch.cat(pieces).tolist() if pieces else []
        assert later == [step for step in self.kept if step > after]

    @rule(torn=st.integers(0, 300), garbage=st.binary(max_size=80))
    def crash(self, torn, garbage):
        """What was written last is lost, or never was what it should be."""
        path = self.recording.unfinished
        if self.file is not None:
            content = path.read_bytes()
            whole = content[: len(content) - torn]
            path.write_bytes(whole + garbage)
            begin = len(self.header.line) + STATE_BYTES
            rows = (len(whole) - begin) // self.header.row.itemsize
            self.disk = self.disk[: max(rows, 0)]
            if self.disk:
                self.check(tl.Trajectory.load(path), self.disk)
            else:
                path.unlink()
        self.start()

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), another=st.booleans(), room=ROOM)
    def resume(self, data, another, room):
        """From a checkpoint, in this program or in another."""
        steps = self.kept[: data.draw(st.integers(1, len(self.kept)), "rows of the checkpoint")]
        if another:
            self.start()
            self.recording.append([0], *self.rows([0]))
        times, values = self.rows(steps)
        state = tl.Trajectory(times, torch.tensor(steps), values, self.header.names)
        self.leftover = self.file
        self.kept, self.resumed = steps, True
        with self.on_disk(room):
            self.recording.restore(state)

    @precondition(lambda self: self.kept)
    @rule(room=ROOM)
    def finish(self, room):
        """All is at the path, or a warning says where it is, or an error that it is nowhere."""
        with self.on_disk(room):
            trajectory = self.recording.trajectory()
        self.check(trajectory, self.kept)
        if self.path is None:
            return
        self.path.unlink(missing_ok=True)
        failed = False
        limit = contextlib.nullcontext() if room is None else files_end_at(room)
        with warnings.catch_warnings(record=True) as caught, limit:
            warnings.simplefilter("always")
            try:
                self.recording.finish(trajectory)
            except OSError:
                failed = True
        said = " ".join(str(one.message) for one in caught)
        if self.path.exists():
            assert not failed
            self.check(tl.Trajectory.load(self.path), self.kept)
        else:
            assert room is not None
            written = self.disk if self.leftover is None else []
            assert failed == (not written)
            assert failed or f"{len(written)} of its {len(self.kept)} rows" in said
        with self.on_disk(None):
            self.check(self.recording.trajectory(), self.kept)
        self.disk = [] if self.file is None else self.disk
        self.start()


TestRows = Rows.TestCase


# --- what must be an error, or must not -----------------------------------------------------------


def tracked_values(parameter, function, **options):
    """The statistic of a parameter, before and after a step that moves it by 0.25."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(parameter)
    optimizer = torch.optim.SGD([model.w], lr=0.25)
    tracker = tl.track(model, optimizer, {"u": lambda p: function(p["w"])}, **options)
    model.w.grad = -torch.ones_like(model.w)
    optimizer.step()
    return tracker.trajectory().values


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_results_that_no_float32_holds(max_bytes):
    values = tracked_values(torch.zeros(1), lambda x: (4 * x).long() + 2**40, max_bytes=max_bytes)
    assert values.flatten().tolist() == [2**40, 2**40 + 1]


@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_empty_parameters(max_bytes):
    empty = torch.zeros(0, 3)
    values = tracked_values(empty, lambda x: x.sum() + len(x.T), max_bytes=max_bytes)
    assert values.flatten().tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_half_precision_beside_a_float32_direction(dtype, max_bytes):
    direction = torch.tensor([1.0, 2.0])
    zero = torch.zeros(2, dtype=dtype)
    values = tracked_values(zero, lambda x: x @ direction, max_bytes=max_bytes)
    assert values.flatten().tolist() == [0.0, 0.75]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.to(torch.complex64), TypeError, "real, dense"),
        (lambda x: x.to_sparse(), TypeError, "real, dense"),
        (lambda x: x.sum().item(), TypeError, "return a tensor"),
        (lambda x: x.mul_(2), ValueError, r"changed \['w'\] in place"),
        (lambda x: x[:0], ValueError, "at least one entry"),
    ],
)
@pytest.mark.parametrize("max_bytes", [1, 2**20])
def test_results_that_are_refused_before_the_first_step(function, error, message, max_bytes):
    with pytest.raises(error, match=message):
        tracked_values(torch.ones(2), function, max_bytes=max_bytes)


def test_symmetric_statistics_are_matrices():
    statistics = tl.SummaryStatistics({"s": lambda p: p["w"]}, symmetric=["s"])
    for shape in [(3,), (2, 3), (2, 3, 3)]:
        with pytest.raises(ValueError, match="square matrix"):
            statistics.names_of({"w": torch.zeros(shape)})


@pytest.mark.parametrize("rate", [1e-20, 0.0, math.nan, math.inf])
def test_limit_time_that_a_rate_does_not_move(rate):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tracker = tl.track(model, optimizer, {"b": lambda p: p["bias"]})
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate
    told = contextlib.nullcontext()
    if not math.isfinite(rate):
        told = pytest.warns(RuntimeWarning, match="at step 2: it adds nothing to limit time")
    with told:
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]
    assert tracker.trajectory().times.tolist() == [0.0, 1.0, 1.0, 1.5]


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_first_rate_that_is_not_finite(rate):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with pytest.raises(ValueError, match="finite learning rate >= 0"):
        tl.track(model, optimizer, {"b": lambda p: p["bias"]})


def test_facts_that_are_no_json_are_refused_at_once():
    with pytest.raises(TypeError, match="as JSON has them"):
        tracked_values(torch.ones(2), torch.sum, parameters={"x": torch.ones(1)})
    path = tl.Trajectory([0.0], [0], [[1.0]], ["u"], metadata={"x": {1}})
    with pytest.raises(TypeError, match="metadata as a dict"):
        path.save("nowhere.npz")


def test_trajectories_of_what_is_no_name_or_number():
    with pytest.raises(TypeError, match="names as str"):
        tl.Trajectory([0.0], [0], [[1.0]], [3])
    with pytest.raises(TypeError, match="real numbers"):
        tl.Trajectory([0.0], [0], [[1j]], ["u"])


def test_a_recording_leaves_no_file_open(tmp_path):
    recording = Recording(Header(["u"], ()), tmp_path / "u.rows", 2**20)
    recording.append([0], [0.0], torch.ones(1, 1))
    recording.write()
    rows = recording.trajectory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del recording
        gc.collect()
    assert not caught
    assert rows.values.tolist() == [[1.0]]

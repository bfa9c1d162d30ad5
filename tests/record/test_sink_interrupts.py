"""Whatever line of a sink an interrupt comes at, its rows are those of an uninterrupted run."""

import gc
import re
import warnings

import interrupts
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl
from torchlimits.files.row_file import Header
from torchlimits.record.display import Display
from torchlimits.record.recording import Recording

#: everything between a recording and the libraries that write
FILES = [
    *(f"torchlimits/record/{name}.py" for name in ("display", "shown")),
    *(f"torchlimits/record/sinks/{name}.py" for name in ("csv", "log_function")),
    *(f"torchlimits/tensorboard/{name}.py" for name in ("live", "writer", "borrowed", "events")),
    *(f"torchlimits/{name}.py" for name in ("files/lock", "contracts/sink", "tensorboard/tags")),
]
NAMES = ["m[0,1]", "m[1,0]", "norm"]


def moments(run):
    """The events of a run: of lines that run often, the first two times."""
    return [event for event in interrupts.lines(run.go, FILES) if event.hit <= 2]


class Run:
    """Rows that are shown three times; `go` may be interrupted and called again."""

    def __init__(self, writer, state=None):
        self.writer = writer
        self.recording = Recording(Header(NAMES, ()), None, 2**20)
        self.display, self.rows = Display(writer), 0
        self.record(6)
        self.display.check(next(self.recording.after(-1)))
        self.left = [self.show, self.record, self.show, self.record, self.show, self.display.close]
        if state is not None:
            self.left.insert(0, lambda: self.display.load_state_dict(state, 5))

    def record(self, count=5):
        steps = np.arange(self.rows, self.rows + count)
        values = np.sin(steps[:, None] + np.arange(len(NAMES)))
        values[steps % 3 == 1, 1] = np.nan
        self.recording.append(steps, steps * 0.1, torch.from_numpy(values))
        self.rows += count

    def show(self):
        self.display.show(self.recording, None)

    def go(self):
        while self.left:
            self.left[0]()
            self.left.pop(0)


class Library:
    """A SummaryWriter that is not torch's."""

    def __init__(self):
        self.points = []

    def add_scalar(self, tag, value, step, walltime):
        self.points.append((tag, value, step))


def points_in(folder):
    found = {}
    for place in sorted({path.parent for path in folder.rglob("*tfevents*")}):
        accumulator = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        for tag in accumulator.Tags()["scalars"]:
            # what the charts repeat has the name of the folder in it
            alike = re.sub("^([·±][^/]*)/[^/]*/[^/]*/", r"\1/", tag)
            events = [(event.step, event.value) for event in accumulator.Scalars(tag)]
            found[str(place.relative_to(folder)), alike] = events
    return found


class Kind:
    """A writer in a folder, and what it has shown there."""

    def __init__(self, name, folder):
        self.name, self.folder, self.calls = name, folder, []
        folder.mkdir()
        self.library = Library()
        self.mine = SummaryWriter(str(folder / "mine")) if name == "borrowed" else None

    def writer(self):
        return {
            "CSV": lambda: tl.CSV(self.folder / "u.csv"),
            "events": lambda: tl.tensorboard.Writer(self.folder, max_points=8),
            "directory": lambda: self.folder,
            "function": lambda: lambda row, step: self.calls.append((step, row)),
            "borrowed": lambda: self.mine,
            "foreign": lambda: self.library,
            "list": lambda: [
                tl.CSV(self.folder / "u.csv"),
                self.folder / "log",
                lambda row, step: self.calls.append((step, row)),
            ],
        }[self.name]()

    def shown(self):
        if self.mine is not None:
            self.mine.close()
        table = self.folder / "u.csv"
        text = table.read_text() if table.exists() else None
        return points_in(self.folder), text, self.calls, self.library.points


KINDS = ["CSV", "events", "directory", "function", "borrowed", "foreign", "list"]


@pytest.mark.parametrize("resumed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "name",
    # the longest ones
    [pytest.param(kind, marks=pytest.mark.slow) if kind in ("events", "list", "directory") else kind
     for kind in KINDS],
)  # fmt: skip
def test_an_interrupt_at_any_line_loses_and_doubles_nothing(tmp_path, name, resumed):
    state = None
    if resumed:
        # of a run that went on after its checkpoint
        kind = Kind(name, tmp_path / "first")
        run = Run(kind.writer())
        run.show()
        state = run.display.state_dict()
    kind = Kind(name, tmp_path / "whole")
    whole = Run(kind.writer(), state)
    events = moments(whole)
    expected = kind.shown()
    assert len(events) > 50
    struck, runs = 0, []  # no finalizer is traced
    for number, at in enumerate(events):
        kind = Kind(name, tmp_path / str(number))
        run = Run(kind.writer(), state)
        runs.append(run)
        struck += interrupts.interrupted(run.go, at)
        run.go()
        assert kind.shown() == expected, at
    assert struck == len(events)


@pytest.mark.parametrize("name", KINDS)
def test_an_error_at_any_line_loses_and_doubles_nothing(tmp_path, name):
    """It is forgiven, and what failed is tried again; only one at the very end is final."""
    kind = Kind(name, tmp_path / "whole")
    run = Run(kind.writer())
    run.left = run.left[:-1]
    events = moments(run)
    run.left = [run.record, run.show, run.display.close]
    run.go()
    expected, runs = kind.shown(), []
    for number, at in enumerate(events[::3]):
        kind = Kind(name, tmp_path / str(number))
        run = Run(kind.writer())
        runs.append(run)
        close = run.left.pop()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if interrupts.interrupted(run.go, at, OSError("no room")):
                run.go()
            run.left = [run.record, run.show, close]
            run.go()
        assert kind.shown() == expected, at


def test_the_check_sees_what_is_doubled(tmp_path):
    """A function that is interrupted after its work gets the row again, which is found."""
    kind = Kind("function", tmp_path / "one")
    strikes = [KeyboardInterrupt]

    def log(row, step):
        kind.calls.append((step, row))
        if step == 7 and strikes:
            raise strikes.pop()

    run = Run(log)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    run.go()
    assert [step for step, _ in kind.calls] == [*range(8), *range(7, 16)]


def test_what_is_collected_meanwhile_is_no_event(tmp_path):
    """A tracker that a test left open is closed at its collection, by lines of these files."""

    def left_open():
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        statistics = {"bias": lambda p: p["bias"]}
        model.tracker = tl.track(model, optimizer, statistics, writer=tl.CSV(tmp_path / "left.csv"))
        optimizer.step()

    found, threshold = [], gc.get_threshold()
    for name in ("first", "second"):
        run = Run(tl.CSV(tmp_path / f"{name}.csv"))
        gc.collect()
        if found:
            gc.set_threshold(0)  # no collection, before there is something to trace
            left_open()
            run.left.insert(0, lambda: gc.set_threshold(1))
        try:
            found.append(moments(run))
        finally:
            gc.set_threshold(*threshold)
    assert found[0] == found[1]
    gc.collect()
    assert len((tmp_path / "left.csv").read_text().splitlines()) == 3

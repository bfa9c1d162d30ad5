"""A tracked training that is interrupted at one line of the recorder, and goes on."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import torch
from interrupts import interrupted, lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits._exact import exactly

PACKAGE = Path(tl.__file__).parent
#: whatever runs in a step, a flush or a close
FILES = [
    str(file)
    for room in ("record", "files", "tensorboard", "contracts", "statistics")
    for file in sorted((PACKAGE / room).rglob("*.py"))
] + [str(PACKAGE / "trajectory.py"), str(PACKAGE / "_exact.py")]

RATE = 0.5  # exact in binary: after s steps of gradient 1 the weight is -s / 2
STEPS = 7

SINKS = {
    "no sink": lambda folder, calls: None,
    "CSV": lambda folder, calls: tl.CSV(folder / "u.csv"),
    "log directory": lambda folder, calls: folder / "log",
    "function": lambda folder, calls: lambda row, step: calls.append((step, row["w/0/0"])),
    "list": lambda folder, calls: [
        tl.CSV(folder / "u.csv"), tl.tensorboard.Writer(folder / "log", max_points=None),
    ],
}  # fmt: skip


class Run:
    """A training whose row of step s is -s / 2 at time s / 2; it can be gone on with anywhere."""

    def __init__(self, folder, suffix, sink, *, hook=False, logs=False):
        torch.manual_seed(0)
        with exactly():  # what an interrupt of an earlier run left to be done is done
            pass
        self.folder, self.logs = folder, logs
        self.calls = [] if sink == "function" else None
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        self.model.weight.grad = torch.ones(1, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE)
        self.path = None if suffix is None else folder / f"u{suffix}"
        self.tracker = tl.track(
            self.model, self.optimizer, {"w": lambda p: p["weight"]}, path=self.path,
            writer=SINKS[sink](folder, self.calls), max_bytes=1 if hook else 3 * 4,
        )  # fmt: skip

    @property
    def taken(self):
        """How many steps the weight has made, whatever anybody has counted."""
        return round(-float(self.model.weight.detach()) / RATE)

    def go_on(self):
        """Train to the end, with flushes of the user's own, and close."""
        while self.taken < STEPS:
            self.optimizer.step()
            if self.logs:
                self.tracker.log(loss=float(self.taken))
            if self.taken % 3 == 2:
                self.tracker.flush()
            if self.taken == 5:
                self.tracker.trajectory()
        self.tracker.close()


def check(run, missing):
    """Raise AssertionError unless rows are those of an uninterrupted run, but for some steps."""
    path = run.tracker.trajectory()
    _check_rows("trajectory", path.steps.tolist(), path["w[0,0]"].tolist(), missing)
    assert path.times.tolist() == [RATE * step for step in path.steps.tolist()]
    if run.logs:
        late = {*missing, *path.steps[path["loss"].isnan()].tolist()} - {0}
        assert len(late) <= 1, f"no loss at {late}"
    if run.path is not None:
        loaded = tl.Trajectory.load(run.path)
        assert torch.equal(loaded.steps, path.steps)
        torch.testing.assert_close(loaded.values, path.values, rtol=0, atol=0, equal_nan=True)
        assert not list(run.folder.glob("*.unfinished*"))
    if (run.folder / "u.csv").exists():
        with (run.folder / "u.csv").open() as file:
            table = list(csv.DictReader(file))
        values = [float(row["w[0,0]"]) for row in table]
        _check_rows("CSV", [int(row["step"]) for row in table], values, missing)
    if (run.folder / "log").exists():
        accumulator = EventAccumulator(str(run.folder / "log"), size_guidance={"scalars": 0})
        shown = accumulator.Reload().Scalars("w/0/0")
        _check_rows("events", [one.step for one in shown], [one.value for one in shown], missing)
    if run.calls is not None:
        _check_rows("function", *map(list, zip(*run.calls, strict=True)), missing)


def _check_rows(where, steps, values, missing):
    expected = [step for step in range(STEPS + 1) if step not in missing]
    everything = list(range(STEPS + 1))
    assert steps in (expected, everything), f"{where} has steps {steps}"
    assert values == [-RATE * step for step in steps], f"{where} has {values}"


def events_of(folder, *arguments, **options):
    """All line events of an uninterrupted run."""
    (folder / "first").mkdir(parents=True)
    run = Run(folder / "first", *arguments, **options)
    found = lines(run.go_on, FILES)
    check(run, [])
    return found


def survives(folder, at, *arguments, error=KeyboardInterrupt, **options):
    """Interrupt a run at an event, go on, and check what is left."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Run(folder, *arguments, **options)
        if interrupted(run.go_on, at, error):
            # the step in which it came may have no row
            missing = [run.taken]
            run.go_on()
        else:
            missing = []
        check(run, missing)

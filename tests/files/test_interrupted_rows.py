"""An exception at every line of a recording, and the call again: no row is lost or there twice."""

import contextlib
import shutil
import warnings
from collections import deque

import pytest
import torch
from full_disks import files_end_at
from interrupts import interrupted, lines

import torchlimits as tl
from torchlimits.files import rows as row_layout
from torchlimits.files.rows import Header
from torchlimits.record.recording import Recording

FILES = [
    *(f"torchlimits/files/{name}.py" for name in ("row_file", "rows", "whole", "place", "npz")),
    *(f"torchlimits/record/{name}.py" for name in ("recording", "held_rows", "destination")),
]
NAMES = ["m", "R"]
WIDE = [*NAMES, "loss"]


def values_of(steps, names):
    """What was recorded at some steps, which tells them apart; there is a loss from step 5 on."""
    values = torch.tensor(steps, dtype=torch.float64)[:, None] + torch.arange(len(names)) / 8
    if len(names) > len(NAMES):
        values[torch.tensor(steps) < 5, len(NAMES) :] = torch.nan
    return values


class Run:
    """A recording and what is to be done with it: one call after the other, again if interrupted.

    Args:
        folder: where it may write.
        suffix: of the path; None: there is no path.
        full: whether the disk is full in the middle.
        memory: bound on the rows in memory.
    """

    def __init__(self, folder, suffix, full=False, memory=2**20):
        self.folder = folder / "runs"
        self.folder.mkdir(parents=True)
        self.path = None if suffix is None else self.folder / f"u{suffix}"
        self.recording = Recording(Header(NAMES, ()), self.path, memory)
        self.full = full
        self.todo = deque(self.calls())

    def calls(self):
        yield lambda: self.append([0, 1, 2])
        yield self.recording.write
        yield lambda: self.append([3, 4])
        yield self.limited(lambda: self.append([4, 5, 6], WIDE[:2]))
        yield self.limited(self.recording.write)
        yield self.limited(lambda: self.append([7]))
        yield self.recording.write
        yield self.recording.trajectory
        yield self.restored
        yield self.recording.write
        yield self.removed
        yield lambda: self.recording.widen(WIDE)
        yield lambda: self.append([5, 6, 7, 8], WIDE)
        yield self.recording.write
        yield lambda: self.append([9], WIDE)
        yield lambda: self.recording.finish(self.recording.trajectory())

    def limited(self, call):
        def on_a_full_disk():
            limit = files_end_at(250) if self.full else contextlib.nullcontext()
            with limit:
                call()

        return on_a_full_disk

    def append(self, steps, names=NAMES):
        self.recording.append(steps, [step / 4 for step in steps], values_of(steps, names))

    def restored(self):
        """Back to step 4, as from a checkpoint."""
        steps = torch.arange(5)
        values = values_of(steps.tolist(), NAMES)
        self.recording.restore(tl.Trajectory(steps / 4, steps, values, NAMES))

    def removed(self):
        """The folder is deleted by somebody."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def go(self):
        while self.todo:
            self.todo[0]()
            self.todo.popleft()

    def check(self, strictly=True):
        """All rows are there, once.

        Strictly: in the file that was asked for, and there is no other. A disk that fails while it
        is asked what is in a place makes the recording go elsewhere.
        """
        found = [self.recording.trajectory()]
        if self.path is not None:
            found.append(tl.Trajectory.load(self.recording.path))
        if self.path is not None and strictly:
            assert self.recording.path == self.path
            assert [file.name for file in self.folder.iterdir()] == [self.path.name]
        for path in found:
            assert path.steps.tolist() == list(range(10))
            assert path.times.tolist() == [step / 4 for step in range(10)]
            assert path.names == WIDE
            expected = values_of(list(range(10)), WIDE)
            assert torch.allclose(path.values, expected, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Rows go to the file in several writes, of which a later one may fail."""
    monkeypatch.setattr(row_layout, "PIECE_BYTES", 100)
    with warnings.catch_warnings():
        # that the disk is full, and that files are open when their constructor is interrupted
        warnings.simplefilter("ignore")
        yield


KINDS = {
    "memory": {"suffix": None},
    "temporary": {"suffix": None, "memory": 100},
    "npz": {"suffix": ".npz"},
    "rows": {"suffix": ".rows"},
    "npz on a full disk": {"suffix": ".npz", "full": True},
    "rows on a full disk": {"suffix": ".rows", "full": True},
    "temporary on a full disk": {"suffix": None, "full": True, "memory": 100},
}


def check_all(kind, error, folder, chosen):
    """Run to each of the chosen events, and on; returns what went wrong."""
    found, wrong = chosen(lines(Run(folder / "first", **KINDS[kind]).go, FILES)), []
    for number, at in enumerate(found):
        run = Run(folder / str(number), **KINDS[kind])
        try:
            interrupted(run.go, at, error)
            run.go()
            # an OSError of `finish` is a warning, and the rows stay where they are
            run.recording.finish(run.recording.trajectory())
            run.check(strictly=error is not OSError)
        except Exception as unexpected:
            wrong.append(f"{at}: {unexpected!r}")
        shutil.rmtree(run.folder.parent, ignore_errors=True)
    return len(found), wrong


def last_of_each_line(found):
    return list({(at.file, at.line): at for at in found}.values())


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow) if kind == "rows on a full disk" else kind
     for kind in KINDS],
)  # fmt: skip
def test_an_exception_at_every_line(kind, tmp_path):
    number, wrong = check_all(kind, KeyboardInterrupt, tmp_path, last_of_each_line)
    assert number > 70
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "half"), [(KeyboardInterrupt, 0), (OSError, 1)])
def test_an_exception_at_every_event(kind, error, half, tmp_path):
    """Each event has one of the two."""
    number, wrong = check_all(kind, error, tmp_path, lambda found: found[half::2])
    assert number > 125
    assert not wrong


def test_the_check_notices(tmp_path, monkeypatch):
    """Rows that are given up before they are on disk, be it for one line."""
    to_file = Recording._to_file

    def forgetful(self):
        held, self._state = self._state, self._state.without_memory()
        assert held.unwritten is not None
        self._state = held
        to_file(self)

    monkeypatch.setattr(Recording, "_to_file", forgetful)
    number, wrong = check_all(
        "npz",
        KeyboardInterrupt,
        tmp_path,
        lambda found: [at for at in found if at.file.endswith("held_rows.py")][::5],
    )
    assert 0 < len(wrong) < number

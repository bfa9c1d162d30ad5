"""Files that are not what they seem, disks that are full, sinks that fail."""

import errno
import functools
import json
import os

import numpy as np
import pytest
import torch
from full_disks import LimitedFiles, SmallDisk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits.files import row_file
from torchlimits.record import tracker as recorder


def trained(steps=40, **options):
    """A short tracked training; returns the tracker and the model."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tl.track(model, optimizer, {"w": lambda p: p["weight"]}, **options) as tracker:
        for _ in range(steps):
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
    return tracker, model


class FullSink:
    """A writer whose disk is full for its first calls."""

    def __init__(self, failures):
        self.failures, self.steps = failures, []

    def add(self, chunk):
        if self.failures > 0:
            self.failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        self.steps += chunk.steps.tolist()

    def flush(self):
        pass


def test_a_failing_sink_does_not_end_the_training():
    with pytest.warns(RuntimeWarning, match="failed and may not show all steps") as caught:
        tracker, model = trained(writer=FullSink(100))
    assert sum("training goes on" in str(w.message) for w in caught) == 1
    assert len(tracker.trajectory()) == 41
    _, alone = trained()
    assert torch.equal(model.weight, alone.weight)


def test_a_sink_that_recovers_gets_every_step(monkeypatch):
    monkeypatch.setattr(recorder, "_FLUSH_EVERY_SECONDS", 0.0)
    sink = FullSink(3)
    with pytest.warns(RuntimeWarning, match="training goes on"):
        trained(writer=sink)
    assert sink.steps == list(range(41))


def test_a_full_disk_does_not_end_the_training(monkeypatch, tmp_path):
    """The rows stay in memory, and the trajectory is whole."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(row_file.RowFile, "append", full)
    monkeypatch.setattr(row_file, "append_whole", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        tracker, _ = trained(path=tmp_path / "run.npz")
    assert len(tracker.trajectory()) == 41
    assert len(tl.Trajectory.load(tmp_path / "run.npz")) == 41


@pytest.fixture(params=[LimitedFiles, SmallDisk])
def disk(request, tmp_path):
    """With room for anything until it is filled."""
    result = request.param(tmp_path)
    yield result
    result.free()
    result.remove()


def writer_on(disk, kind):
    if kind == "CSV":
        return tl.CSV(disk.folder / "u.csv")
    return tl.tensorboard.Writer(disk.folder / "log", max_points=None)


def shown_steps(disk, kind):
    """The steps in the CSV file, or in all event files."""
    if kind == "CSV":
        lines = (disk.folder / "u.csv").read_text().splitlines()[1:]
        return [int(line.partition(",")[0]) for line in lines]
    accumulator = EventAccumulator(str(disk.folder / "log"), size_guidance={"scalars": 0})
    return [one.step for one in accumulator.Reload().Scalars("w/0/0")]


class Loop:
    """A tracked training of 2 kB a record, which can go on."""

    def __init__(self, **options):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(16, 16)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        statistics = {"w": lambda p: p["weight"]}
        self.tracker = tl.track(self.model, optimizer, statistics, **options)
        self.take = functools.partial(self._take, optimizer)

    def _take(self, optimizer, *parts):
        """Some steps and a flush, once for each part."""
        for steps in parts:
            for _ in range(steps):
                optimizer.zero_grad()
                self.model(torch.randn(4, 16)).square().mean().backward()
                optimizer.step()
            self.tracker.flush()


def on_disk(path):
    return len(tl.Trajectory.load(path.with_name(path.name + ".unfinished")))


@pytest.mark.parametrize("writer", ["CSV", "events"])
@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_recording_catches_up_once_there_is_room_again(disk, suffix, writer):
    path = disk.folder / f"u{suffix}"
    loop = Loop(path=path, writer=writer_on(disk, writer))
    loop.take(20)
    assert on_disk(path) == 21
    disk.fill(room=70_000)
    with pytest.warns(RuntimeWarning) as caught:
        loop.take(15, 15, 15, 15)
    # those of before, and whole flushes that still found room
    written = on_disk(path)
    assert written in (21, 36, 51)
    messages = [str(one.message) for one in caught]
    assert sum("recorded rows cannot be written" in message for message in messages) == 1
    assert sum("cannot show recorded steps" in message for message in messages) <= 1
    assert len(loop.tracker.trajectory()) == 81
    assert on_disk(path) == written
    disk.free()
    loop.take(10)
    assert on_disk(path) == 91
    loop.tracker.close()
    whole = tl.Trajectory.load(path)
    assert torch.equal(whole.values, loop.tracker.trajectory().values)
    assert whole.steps.tolist() == list(range(91))
    assert shown_steps(disk, writer) == list(range(91))
    alone = Loop()
    alone.take(90)
    assert torch.equal(loop.model.weight, alone.model.weight)


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_what_a_full_disk_has_not_taken_is_said_at_the_end(disk, suffix):
    """And the file holds, whole, what was written before."""
    path = disk.folder / f"u{suffix}"
    loop = Loop(path=path, writer=writer_on(disk, "CSV"))
    loop.take(20)
    disk.fill(room=0)
    with pytest.warns(RuntimeWarning, match="recorded rows cannot be written"):
        loop.take(60)
    with pytest.warns(RuntimeWarning) as caught:
        loop.tracker.close()
    messages = " ".join(str(one.message) for one in caught)
    assert "21 of its 81 rows are in" in messages
    assert "the last one it took is 20" in messages
    whole = loop.tracker.trajectory()
    assert len(whole) == 81
    written = tl.Trajectory.load(path.with_name(path.name + ".unfinished"))
    assert torch.equal(written.values, whole.values[:21])
    assert not path.exists()
    disk.free()
    whole.save(path)
    assert torch.equal(tl.Trajectory.load(path).values, whole.values)


def test_what_a_disk_cannot_hold_stays_in_memory_beyond_the_bound(monkeypatch, disk):
    """Nothing is given up; how much memory it takes is said, and again when it has doubled."""
    monkeypatch.setattr("torchlimits.record.recorder._ROWS_BYTES", 100_000)
    loop = Loop(path=disk.folder / "u.npz")
    loop.take(20)
    disk.fill(room=0)
    with pytest.warns(RuntimeWarning) as caught:
        loop.take(*[10] * 20)
    said = [str(one.message) for one in caught]
    assert sum("training goes on" in message for message in said) == 1
    # 48 rows of 2 kB are the bound: after 50 and after 100 and ... 200 is not twice 110 yet
    assert sum("of recorded rows are in memory" in message for message in said) == 2
    assert loop.tracker.trajectory().steps.tolist() == list(range(221))
    disk.free()
    loop.tracker.close()
    assert tl.Trajectory.load(disk.folder / "u.npz").steps.tolist() == list(range(221))


def test_a_log_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        trained(writer=tmp_path / "file" / "log")


def test_a_symlinked_log_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    trained(writer=tmp_path / "link")
    assert list((tmp_path / "real").iterdir())


@pytest.fixture(scope="module", params=["run.npz", "run.rows"])
def good(request, tmp_path_factory):
    """The bytes of a valid file, and its suffix."""
    path = tmp_path_factory.mktemp("good") / request.param
    trained(path=path)
    return path.read_bytes(), path.suffix


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_trajectories_or_errors(good, tmp_path, data):
    """Whatever bytes change or are cut off."""
    content, suffix = good
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 4)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(damaged)
    rows, message = 0, "expected"
    try:
        rows = len(tl.Trajectory.load(path))
    except ValueError as error:
        message = str(error)
    assert rows <= 41
    assert "expected" in message


def test_a_header_that_promises_a_trillion_numbers(tmp_path):
    """Is refused without the memory for them."""
    trained(path=tmp_path / "run.rows")
    lines = (tmp_path / "run.rows").read_bytes().split(b"\n", 1)
    header = json.loads(lines[0])
    header["runs"] = [10**6, 10**6]
    (tmp_path / "huge.rows").write_bytes(json.dumps(header).encode() + b"\n" + lines[1])
    with pytest.raises(ValueError, match="expected"):
        tl.Trajectory.load(tmp_path / "huge.rows")


def test_pickles_are_never_loaded(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'harm'}",)

    np.savez(
        tmp_path / "bad.npz",
        format=np.array("torchlimits.Trajectory/1"),
        times=np.array([Harm()], dtype=object),
    )
    with pytest.raises(ValueError, match="expected"):
        tl.Trajectory.load(tmp_path / "bad.npz")
    assert not (tmp_path / "harm").exists()


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("fifo", "empty.npz"):
        with pytest.raises(ValueError, match="expected"):
            tl.Trajectory.load(tmp_path / name)
    with pytest.raises((ValueError, OSError)):
        tl.Trajectory.load(tmp_path)

"""Files that are not what they seem, disks that are full, sinks that fail."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torchlimits as tl
from torchlimits import row_file


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
    monkeypatch.setattr(tl.tracking, "_FLUSH_EVERY_SECONDS", 0.0)
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


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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

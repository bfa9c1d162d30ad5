"""Programs and trackers that end without `close`: what was recorded is where it would have been."""

import gc
import json
import subprocess
import sys
import textwrap
import warnings
from typing import NamedTuple

import pytest
import torch

import torchlimits as tl

START = """
import os, sys, torch, torchlimits as tl
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
tracker = tl.track(
    model, optimizer, {"w": lambda p: p["weight"].norm()}, path="u.npz", writer=tl.CSV("u.csv")
)
def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
"""

#: runs each program that it is given, with all imported once; a program ends as interpreters do
FORKS = """
import json, os, sys
import torch, torch._dynamo, torchlimits

for line in sys.stdin:
    folder, program = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open(f"stream{stream}", os.O_WRONLY | os.O_CREAT), stream)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
exec(program)
"""

FORKED = """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=train, args=(3,))
process.start()
process.join()
"""


class Ended(NamedTuple):
    """How a program ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run():
    """Run a program in a folder, in a process of its own."""
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run_in(folder, program):
        forks.stdin.write(json.dumps([str(folder), START + textwrap.dedent(program)]) + "\n")
        forks.stdin.flush()
        code = int(forks.stdout.readline())
        return Ended(code, *((folder / f"stream{stream}").read_text() for stream in (1, 2)))

    yield run_in
    forks.stdin.close()
    assert forks.wait() == 0


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise RuntimeError('the loop failed')", 1),
        ("raise KeyboardInterrupt", 130),
        ("del tracker, model, optimizer", 0),
        ("os.fork() or sys.exit(0)", 0),
        (FORKED, 0),
    ],
)  # fmt: skip
def test_a_program_that_ends_without_close(run, tmp_path, end, code):
    result = run(tmp_path, f"train(40)\n{end}")
    # torch._dynamo imports tabulate at exit where that is installed, and running its code makes
    # Python forget that it was an interrupt
    also = (-2, 1) if code == 130 else ()
    assert result.returncode in (code, *also), result.stderr
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 41
    assert len((tmp_path / "u.csv").read_text().splitlines()) == 42
    assert "Warning" not in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if "unfinished" in p.name) == []


def test_a_failure_at_the_end_is_told(run, tmp_path):
    result = run(
        tmp_path,
        """
        train(40)
        import torchlimits.record.recording as recording
        def full(*arguments, **options):
            raise OSError(28, "No space left on device")
        recording.Recording.finish = full
        """,
    )
    assert "could not be kept whole" in result.stderr
    assert "No space left" in result.stderr


def test_a_tracker_that_is_collected(tmp_path):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = tmp_path / "u.rows"
    tl.track(model, optimizer, {"w": lambda p: p["weight"].norm()}, path=path)
    for _ in range(5):
        optimizer.step()
    assert not path.exists()
    del model, optimizer
    gc.collect()
    assert len(tl.Trajectory.load(path)) == 6


def test_event_files_of_a_tracker_that_is_collected(tmp_path):
    """All rows, also those since the last flush."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tl.track(model, optimizer, {"w": lambda p: p["weight"].norm()}, writer=tmp_path / "log")
    for _ in range(40):
        optimizer.step()
    del model, optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gc.collect()
    found = reader.EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in found.Scalars("w")] == list(range(41))


def test_what_could_not_be_kept_at_the_end_is_told_once(run, tmp_path):
    """The folder is a file by then; no traceback comes after the program's own output."""
    result = run(
        tmp_path,
        """
        tracker.close()
        tracker = tl.track(
            model, optimizer, {"w": lambda p: p["weight"].norm()}, path="folder/u.npz"
        )
        train(5)
        tracker.flush()
        import shutil
        shutil.rmtree("folder")
        open("folder", "w").close()
        train(5)
        try:
            tracker.close()
        except OSError as error:
            print(error)
        """,
    )
    assert "its rows are in tracker.trajectory()" in result.stdout
    assert "unfinished" not in result.stdout
    assert result.stderr.count("Warning: what was recorded and not closed could not be kept") == 1
    assert "Traceback" not in result.stderr

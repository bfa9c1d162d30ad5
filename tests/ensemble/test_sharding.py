"""Two real processes, started by torchrun, with gloo."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

import torchlimits as tl
from torchlimits.ensemble.processes import end_processes, process_group
from torchlimits.ensemble.shard import Shard

TRAINING = """
import os, sys
from pathlib import Path
import torchlimits as tl
from torchlimits.ensemble.processes import process_group

problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
folder, time = Path(sys.argv[1]), float(sys.argv[2])
with process_group() as group:
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    tl.train(
        problem, step_size=1.0, time=time, runs=70, every=5, progress=False,
        path=folder / "measured.npz", group=group,
    )
"""


def torchrun(folder: Path, limit_time: float) -> subprocess.Popen:
    script = folder / "training.py"
    script.write_text(TRAINING)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)]
    return subprocess.Popen(
        [*command, str(folder), str(limit_time)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # the processes find the package where this one does
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_two_processes_give_what_one_gives(tmp_path):
    """Bit for bit; nothing but the whole is left."""
    running = torchrun(tmp_path, 1.0)
    output, _ = running.communicate(timeout=1800)
    assert running.returncode == 0, output
    problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
    alone = tl.train(problem, step_size=1.0, time=1.0, runs=70, every=5, progress=False)
    together = tl.Trajectory.load(tmp_path / "measured.npz")
    assert torch.equal(together.values, alone.values)
    assert together.metadata == alone.metadata
    assert not list(tmp_path.glob("measured.rank*"))


def test_a_dead_process_ends_the_run_and_the_other_saves_what_it_has(tmp_path):
    running = torchrun(tmp_path, 1e6)
    waited = time.monotonic() + 1800
    while not (tmp_path / "1").exists() or not list(tmp_path.glob("measured.rank0*")):
        assert time.monotonic() < waited
        assert running.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
    output, _ = running.communicate(timeout=1800)
    assert running.returncode != 0
    assert "rank 0: stopped" in output
    assert f"runs 0 ... 31: {tmp_path / 'measured.rank0.npz'}" in output
    saved = tl.Trajectory.load(tmp_path / "measured.rank0.npz")
    assert saved.runs == 32
    assert len(saved) > 1


IN_A_PART = """
import sys
import torchlimits as tl
from torch import distributed
from torchlimits.ensemble.processes import process_group

problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
with process_group() as everybody:
    assert distributed.get_backend(everybody) == "gloo"
    group = distributed.new_group([1, 2])
    if distributed.get_rank() > 0:
        tl.train(
            problem, step_size=1.0, time=1.0, runs=70, every=5, progress=False,
            path=sys.argv[1], group=group,
        )
"""


@pytest.mark.slow
def test_a_group_without_the_first_process(tmp_path):
    """Its own first process gets all the runs."""
    script, path = tmp_path / "training.py", tmp_path / "measured.npz"
    script.write_text(IN_A_PART)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*command, str(script), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(tl.Trajectory.load(path).values, small(runs=70).values)
    assert not list(tmp_path.glob("measured.rank*"))


def small(**arguments):
    problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
    settings = {"step_size": 1.0, "time": 1.0, "every": 5, "progress": False}
    return tl.train(problem, **{**settings, **arguments})


def test_spawned_processes_give_what_one_gives(tmp_path):
    path = tmp_path / "measured.npz"
    together = small(runs=70, processes=2, path=path)
    assert torch.equal(together.values, small(runs=70).values)
    assert torch.equal(tl.Trajectory.load(path).values, together.values)
    assert [file.name for file in tmp_path.iterdir()] == ["measured.npz"]
    assert not torch.distributed.is_initialized()
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_spawned_process_whose_runs_diverge_tells():
    # of 64 runs those of both processes
    with pytest.raises(tl.NonFiniteStatistic) as caught:
        small(runs=64, processes=2, step_size=1e7, time=1e9)
    assert caught.value.trajectory.runs == 64
    assert not multiprocessing.active_children()


class Dying(tl.GaussianMixture):
    """All processes but the first die at the hundredth step."""

    calls = 0

    def loss(self, output, target):
        self.calls += 1
        if multiprocessing.parent_process() is not None and self.calls == 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(output, target)


def test_a_dead_spawned_process_is_noticed(tmp_path):
    xor = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0)
    problem = Dying(xor.means, xor.labels, width=4, snr=4.0)
    path = tmp_path / "measured.npz"
    with pytest.raises(RuntimeError, match="rank 1 of 2 processes is gone"):
        tl.train(problem, step_size=1.0, time=5.0, runs=64, processes=2, progress=False, path=path)
    assert tl.Trajectory.load(tmp_path / "measured.rank0.npz").runs == 32
    assert not multiprocessing.active_children()


class DyingEarly(tl.GaussianMixture):
    """The second process dies when some of its rows are on disk, and leaves a note before."""

    calls = 0

    def loss(self, output, target):
        folder = Path(os.environ["DYING_EARLY"])
        note, rows = folder / "note", folder / "measured.rank1.npz.unfinished"
        if multiprocessing.parent_process() is None:
            self.calls += note.exists()
            assert self.calls < 100_000, "rank 0 went on without being told"
        elif rows.exists() and len(tl.Trajectory.load(rows)) > 1:
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(output, target)


@pytest.mark.slow
def test_a_killed_process_is_noticed_long_before_rank_0_is_through(tmp_path, monkeypatch):
    monkeypatch.setenv("DYING_EARLY", str(tmp_path))
    xor = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0)
    problem = DyingEarly(xor.means, xor.labels, width=4, snr=4.0)
    path, rows = tmp_path / "measured.npz", tmp_path / "measured.rank1.npz.unfinished"
    with pytest.raises(RuntimeError, match="rank 1 of 2 processes is gone") as caught:
        tl.train(problem, step_size=1.0, time=1e6, runs=64, every=5, processes=2, progress=False,
                 path=path)  # fmt: skip
    assert f"its runs 32 ... 63: {rows}" in str(caught.value)
    for kept in (rows, tmp_path / "measured.rank0.npz"):
        saved = tl.Trajectory.load(kept)
        assert saved.runs == 32
        assert len(saved) > 1
    assert not multiprocessing.active_children()


class Failing(tl.GaussianMixture):
    """The second process has no space left on its disk, say."""

    def loss(self, output, target):
        if multiprocessing.parent_process() is not None:
            raise OSError("no space left")
        return super().loss(output, target)


@pytest.mark.slow
def test_an_error_of_a_spawned_process_is_raised():
    xor = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0)
    with pytest.raises(OSError, match="no space left"):
        tl.train(Failing(xor.means, xor.labels, width=4, snr=4.0), step_size=1.0, time=1e6,
                 runs=64, processes=2, progress=False)  # fmt: skip
    assert not multiprocessing.active_children()


def test_processes_that_were_ended_are_gone(monkeypatch):
    """Not only killed: no thread of the pools is still about to note that they have ended."""
    waitpid = os.waitpid

    def waitpid_of_a_slow_thread(pid, options):
        ended = waitpid(pid, options)
        if ended[0] and threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        return ended

    monkeypatch.setattr(os, "waitpid", waitpid_of_a_slow_thread)
    # a fork sees the end of its processes as a spawned one does, and starts fast
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        pools = [ProcessPoolExecutor(1, context) for _ in range(2)]
        pids = [pool.submit(os.getpid).result() for pool in pools]
        for pool in pools:
            pool.submit(time.sleep, 1000)
        end_processes(pools, pids)
        assert not [child for child in multiprocessing.active_children() if child.pid in pids]


ORPHANED = """
import os, sys, threading
from pathlib import Path
import torchlimits as tl

class Noting(tl.GaussianMixture):
    def loss(self, output, target):
        note = Path(sys.argv[1]) / str(os.getpid())
        if not note.exists():
            note.touch()
        return super().loss(output, target)

if __name__ == "__main__":
    xor = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0)
    problem = Noting(xor.means, xor.labels, width=4, snr=4.0)
    tl.train(problem, step_size=1.0, time=1e6, runs=64, processes=2, progress=False)
"""


@pytest.mark.slow
def test_a_spawned_process_ends_with_the_one_that_started_it(tmp_path):
    script, notes = tmp_path / "training.py", tmp_path / "notes"
    script.write_text(ORPHANED)
    notes.mkdir()
    running = subprocess.Popen(
        [sys.executable, str(script), str(notes)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while len(list(notes.iterdir())) < 2:
        assert running.poll() is None
        time.sleep(0.1)
    running.kill()
    # the other process holds the same pipe: it is closed when both are gone
    running.communicate(timeout=1800)


def test_spawned_processes_need_runs_and_no_group():
    with pytest.raises(ValueError, match="at most one process for every 32 runs"):
        small(runs=32, processes=2)
    with pytest.raises(ValueError, match="with a group"):
        small(runs=64, processes=2, group=object())
    with pytest.raises(ValueError, match="processes"):
        small(runs=64, processes=0)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torchlimits as tl\n"
        "problem = tl.GaussianMixture.binary(dim=40, snr=4.0)\n"
        "tl.train(problem, step_size=1.0, time=1.0, runs=64, progress=False, processes=2)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode != 0
    assert "under if __name__ == '__main__'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "problem",
    [
        tl.GaussianMixture.xor(dim=20, snr=2.0, ridge=0.1, directions="random"),
        tl.SpikedTensor(dim=20, order=3, snr=1.0, sampler="dense", direction="random"),
    ],
)
def test_problems_can_be_pickled(problem):
    problem.model()
    copy = pickle.loads(pickle.dumps(problem))
    assert copy.describe() == problem.describe()
    settings = {"step_size": 0.1, "time": 1.0, "progress": False}
    assert torch.equal(tl.train(copy, **settings).values, tl.train(problem, **settings).values)


def test_shares_are_whole_groups():
    assert Shard.of(None, runs=70, lanes=32).runs == range(70)
    assert Shard.of(None, runs=70, lanes=1).groups == range(70)


def test_more_processes_than_groups(monkeypatch):
    monkeypatch.setattr("torchlimits.ensemble.shard.distributed.get_rank", lambda group: 3)
    monkeypatch.setattr("torchlimits.ensemble.shard.distributed.get_world_size", lambda group: 4)
    with pytest.raises(ValueError, match="at most one process for every 32 runs"):
        Shard.of(object(), runs=70, lanes=32)


def test_without_torchrun_there_is_no_group():
    with process_group() as group:
        assert group is None

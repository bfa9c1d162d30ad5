"""Runs that two agents of torchrun share, one of whose processes, or which itself, is killed."""

import re

import pytest
import torch
from agents import launched

import torchlimits as tl
from torchlimits.ensemble.kept import Kept

SETTINGS = {"step_size": 1.0, "time": 3.0, "runs": 70, "every": 5, "progress": False}
#: what is killed ("rank" or "agent", by rank 1 and after so many steps)
TRAINING = """
import os, signal, sys, time
import torchlimits as tl
from torch import distributed
from torchlimits.ensemble import checkpoint
from torchlimits.ensemble.processes import process_group

checkpoint._SECONDS, gather = -1.0, distributed.gather_object
what, step = sys.argv[1], int(sys.argv[2])
rank, steps, between = os.environ["RANK"], [], checkpoint.Checkpoint.between_steps

def between_steps(self):
    steps.append(1)
    between(self)
    if rank == "1" and len(steps) == step:
        if what == "rank":
            os.kill(os.getpid(), signal.SIGKILL)
        while not os.path.exists("waiting"):
            time.sleep(0.01)
        os.remove("waiting")
        os.kill(os.getppid(), signal.SIGKILL)
        while self._signal is None:  # another one would take many steps until it is told
            time.sleep(0.01)

def gather_object(*given, **named):
    if rank == "0" and what == "agent":  # with nothing left to do, and told of the other's end
        open("waiting", "w").close()
    return gather(*given, **named)

checkpoint.Checkpoint.between_steps = between_steps
distributed.gather_object = gather_object
problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
try:
    with process_group() as group:
        tl.train(problem, **{settings}, path="u.npz", checkpoint="c.pt", group=group)
finally:
    print(f"rank {rank} made {len(steps)} steps")
""".replace("{settings}", repr(SETTINGS))


@pytest.mark.slow
def test_a_killed_rank_and_a_killed_agent_cost_the_steps_that_were_not_kept(tmp_path):
    """What is left is said, and what goes on twice ends with the bits of an uninterrupted run."""
    (tmp_path / "training.py").write_text(TRAINING)
    names = ["c.rank0.pt", "c.rank1.pt", "training.py", "u.rank0.npz"]
    kept = "its runs 0 ... 31: u.rank0.npz; runs 32 ... 69: u.rank1.npz"
    again = "the same call, with 2 processes again, goes on from c.rank0.pt, c.rank1.pt"

    (code, output), (other, _) = launched(tmp_path, "training.py", "rank", 50)
    assert code != 0
    assert other != 0
    assert "rank 0 made 120 steps" in output
    assert f"rank 0: another of the 2 processes is gone; {kept}.unfinished; {again}" in output
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "u.rank1.npz.unfinished"]
    assert len(tl.Trajectory.load(tmp_path / "u.rank0.npz")) == 25

    # rank 1 goes on; the agent that is killed is the one at which both meet
    (code, output), (other, orphan) = launched(tmp_path, "training.py", "agent", 30, host=1)
    assert code != 0
    assert other != 0
    assert "rank 0 made 0 steps" in output
    assert re.search(r"rank 0: (another of the 2 processes is gone|stopped)", output)
    assert f"{kept}" in output
    assert "rank 1 made 31 steps" in orphan
    assert "rank 1: stopped" in orphan
    assert f"its runs 32 ... 69: u.rank1.npz; runs 0 ... 31: u.rank0.npz; {again}" in orphan
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "u.rank1.npz"]

    (code, output), (other, last) = launched(tmp_path, "training.py", "none", 0)
    assert (code, other) == (0, 0), output + last
    assert "rank 1 made 39 steps" in last
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training.py", "u.npz"]
    problem = tl.GaussianMixture.xor(dim=40, width=4, snr=4.0, ridge=0.05)
    alone = tl.train(problem, **SETTINGS)
    together = tl.Trajectory.load(tmp_path / "u.npz")
    assert torch.equal(together.values, alone.values)
    assert together.metadata == alone.metadata


def test_what_is_missing_is_said(tmp_path):
    kept, shares = Kept(tmp_path / "u.npz", tmp_path / "c.pt"), [range(32), range(32, 70)]
    (tmp_path / "u.rank0.npz").touch()
    (tmp_path / "c.rank0.pt").touch()
    assert kept.told(shares, rank=0).replace(f"{tmp_path}/", "") == (
        "its runs 0 ... 31: u.rank0.npz; runs 32 ... 69: no file; the same call, with 2 processes "
        "again, goes on from c.rank0.pt, and begins again with runs 32 ... 69, as c.rank1.pt is "
        "not here"
    )
    only_rows = Kept(tmp_path / "u.npz").told(shares, rank=1)
    assert only_rows.endswith("the same call begins again: with checkpoint=FILE it would go on")
    assert "are lost" in Kept().told(shares, rank=1)

"""Runs of the command that are interrupted or killed, and continued."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchlimits as tl
from torchlimits.cli.main import main
from torchlimits.ensemble import checkpoint
from torchlimits.ensemble.checkpoint import Checkpoint

OPTIONS = ["run", "binary", "--dim", "60", "--time", "4", "--runs", "2", "--band", "none"]
#: 120 steps

KILLED = """
import os, signal
from torchlimits.ensemble import checkpoint
checkpoint._SECONDS = -1.0
save, calls = checkpoint.Checkpoint.save, []

def saved(self):
    save(self)
    calls.append(1)
    if len(calls) == 37:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.Checkpoint.save = saved
from torchlimits.cli.main import main
main({arguments!r})
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def interrupt_at(monkeypatch, step):
    """Have a Ctrl-C come right after a step."""
    calls, between = [], Checkpoint.between_steps

    def interrupted(self):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        between(self)

    monkeypatch.setattr(Checkpoint, "between_steps", interrupted)


def same(one, other):
    first, second = (tl.Trajectory.load(Path(folder) / "measured.npz") for folder in (one, other))
    return torch.equal(first.values, second.values) and torch.equal(first.steps, second.steps)


def test_ctrl_c_says_what_was_saved_and_the_run_goes_on_bit_for_bit(monkeypatch, capsys):
    assert main([*OPTIONS, "--logdir", "whole"]) == 0
    # within a block of data, at its end, and in its first step; then in a run that is resumed
    with monkeypatch.context() as patch:
        interrupt_at(patch, 33)
        assert main([*OPTIONS, "--logdir", "part"]) == 130
        said = capsys.readouterr().err
        assert "Interrupted: part/measured.npz holds all steps up to 33; `" in said
        assert said.endswith(" run --resume part` goes on.\n")
        assert said.count("\n") == 1
    assert len(tl.Trajectory.load("part/measured.npz")) == 34
    assert main(["show", "part"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert main(["run", "--resume", "part"]) == 130
    assert main(["run", "--resume", "part"]) == 0
    assert same("whole", "part")
    assert (Path("part") / "overlay.png").exists()
    assert not (Path("part") / "checkpoint.pt").exists()
    assert main(["run", "--resume", "part"]) == 1
    assert "which is finished" in capsys.readouterr().err


def test_an_interrupt_after_the_training_trains_nothing_again(monkeypatch, capsys):
    from torchlimits.cli.story import Story

    def interrupted(self, *measured):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Story, "_predicted", interrupted)
        assert main([*OPTIONS, "--logdir", "part"]) == 130
    assert "up to 120" in capsys.readouterr().err
    monkeypatch.setattr(Story, "_train", None)
    assert main(["run", "--resume", "part"]) == 0


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_bit_for_bit(capsys):
    arguments = [*OPTIONS, "--logdir", "part"]
    code = KILLED.format(arguments=arguments)
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # nothing was closed, and what was recorded can be looked at
    assert Path("part/measured.npz.unfinished").exists()
    assert main(["show", "part"]) == 0
    assert "unfinished: Trajectory(7 statistics" in capsys.readouterr().out
    assert main(["run", "--resume", "part"]) == 0
    assert main([*OPTIONS, "--logdir", "whole"]) == 0
    assert same("whole", "part")


def test_train_goes_on_from_its_checkpoint(monkeypatch, tmp_path):
    """In the data of 40 runs, which are two groups of replicas."""
    problem = tl.SpikedTensor(dim=30, snr=2.0)
    options = {"step_size": 1.0, "time": 3.0, "runs": 40, "momentum": 0.5, "progress": False}
    whole = tl.train(problem, **options)
    file = tmp_path / "c.pt"
    monkeypatch.setattr(checkpoint, "_SECONDS", -1.0)
    for step in (17, 40):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                tl.train(problem, **options, checkpoint=file)
        assert file.exists()
    with pytest.raises(ValueError, match="of another one"):
        tl.train(problem, **{**options, "seed": 1}, checkpoint=file)
    found = tl.train(problem, **options, checkpoint=file)
    assert torch.equal(found.values, whole.values)
    assert not file.exists()
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read"):
        tl.train(problem, **options, checkpoint=file)
    assert file.read_bytes() == b"damaged"


def test_the_second_interrupt_does_not_wait(monkeypatch):
    def stuck(self):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one waited")

    monkeypatch.setattr(Checkpoint, "between_steps", stuck)
    assert main([*OPTIONS, "--logdir", "part"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no run.json"),
        ("{", "cannot be read"),
        ('{"stage": "begun", "options": {"problem": "nope"}}', "another version"),
        ('{"stage": "begun", "options": {"problem": "xor", "depth": 3}}', "another version"),
    ],
)
def test_what_cannot_be_resumed(content, message, capsys):
    Path("run").mkdir()
    if content is not None:
        Path("run/run.json").write_text(content)
    assert main(["run", "--resume", "run"]) == 1
    assert message in capsys.readouterr().err

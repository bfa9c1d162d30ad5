"""Sixteen tasks, a script each, which README links: they run, and do what they say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import torchlimits as tl

ROOT = Path(__file__).parent.parent
RECIPES = {path.stem: path for path in sorted((ROOT / "docs" / "recipes").glob("*.py"))}
#: what is printed, and which files are there
DONE = {
    "a1_overlay": ("sup |difference|", ["runs/overlay/measured", "runs/overlay/predicted"]),
    "a2_variations": ("width=6", ["runs/variations/width4-snr8-lr3/predicted"]),
    "a4_own_mixture": ("size", []),
    "a5_critical": ("critical", []),
    "a6_phase_diagram": ("[1, 1, 1, 1, 1, 1, 1]", ["phase_diagram.png"]),
    "a7_picture": ("statistic", ["measured.npz", "figure.pdf"]),
    "a8_own_problem": ("R[0,1]", []),
    "a9_own_head": ("risk: measured", ["own_head.png"]),
    "b1_live": ("", ["runs/cnn"]),
    "b2_sinks": ("100 {", ["u.csv"]),
    "b3_resume": ("", ["runs/u.npz", "runs/checkpoint.pt"]),
    "b4_statistics": ("sharpness", []),
    "b5_explained": ("corrector", []),
    "b6_side_by_side": ("", ["runs/side/slow", "runs/side/fast"]),
    "b7_own_module": ("accuracy", ["runs/own"]),
}


@pytest.mark.parametrize("name", DONE)
def test_recipes_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(RECIPES[name]), run_name="__main__")
    printed, files = DONE[name]
    assert printed in capsys.readouterr().out
    assert not [file for file in files if not (tmp_path / file).exists()]


@pytest.mark.slow
def test_figures_of_the_paper(tmp_path):
    command = [sys.executable, str(RECIPES["a3_figures"]), "--smoke"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert len(list(tmp_path.glob("runs/figures/**/*.png"))) == 3


#: a program that is killed in its 75th backward pass
KILLED = """
import itertools, os, runpy, sys, torch
passes, backward = itertools.count(1), torch.Tensor.backward
def deadly(*args):
    os.kill(os.getpid(), 9) if next(passes) == 75 else backward(*args)
torch.Tensor.backward = deadly
runpy.run_path(sys.argv[1])
"""


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    command = [sys.executable, "-c", KILLED, str(RECIPES["b3_resume"])]
    assert subprocess.run(command, check=False, cwd=tmp_path).returncode == -9
    assert not (tmp_path / "runs" / "u.npz").exists()
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(RECIPES["b3_resume"]))
    assert tl.Trajectory.load(tmp_path / "runs" / "u.npz").steps.tolist() == list(range(101))


def test_each_task_has_a_short_script_that_the_readme_links():
    assert len(RECIPES) == 16
    assert RECIPES.keys() == DONE.keys() | {"a3_figures"}
    linked = re.findall(r"\(docs/recipes/(\w+)\.py\)", (ROOT / "README.md").read_text())
    assert linked == list(RECIPES)
    long = {name: len(path.read_text().splitlines()) for name, path in RECIPES.items()}
    assert not {name: lines for name, lines in long.items() if lines > 25}

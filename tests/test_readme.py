"""The README's examples and commands are what is tested."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_examples_run_as_written(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[index], f"README example {index}", "exec"), {})
    printed = capsys.readouterr().out
    if index == 0:
        assert "9 statistics, 2001 times" in printed
        assert (tmp_path / "runs" / "mine" / "u.npz").exists()
    elif index == 1:
        assert "sharpness" in printed
        assert "[11 rows x" in printed
    elif index == 2:
        assert "R[1,1]" in printed
    elif index == 4:
        assert "2 statistics, 33 times" in printed
    elif index == 5:
        assert "in 95 %" in printed
    elif index == 6:
        assert "in 95 %" in printed
        assert "FixedPoint([0.08333], stable)" in printed
    elif index == 7:
        assert "corrector g" in printed
        assert "residual" in printed
        assert "sup |difference|" in printed
    else:
        assert "625 24\n0.09375\ncritical" in printed
        assert "tensor(2., dtype=torch.float64)" in printed or "tensor(2.0000" in printed


def test_wrapping_ones_own_loop_takes_twenty_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 20


def test_both_commands_make_their_own_environment():
    make = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    assert f"{make}. && .venv/bin/python scripts/run.py xor\n" in README
    assert f"{make}'.[test]' && .venv/bin/pytest -n 2 -m 'not slow'\n" in README


def test_files_the_readme_shows_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target

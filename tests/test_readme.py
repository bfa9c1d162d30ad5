"""The README's examples and commands are what is tested, and it stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
#: what the blocks print
PRINTED = ["12 statistics, 2001 times", "R[1,1]"]


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_examples_run_as_written(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[index], f"README example {index}", "exec"), {})
    assert PRINTED[index] in capsys.readouterr().out
    assert (tmp_path / ("runs/mine/u.npz", "runs/binary/predicted")[index]).exists()


def test_wrapping_ones_own_loop_takes_ten_lines():
    code = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len([line for line in code if not line.startswith("import")]) <= 10


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.encode()) <= 9000


def test_both_commands_make_their_own_environment():
    make = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    run, test = (README.index(line) for line in (
        f"{make}. && .venv/bin/torchlimits run xor\n",
        f"{make}'.[test]' && .venv/bin/pytest -n 2 -m 'not slow'\n",
    ))  # fmt: skip
    assert run < test


def test_files_the_readme_shows_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target

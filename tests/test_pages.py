"""The pages of docs/: their examples run, and what they say of files and names is true.

Code cells of the tutorials, the gallery and the notebook are executed when the pages are built.
"""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import torchlimits as tl

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    str(page.relative_to(DOCS)): re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    for page in sorted(DOCS.rglob("*.md"))
}
#: what some print
PRINTED = {
    "howto/statistics.md": "[11 rows x",
    "howto/custom_statistic.md": "alignment",
    "howto/sinks.md": "'norm'",
    "howto/lightning.md": "2 statistics, 33 times",
    "howto/transformers.md": "2 statistics, 21 times",
    "howto/parallel.md": "5 statistics, 21 times",
    "howto/replicas.md": "runs=5",
    "howto/machines.md": "Sweep(snr x step_size: 2 x 3 points)",
    "howto/own_network.md": "4.weight[0,3]",
    "howto/own_problem.md": "0.08333",
}


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_examples_run_one_after_the_other(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    alone = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 0}
    for name, value in alone.items():  # as torchrun sets them
        monkeypatch.setenv(name, str(value))
    known = {}
    for block in PAGES[page]:
        exec(compile(block, page, "exec"), known)
    assert PRINTED.get(page, "") in capsys.readouterr().out


def test_the_pages_that_print_have_examples():
    assert not [page for page in PRINTED if not PAGES[page]]


def test_every_public_name_is_in_the_reference():
    shown = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    modules = {name for name in dir(tl) if isinstance(getattr(tl, name), ModuleType)}
    assert not [name for name in dir(tl) if not re.search(rf"^   {name}$", shown, re.M)
                and not (name in modules and f"torchlimits.{name}" in shown)]  # fmt: skip
    ready = tl.statistics.__all__
    assert not [name for name in ready if f".. autofunction:: {name}\n" not in shown]


@pytest.mark.slow
def test_ddp_and_fsdp_by_torchrun(tmp_path):
    (tmp_path / "train.py").write_text(PAGES["howto/parallel.md"][0])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, "train.py"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.count("5 statistics, 21 times") == 2

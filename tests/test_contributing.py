"""What the documents beside the code say of it is true: paths, names, examples."""

import importlib
import re
from pathlib import Path

import pytest
from test_ranks import RANKS

import torchlimits as tl

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md"]
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("[a-z]*.md"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
#: what the blocks print
PRINTED = ["dtype=torch.float64)\n", "[1.0]\n[1.0]\n"]
#: in a code span or a command
PATH = re.compile(r"(?<![\w/.])(?:(?:tests|scripts|torchlimits)/[\w./]*|\.ci/\w+|\w+\.(?:md|cff))")


@pytest.mark.parametrize("document", DOCUMENTS + PAGES)
def test_paths_exist(document):
    paths = PATH.findall(without_links((ROOT / document).read_text()))
    assert document in PAGES or len(paths) > 2
    assert not [path for path in paths if not (ROOT / path.rstrip(".")).exists()]


def without_links(text):
    """Less what links and includes point to, from the page on: Sphinx checks that."""
    return re.sub(r"\]\([^)]*\)|^```\{.*", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_of_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", (ROOT / page).read_text())
    made = [link for link in links if "generated/" in link]  # by Sphinx, which checks them
    assert not [x for x in links if x not in made and not ((ROOT / page).parent / x).exists()]


def resolves(dotted):
    """Whether it is a module, or a name in one."""
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return bool(module) and resolves(module) and hasattr(importlib.import_module(module), name)
    return True


@pytest.mark.parametrize("document", DOCUMENTS + PAGES)
def test_names_exist(document):
    text = (ROOT / document).read_text()
    modules = re.findall(r"\btorchlimits(?:\.\w+)+", text)
    assert not [dotted for dotted in modules if not resolves(dotted)]
    assert not [name for name in re.findall(r"\btl\.(\w+)", text) if not hasattr(tl, name)]


def test_examples_stand_where_they_are_said_to():
    shown = re.findall(r"`(\w+)` in `([\w./]+)`", CONTRIBUTING)
    assert len(shown) > 8
    for name, path in shown:
        here = rf"^ *(?:def|class) {name}\b|^{name}\b.* = "
        assert re.search(here, (ROOT / path).read_text(), re.MULTILINE), (name, path)


def test_every_room_is_in_the_picture():
    (picture,) = re.findall(r"```text\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    drawn = set(re.findall(r"\b(\w+)(?:/|\.py)", picture)) | {"_"} & set(picture)
    assert drawn == set(RANKS)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_examples_run(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[index], f"CONTRIBUTING example {index}", "exec"), {})
    printed = capsys.readouterr().out
    assert PRINTED[index] in printed


def test_commands_are_those_of_the_readme():
    (command,) = [line for line in CONTRIBUTING.splitlines() if line.startswith("python3 -m venv")]
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()


def test_what_was_added_is_there_and_what_was_removed_is_not():
    (unreleased,) = re.findall(r"## \[Unreleased\]\n(.*?)\n## ", CHANGELOG, flags=re.DOTALL)
    sections = dict(re.findall(r"### (\w+)\n(.*?)(?=\n### |\Z)", unreleased, flags=re.DOTALL))
    for section, there in (("Added", True), ("Removed", False)):
        heads = re.findall(r"^\* (`tl\..*?):", sections[section], flags=re.MULTILINE)
        names = re.findall(r"`tl\.([\w.]+)", " ".join(heads))
        assert names
        for name in names:
            assert has(name) is there, name


def has(name):
    """Whether tl has the dotted name."""
    found = tl
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_checks_notice_what_is_not_there():
    assert PATH.findall("see `tests/nowhere.py`, and .ci/run") == ["tests/nowhere.py", ".ci/run"]
    assert resolves("torchlimits.record.track.track")
    assert not resolves("torchlimits.record.nowhere")
    assert not resolves("torchlimits.nowhere.track")
    assert has("Trajectory.select")
    assert not has("Triple")


def test_test_files_have_names_of_their_own():
    """pytest imports them as modules of one folder: of two with one name, the second never runs."""
    names = [file.name for file in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

"""Who imports whom: one table of ranks, and no circle of files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "torchlimits"
#: what each room may import besides itself; a private file of the top level counts as "_"
_BELOW_CONTRACTS = {"_", "files", "trajectory", "statistics"}
_RECORD = {*_BELOW_CONTRACTS, "contracts", "comparison", "figures", "tensorboard"}
_PREDICT = {*_BELOW_CONTRACTS, "contracts", "optim", "dynamics", "problems"}
RANKS = {
    "_": set(),
    "files": {"_"},
    "trajectory": {"_", "files"},
    "statistics": {"_"},
    "contracts": _BELOW_CONTRACTS,
    "comparison": {*_BELOW_CONTRACTS, "contracts"},
    "figures": {*_BELOW_CONTRACTS, "contracts", "comparison"},
    "tensorboard": _RECORD - {"tensorboard"},
    "record": _RECORD,
    "optim": {*_BELOW_CONTRACTS, "contracts"},
    "dynamics": _PREDICT - {"dynamics", "problems"},
    "problems": _PREDICT - {"problems"},
    "estimation": _PREDICT,
    "ensemble": {*_RECORD, "record", "problems.problem"},
    "experiments": {*_RECORD, "record", *_PREDICT, "ensemble"},
    "cli": {*_RECORD, "record", *_PREDICT, "estimation", "ensemble", "experiments"},
    "integrations": {*_BELOW_CONTRACTS, "contracts", "record"},
}


def modules():
    """Name within the package -> file; "" is the front door."""
    return {
        ".".join(f.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .strip("."): f
        for f in PACKAGE.rglob("*.py")
    }


def imports(file, known):
    """The package's modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            as_module = [x for x in inner if x.removeprefix("torchlimits.") in known]
            names = as_module if len(as_module) == len(inner) else [*as_module, node.module]
        else:
            continue
        found |= {
            name.removeprefix("torchlimits").strip(".")
            for name in names
            if name.split(".")[0] == "torchlimits"
        }
    return found


def graph():
    known = modules()
    return {name: imports(file, known) for name, file in known.items()}


def room(name):
    first = name.split(".")[0]
    if first == "__main__":
        return "cli"
    return "_" if first.startswith("_") else first


def allowed(name, other):
    """Whether a file may import another."""
    if room(name) == room(other):
        return True
    below = RANKS[room(name)]
    return room(other) in below or other in below


def test_every_import_points_down():
    upward = [
        f"{name} -> {other or 'the front door'}"
        for name, others in graph().items()
        if name
        for other in others
        if not other or not allowed(name, other)
    ]
    assert not upward


def test_the_table_has_every_room_and_no_circle():
    rooms = {room(name) for name in modules() if name}
    assert rooms == set(RANKS)
    TopologicalSorter({k: {room(x) for x in v} for k, v in RANKS.items()}).prepare()


def test_no_circle_of_files():
    TopologicalSorter(graph()).prepare()


def test_no_file_takes_the_place_of_a_public_name():
    """A submodule that is loaded later becomes the package's attribute of its name."""
    for init in PACKAGE.rglob("*/__init__.py"):
        tree = ast.parse(init.read_text())
        loaded = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and "__all__" in
                 [getattr(t, "id", "") for t in n.targets]]  # fmt: skip
        for name in (name for value in lists for name in ast.literal_eval(value)):
            if (init.parent / f"{name}.py").exists():
                room = ".".join(init.parent.relative_to(PACKAGE.parent).parts)
                assert {f"{room}.{name}", room} & loaded, f"{room}.{name} is two things"


def test_the_checks_notice(tmp_path):
    """An import in a function, one under TYPE_CHECKING, and a circle."""
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from torchlimits.dynamics import flow\n"
        "def f():\n    from torchlimits.optim.sgd import SGDSettings\n"
    )
    found = imports(file, modules())
    assert found == {"dynamics.flow", "optim.sgd"}
    assert not any(allowed("record.ring", other) for other in found)
    assert not allowed("ensemble.train", "problems.mixture.problem")
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_recording_loads_nothing_of_predicting():
    """Not even through others, as the program runs."""
    code = (
        "import sys, torchlimits as tl, torchlimits.integrations\n"
        "tl.track, tl.CSV, tl.tensorboard, tl.figures, tl.compare, tl.Trajectory\n"
        "print(*sorted({m.split('.')[1] for m in sys.modules if m.startswith('torchlimits.')}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "record" in loaded
    assert not loaded & {"optim", "dynamics", "problems", "estimation", "ensemble", "experiments"}


def test_the_front_door_is_light():
    code = (
        "import sys, torchlimits as tl\n"
        "heavy = {'torchdiffeq', 'scipy', 'matplotlib', 'tensorboard'}\n"
        "shown = dir(tl) == sorted(dir(tl)) and not any(n.startswith('_') for n in dir(tl))\n"
        "print(heavy & set(sys.modules), shown)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set() True"


def test_the_front_door_says_the_same_three_times():
    """To readers and type checkers, to those who ask, and to `import *`."""
    import torchlimits as tl

    (block,) = [
        node
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.If)
    ]
    *sources, listed = block.body
    static = {
        alias.name: node.module.removeprefix("torchlimits").strip(".")
        for node in sources
        for alias in node.names
    }
    homes = {**tl._HOMES, **{n: m.rpartition(".")[0] for n, m in tl._MODULES.items()}}
    assert static == homes
    assert sorted(static) == sorted(ast.literal_eval(listed.value)) == dir(tl)
    assert all(getattr(tl, name) is not None for name in dir(tl))
    starred = {}
    exec("from torchlimits import *", starred)
    assert set(dir(tl)) <= set(starred)


def test_help_fits_two_screens_and_leads_on():
    """In a program of its own: pydoc lists what has been opened, too."""
    code = "import pydoc, torchlimits as tl; print(pydoc.render_doc(tl, renderer=pydoc.plaintext))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) <= 100
    assert "help(torchlimits.track)" in run.stdout

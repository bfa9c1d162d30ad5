"""Whatever users call is documented: what it takes, and by an example that runs."""

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

import torchlimits as tl

ROOT = Path(__file__).parent.parent
#: they load a library that not everybody has
EXTRAS = ["torchlimits.integrations.lightning", "torchlimits.integrations.transformers"]


def own(thing):
    return getattr(thing, "__module__", "").startswith("torchlimits")


def names_of(module):
    if module is tl:
        return dir(tl)
    if hasattr(module, "__all__"):
        return module.__all__
    return [n for n, x in vars(module).items() if not n.startswith("_") and belongs(n, x, module)]


def belongs(name, thing, module):
    """Whether a module defines it, or gives it another name (``gram = Gram``)."""
    renamed = name != getattr(thing, "__name__", name)
    return callable(thing) and own(thing) and (thing.__module__ == module.__name__ or renamed)


def public(module, path):
    """(path, class or function) of all that a module exports."""
    for name in names_of(module):
        if f"{module.__name__}.{name}" in EXTRAS:
            continue
        thing = getattr(module, name)
        if isinstance(thing, ModuleType):
            yield from public(thing, f"{path}.{name}")
        elif callable(thing):
            yield f"{path}.{name}", thing


def parameters(function):
    try:
        known = inspect.signature(function).parameters
    except ValueError:  # exceptions without arguments of their own
        return []
    return [name for name in known if name not in ("self", "cls") and not name.startswith("_")]


def doc_of(thing):
    return inspect.cleandoc(getattr(thing, "__func__", thing).__doc__ or "")


def examples(doc):
    return "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) (.*)$", doc, flags=re.MULTILINE))


def listed(doc):
    """The names in front of the colons in its sections Args and Attributes."""
    sections = re.findall(r"^(?:Args|Attributes):\n((?:(?:    .*)?\n)+)", doc + "\n", re.MULTILINE)
    lines = re.findall(r"^    ([\w, ]+):", "".join(sections), flags=re.MULTILINE)
    return {name.strip() for line in lines for name in line.split(",")}


def complaints(thing):
    """About a class or function by itself."""
    doc = doc_of(thing)
    if not doc:
        return ["no docstring"]
    missing = [] if ">>> " in doc else ["no example"]
    # a protocol is not called
    taken = [] if getattr(thing, "_is_protocol", False) else parameters(thing)
    unknown = [name for name in taken if name not in listed(doc)]
    return missing + [f"parameter {name} is in no section Args" for name in unknown]


def members(kind):
    """(name, as it was defined) of a class's public methods and properties, ours and not others'.

    What a base class from elsewhere has (nn.Module.forward, a trainer's callbacks) is documented
    there.
    """
    for name in dir(kind):
        owners = [one for one in kind.__mro__ if name in vars(one)]
        if not name.startswith("_") and all(own(one) for one in owners):
            yield name, vars(owners[0])[name]


def complaints_about_members(kind):
    shown = "\n".join(examples(doc_of(one)) for one in kind.__mro__ if own(one))
    for name, member in members(kind):
        function = getattr(member, "__func__", member)
        if not callable(function) and not is_property(member):
            continue  # a value of the class
        doc = doc_of(member)
        if doc:  # a method of a base class that is defined anew is the same to its caller
            doc = "\n".join(doc_of(vars(one)[name]) for one in kind.__mro__ if name in vars(one))
        if not doc:
            yield f"{name}: no docstring"
        if is_property(member):
            continue
        if ">>> " not in doc and f".{name}(" not in shown:
            yield f"{name}: no example, here or in the class's"
        for parameter in parameters(function):
            if not re.search(rf"(?<![\w.]){parameter}\b", doc):
                yield f"{name}: parameter {parameter} is not named"


def is_property(member):
    return isinstance(member, property) or type(member).__name__ == "cached_property"


def everything():
    found = {}
    for path, thing in public(tl, "tl"):
        found.setdefault(id(thing), (path, thing))
    return found.values()


@pytest.mark.parametrize(("path", "thing"), everything(), ids=lambda x: x if type(x) is str else "")
def test_public_names(path, thing):
    found = complaints(thing)
    if inspect.isclass(thing):
        found += complaints_about_members(thing)
    assert not found, f"{path}: " + "; ".join(found)


@pytest.mark.parametrize("name", EXTRAS)
def test_extras(name):
    pytest.importorskip(name.rpartition(".")[2])
    kind = importlib.import_module(name).TrackerCallback
    assert not [*complaints(kind), *complaints_about_members(kind)]


def test_every_module_can_be_imported():
    """Doctests of one that cannot would be left out without a word."""
    for found in pkgutil.walk_packages(tl.__path__, "torchlimits."):
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            assert error.name == "triton"  # noqa: PT017


def test_the_walk_reaches_what_users_call():
    paths = {path for path, _ in everything()}
    assert {"tl.track", "tl.Tracker", "tl.Trajectory", "tl.GaussianMixture"} <= paths
    assert {"tl.statistics.gram", "tl.tensorboard.write", "tl.figures.overlay"} <= paths
    assert {"flush", "remove"} <= {name for name, _ in members(tl.Tracker)}
    assert "initial" in {name for name, _ in members(tl.Trajectory)}


def test_what_is_not_documented_is_found():
    @dataclass
    class Silent:
        """Says nothing."""

        number: int

        def method(self, argument):
            """Nothing."""

        @property
        def value(self):
            return 1

    Silent.__module__ = "torchlimits.somewhere"
    assert complaints(Silent) == ["no example", "parameter number is in no section Args"]
    assert list(complaints_about_members(Silent)) == [
        "method: no example, here or in the class's",
        "method: parameter argument is not named",
        "value: no docstring",
    ]


def test_the_citation_is_that_of_this_version():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {version[1]}\n" in citation
    assert "arXiv:2206.04030" in citation


@pytest.mark.parametrize(
    ("thing", "ours"),
    [
        (tl.SpikedTensor(dim=10, order=2, snr=2.0).dynamics(step_size=1.0), "fixed_points"),
        (tl.SpikedTensor(dim=10, order=2, snr=2.0).model(), "x"),
        (tl.GaussianMixture.binary(dim=10, snr=2.0).model(), "first"),
        (tl.replicate(torch.nn.Linear(2, 1), 3), "statistics"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_completion_shows_what_is_ours_and_what_everybody_uses(thing, ours):
    shown = {name for name in dir(thing) if not name.startswith("_")}
    assert {ours, "parameters", "state_dict", "to", "train"} <= shown
    assert not {"register_backward_hook", "ipu", "share_memory", "T_destination"} & shown
    assert len(shown) < 60
    assert callable(thing.register_forward_hook)  # hidden, not gone

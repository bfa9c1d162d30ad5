"""Damaged files are refused; all of them are tried by the script, some of them here."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from torchlimits.files import row_reader

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


@pytest.fixture
def reach(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("reach_flips")
    sys.modules.pop("reach_flips")


def test_no_damage_is_silent(reach):
    found = reach.count(every=41, number=20)
    assert len(found) == 8
    assert sum(sum(outcomes.values()) for outcomes in found.values()) > 1000
    for kind, outcomes in found.items():
        # whatever is wrong with a file that was finished is an error
        allowed = {"refused"}
        if "unfinished" in kind:
            allowed |= {"first rows", "first rows, warned", "whole, warned"}
        assert set(outcomes) <= allowed, kind
        assert outcomes["refused"] > 20


def test_the_check_notices(reach, monkeypatch):
    monkeypatch.setattr(
        row_reader, "checksums", lambda seed, rows: [int(x) for x in rows["crc32c"]]
    )
    found = reach.count(every=41, number=1)
    assert found["rows: one bit"]["WRONG"] > 0
    assert "WRONG" not in found["npz: one bit"]


def test_the_figures_of_all_bits_are_kept():
    kept = json.loads((SCRIPTS / "reach_flips.json").read_text())
    assert kept["files tried"] >= 10_000
    assert kept["wrong and silent"] == 0

"""Ctrl-C, an exit or an error at any line of a step, flush or close: nothing lost or doubled."""

import random

import pytest
from interrupted_runs import SINKS, events_of, survives

import torchlimits as tl

#: of some thousand events a case, so many are tried here; scripts/reach_interrupts.py has them all
_SOME = 40


def some(events, seed):
    return random.Random(seed).sample(events, min(_SOME, len(events)))


@pytest.mark.parametrize("sink", list(SINKS))
@pytest.mark.parametrize("suffix", [None, ".npz", ".rows"])
def test_nothing_is_lost_or_doubled(tmp_path, suffix, sink):
    events = events_of(tmp_path, suffix, sink)
    assert len(events) > 500
    for number, at in enumerate(some(events, seed=sum(map(ord, f"{suffix}{sink}")))):
        survives(tmp_path / str(number), at, suffix, sink)


@pytest.mark.parametrize("options", [{"hook": True}, {"logs": True}], ids=["hook", "logs"])
def test_rows_of_the_hook_and_values_of_the_loop(tmp_path, options):
    events = events_of(tmp_path, ".npz", "list", **options)
    for number, at in enumerate(some(events, seed=1)):
        survives(tmp_path / str(number), at, ".npz", "list", **options)


@pytest.mark.parametrize("error", [SystemExit, MemoryError])
def test_other_exceptions(tmp_path, error):
    events = events_of(tmp_path, ".npz", "CSV")
    for number, at in enumerate(some(events, seed=2)):
        survives(tmp_path / str(number), at, ".npz", "CSV", error=error)


def test_the_check_sees_what_is_given_up_too_early(tmp_path, monkeypatch):
    """Negative control: a recorder that forgets its pending records before they are kept."""
    from torchlimits.record.tracker import Tracker

    evaluate = Tracker._evaluate

    def careless(self, pending):
        self._records, self._pending = self._next, []
        evaluate(self, pending)

    monkeypatch.setattr(Tracker, "_evaluate", careless)
    events = events_of(tmp_path, None, "no sink")
    lost = 0
    for number, at in enumerate(some(events, seed=3)):
        try:
            survives(tmp_path / str(number), at, None, "no sink")
        except AssertionError:
            lost += 1
    assert lost > 3


def test_the_whole_package_is_watched():
    from interrupted_runs import FILES

    assert {"tracker.py", "ring.py", "recording.py", "csv.py"} <= {
        f.rpartition("/")[2] for f in FILES
    }
    assert tl.__file__.rpartition("/")[0] in FILES[0]

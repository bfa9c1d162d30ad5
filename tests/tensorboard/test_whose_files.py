"""Whose event files are replaced, emptied and read: our own, and of one recording only."""

import logging
import os
import subprocess
import sys
import time
import weakref

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl
from torchlimits.files import lock
from torchlimits.tensorboard import Writer, events
from torchlimits.tensorboard.borrowed import Borrowed, Foreign, borrowed
from torchlimits.trajectory import Trajectory

NAMES = ["m[0,1]", "m[1,0]"]


def rows(first, last, names=NAMES, runs=()):
    """Steps from first up to last."""
    steps = torch.arange(first, last)
    values = torch.sin(steps[:, None] + torch.arange(len(names))).double()
    return Trajectory(steps * 0.1, steps, values.expand(*runs, *values.shape), names)


def steps_in(folder, tag="m/0/1"):
    """As TensorBoard's server reads them."""
    found = EventAccumulator(str(folder), tensor_size_guidance={"scalars": 0}).Reload()
    if tag not in found.Tags()["tensors"]:
        return None
    return [event.step for event in found.Tensors(tag)]


def training(writer, steps=0, every_flush=None):
    """A tracker and a function that takes so many steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"m": lambda p: p["weight"]}, writer=writer)

    def take(count):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).square().mean().backward()
            optimizer.step()
        tracker.flush()

    return tracker, take


def write(logdir, last, **options):
    with Writer(logdir, max_points=None, **options) as writer:
        writer.add(rows(0, last))


# --- folders within folders ----------------------------------------------------------------------


def test_a_run_does_not_replace_those_in_its_subfolders(tmp_path):
    write(tmp_path / "0", 5)
    write(tmp_path / "1", 6)
    write(tmp_path, 7)
    write(tmp_path, 8)
    assert [len(steps_in(tmp_path / run)) for run in ("0", "1", ".")] == [5, 6, 8]


def test_independent_runs_of_one_tracker_are_replaced_together(tmp_path):
    for count, last in ((3, 5), (2, 6)):
        with Writer(tmp_path, max_points=None) as writer:
            writer.add(rows(0, last, runs=(count,)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    assert [len(steps_in(tmp_path / run)) for run in ("0", "1")] == [6, 6]


def test_independent_runs_beside_a_run_in_a_folder_of_such_a_name(tmp_path):
    write(tmp_path / "0", 5)
    with Writer(tmp_path, max_points=None) as writer:
        writer.add(rows(0, 7, runs=(2,)))
    assert len(steps_in(tmp_path / "0")) == 5
    assert len(steps_in(tmp_path / "0" / "torchlimits")) == len(steps_in(tmp_path / "1")) == 7
    # and the other way round
    write(tmp_path / "1", 4)
    assert len(steps_in(tmp_path / "1")) == 7
    assert len(steps_in(tmp_path / "1" / "torchlimits")) == 4


def test_what_is_replaced_is_named(tmp_path, caplog):
    write(tmp_path, 5)
    (old,) = events.own_files(tmp_path)
    with caplog.at_level(logging.WARNING):
        write(tmp_path, 6)
    (message,) = caplog.messages
    assert old.name in message
    assert str(tmp_path) in message
    assert len(steps_in(tmp_path)) == 6


def test_files_of_earlier_versions_are_replaced_in_their_folder_only(tmp_path):
    """They have no mark."""
    for place in (tmp_path, tmp_path / "0"):
        write(place, 9)
        (file,) = events.own_files(place)
        content = file.read_bytes()
        file.write_bytes(content.replace(b"torchlimits.Events/1 .", b"torchlimits-Events/1 ."))
        assert events._mark_of(file) is None
    write(tmp_path, 4)
    assert len(steps_in(tmp_path)) == 4
    assert len(list((tmp_path / "0").iterdir())) == 1


def test_links_are_deleted_and_not_followed(tmp_path):
    write(tmp_path / "other", 9)
    (file,) = events.own_files(tmp_path / "other")
    content = file.read_bytes()
    for number in (1, 2):
        (tmp_path / "log").mkdir(exist_ok=True)
        (tmp_path / "log" / f"events.out.tfevents.{number}.x.torchlimits").symlink_to(file)
    write(tmp_path / "log", 5)
    assert file.read_bytes() == content
    assert len(list((tmp_path / "log").iterdir())) == 1


# --- beside other people's -----------------------------------------------------------------------


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_summary_writer_in_the_same_folder_keeps_its_points(tmp_path, first):
    writer = Writer(tmp_path, max_points=None)
    if first == "ours":
        writer.add(rows(0, 3))
        writer.flush()
    with SummaryWriter(str(tmp_path), purge_step=0) as mine:
        for step in range(40):
            mine.add_scalar("loss", step, step)
        mine.flush()
        writer.add(rows(0, 30))
        writer.flush()
        state = writer.state_dict()
        writer.add(rows(30, 35))
        writer.close()
    # a program that resumes, ours in a folder of its own if it was not
    again = Writer(tmp_path, max_points=None)
    again.load_state_dict(state)
    again.add(rows(again.newest + 1, 33))
    again.close()
    assert steps_in(tmp_path, "loss") == list(range(40))
    assert steps_in(tmp_path / "torchlimits") == list(range(33))
    assert steps_in(tmp_path) is None


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_a_summary_writer_made_without_options_keeps_its_points(tmp_path, first):
    """As the docs of torch have it; a tracker with the same folder begins before or after it."""
    theirs = SummaryWriter(str(tmp_path)) if first == "theirs" else None
    if theirs is not None:
        theirs.add_scalar("loss", 0.0, 0)
        theirs.flush()
    tracker, take = training(tmp_path)
    theirs = SummaryWriter(str(tmp_path)) if theirs is None else theirs
    for step in range(theirs is not None and first == "theirs", 12):
        take(1)
        theirs.add_scalar("loss", step, step)
    theirs.flush()
    tracker.close()
    theirs.close()
    assert steps_in(tmp_path, "loss") == list(range(12))
    ours = [steps_in(folder) for folder in (tmp_path, tmp_path / "torchlimits")]
    assert list(range(tracker.step + 1)) in ours


@pytest.mark.parametrize("times", [1, 2])
def test_trackers_of_a_folder_and_its_subfolders_keep_each_other(tmp_path, times):
    """Several runs in one log directory, whose script may be run again."""
    for _ in range(times):
        for run, count in (("0", 3), ("1", 4), (".", 5)):
            tracker, take = training(str(tmp_path / run))
            take(count)
            tracker.close()
    assert [len(steps_in(tmp_path / run)) for run in ("0", "1", ".")] == [4, 5, 6]


def test_a_borrowed_writer_loses_no_points_of_either_side(tmp_path):
    with SummaryWriter(str(tmp_path)) as mine:
        for step in range(10):
            mine.add_scalar("loss", step, step)
        sink = borrowed(mine)
        assert type(sink) is Borrowed
        sink.add(rows(0, 20))
        sink.finish()
        mine.add_scalar("loss", 10, 10)
    assert steps_in(tmp_path, "loss") == list(range(11))
    assert steps_in(tmp_path) == list(range(20))


def test_a_borrowed_writer_is_resumed_as_documented(tmp_path):
    """With purge_step=0 in the first program: the server ignores the first START of a folder."""
    with SummaryWriter(str(tmp_path), purge_step=0) as mine:
        sink = borrowed(mine)
        sink.add(rows(0, 10))
        state = sink.state_dict()
        sink.add(rows(10, 15))
        sink.flush()
    with SummaryWriter(str(tmp_path), purge_step=10) as mine:
        sink = borrowed(mine)
        sink.load_state_dict(state)
        sink.add(rows(0, 13))
        sink.finish()
    assert steps_in(tmp_path) == list(range(13))


class ElsewhereWriter:
    """A SummaryWriter as tensorboardX has one: its thread dies of events that are not its own."""

    class Event:
        pass

    def __init__(self):
        self.alive, self.points = True, []

    def _get_file_writer(self):
        return self

    def add_event(self, event, step=None, walltime=None):
        self.alive = self.alive and isinstance(event, self.Event)

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, display_name=""):
        self.points.append((tag, scalar_value, global_step))

    def flush(self):
        assert self.alive, "would wait for ever"


def test_a_summary_writer_that_is_not_torchs_is_written_through_add_scalar():
    theirs = ElsewhereWriter()
    tracker, take = training(theirs)
    take(3)
    tracker.close()
    path = tracker.trajectory()
    assert [step for tag, _, step in theirs.points if tag == "m/0/1"] == [0, 1, 2, 3]
    assert [value for tag, value, _ in theirs.points if tag == "m/1/0"] == pytest.approx(
        path["m[1,0]"].tolist(), rel=1e-6
    )
    assert theirs.alive
    # the double is one that dies
    with pytest.raises(AssertionError, match="for ever"):
        Borrowed(theirs)._give([("a", 1.0)], 0, 0.0) or theirs.flush()


def test_a_summary_writer_without_add_scalar_is_refused():
    class Other:
        def _get_file_writer(self):
            return self

    with pytest.raises(TypeError, match=r"add_scalar\(tag, value, step, walltime\).*log directory"):
        borrowed(Other())
    assert type(borrowed(ElsewhereWriter())) is Foreign


# --- files that go, clocks that go back ----------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "file", "emptied"])
def test_what_is_deleted_is_written_again_with_all_rows(tmp_path, what, caplog):
    tracker, take = training(tmp_path / "log")
    take(5)
    (file,) = events.own_files(tmp_path / "log")
    if what == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    if what == "folder":
        for other in (tmp_path / "log").iterdir():
            other.unlink()
        (tmp_path / "log").rmdir()
    take(3)
    assert steps_in(tmp_path / "log") == list(range(9))
    assert "written again, with all rows" in caplog.text
    take(2)
    tracker.close()
    assert steps_in(tmp_path / "log") == list(range(11))


def test_a_clock_that_was_set_back(tmp_path, monkeypatch):
    writer = Writer(tmp_path, max_points=None)
    writer.add(rows(0, 31))
    writer.flush()
    state = writer.state_dict()
    writer.add(rows(31, 40))
    writer.close()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 10**9 * 3600)
    again = Writer(tmp_path, max_points=None)
    again.load_state_dict(state)
    again.add(rows(31, 51))
    again.close()
    assert steps_in(tmp_path) == list(range(51))


@pytest.mark.parametrize("stamp", ["4102444800", "4102444800123456789"])
def test_names_sort_after_those_of_the_future(tmp_path, stamp):
    (tmp_path / f"events.out.tfevents.{stamp}.host.1.0").write_bytes(b"")
    name = events._free_name(tmp_path, "events.out.tfevents", ".torchlimits").name
    assert sorted([name, *os.listdir(tmp_path)])[-1] == name


def test_going_back_without_a_step_drops_the_later_steps(tmp_path):
    tracker, take = training(tmp_path)
    take(5)
    state = tracker.state_dict()
    take(5)
    tracker.close()
    assert steps_in(tmp_path) == list(range(11))
    tracker, _ = training(tmp_path)
    tracker.load_state_dict(state)
    tracker.close()
    assert steps_in(tmp_path) == list(range(6))


# --- two writers ---------------------------------------------------------------------------------


def test_a_cell_that_is_run_twice(tmp_path):
    """The later tracker has the folder; the one before stops and says so, once."""
    first, take_first = training(tmp_path)
    take_first(5)
    second, take_second = training(tmp_path)
    with pytest.warns(RuntimeWarning, match="later tracker of this program"):
        take_first(5)
    take_second(3)
    take_first(5)
    first.close()
    take_second(1)
    assert steps_in(tmp_path) == list(range(5))
    second.close()
    assert len(first.trajectory()) == 16
    # the first one's file is emptied
    old, new = events.own_files(tmp_path)
    assert old.stat().st_size < 200 < new.stat().st_size


_OTHER = """
import sys, torch, torchlimits as tl
from torchlimits.trajectory import Trajectory
kind, path = sys.argv[1:]
sink = tl.CSV(path) if kind == "CSV" else tl.tensorboard.Writer(path)
chunk = Trajectory(torch.tensor([0.0]), torch.tensor([0]), torch.ones(1, 1), ["m"])
sink.check(chunk)
sink.add(chunk)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["CSV", "events"])
def test_another_program_that_writes_there(tmp_path, kind):
    """It is refused while the first one runs, and not after that was killed."""
    place = tmp_path / ("u.csv" if kind == "CSV" else "log")

    def make():
        return tl.CSV(place) if kind == "CSV" else Writer(place)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER, kind, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(OSError, match=f"process {other.pid} writes there.* give another"):
            training(make())
        # nor in a second try
        with pytest.raises(OSError, match="writes there"):
            training(make())
    finally:
        other.kill()
        other.communicate()
    tracker, take = training(make())
    take(3)
    tracker.close()
    assert not list(tmp_path.rglob("*.lock"))


def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    held = lock.Lock(tmp_path / "lock")
    held.take()
    child = os.fork()
    if child == 0:
        # neither has it, nor takes it away
        had = held.held
        held.release()
        os._exit(int(had))
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert held.held
    assert (tmp_path / "lock").exists()
    held.release()
    assert not (tmp_path / "lock").exists()


# --- names that grow, tags -----------------------------------------------------------------------


def test_a_lock_that_another_had_meanwhile_is_lost(tmp_path):
    """Also if nobody looked while the other one had it; not if both are gone."""
    first, second = (lock.Lock(tmp_path / "lock") for _ in range(2))
    first.take()
    second.take(over=True)
    second.release()
    assert (first.held, first.lost) == (False, True)
    third = lock.Lock(tmp_path / "lock")
    third.take()
    assert (third.held, third.lost) == (True, False)
    # as the collector does before it calls __del__
    lock._release(third._key, weakref.ref(third))
    assert (third.held, third.lost) == (False, False)


def test_statistics_that_are_added_during_the_run(tmp_path):
    longer = [*NAMES, "loss"]
    more = rows(5, 9, longer)
    more.values[1, 2] = torch.nan
    with Writer(tmp_path, max_points=None) as writer:
        writer.add(rows(0, 5))
        writer.add(more)
    assert steps_in(tmp_path) == list(range(9))
    assert steps_in(tmp_path, "loss") == [5, 7, 8]
    found = EventAccumulator(str(tmp_path)).Reload()
    layouts = found.Tensors("custom_scalars__config__")
    assert b"loss" not in layouts[0].tensor_proto.string_val[0]
    assert b"loss" in layouts[-1].tensor_proto.string_val[0]


@pytest.mark.parametrize("kind", ["events", "borrowed"])
def test_a_resumed_run_keeps_the_tags_that_its_folder_has(tmp_path, kind):
    """Those of a state without a style have commas."""

    def write_with(state, *chunks):
        mine = SummaryWriter(str(tmp_path)) if kind == "borrowed" else None
        sink = Writer(tmp_path, max_points=None) if mine is None else borrowed(mine)
        if state is not None:
            sink.load_state_dict(state)
        for chunk in chunks:
            sink.add(chunk)
        state = sink.state_dict()
        sink.close()
        if mine is not None:
            mine.close()
        return state

    state = write_with(None, rows(0, 5))
    assert state.pop("tags") == "levels"
    state = write_with(state, rows(5, 8))
    state = write_with(state, rows(8, 10))
    assert state["tags"] == "commas"
    assert steps_in(tmp_path) == list(range(5))
    # torch numbers the files that a process makes: the tenth is read before the ninth
    assert sorted(steps_in(tmp_path, "m/0,1")) == list(range(5, 10))
    with pytest.raises(ValueError, match="tags"):
        write_with({**state, "tags": 7})

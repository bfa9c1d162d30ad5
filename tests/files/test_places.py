"""One path has one tracker; what is deleted is written again; nobody's data are overwritten."""

import multiprocessing
import os
import shutil
import warnings

import pytest
import torch

import torchlimits as tl
from torchlimits.files import place
from torchlimits.files.rows import Header
from torchlimits.record.recording import Recording, place_of

_CONTEXT = multiprocessing.get_context("forkserver")


def values(steps, which):
    return torch.tensor(list(steps), dtype=torch.float64)[:, None] + which / 4


def start(path, which=0):
    return Recording(Header(["m"], (), {}), path, 2**20)


def give(recording, steps, which=0):
    recording.append(list(steps), [step / 4 for step in steps], values(steps, which))


def finish(recording):
    recording.finish(recording.trajectory())


def check(path, steps, which=0):
    found = tl.Trajectory.load(path)
    assert found.steps.tolist() == list(steps)
    assert torch.equal(found.values, values(steps, which))


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# --- deleted and replaced files -------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "folder", "replaced"])
@pytest.mark.parametrize("more", [[], [3, 4]], ids=["no rows after", "rows after"])
@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_a_file_that_is_gone_is_written_again(tmp_path, suffix, more, what):
    path = tmp_path / "folder" / f"u{suffix}"
    recording = start(path)
    give(recording, [0, 1, 2])
    recording.write()
    if what == "folder":
        shutil.rmtree(path.parent)
    else:
        recording.unfinished.unlink()
    if what == "replaced":
        recording.unfinished.write_text("of another program")
    if more:
        give(recording, more)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recording.write()
    check(recording.unfinished, [0, 1, 2, *more])
    finish(recording)
    check(recording.path, [0, 1, 2, *more])
    if what == "replaced":
        assert "the rows of this one go to" in str(caught[0].message)
        assert names(path.parent) == [f"u-1{suffix}", f"u{suffix}.unfinished"]
        assert (path.parent / f"u{suffix}.unfinished").read_text() == "of another program"
    else:
        assert not caught
        assert names(path.parent) == [path.name]


def test_what_is_where_is_told_of_files_that_are_there(tmp_path, monkeypatch):
    """Not of one that was deleted, if it cannot be written again."""
    path = tmp_path / "folder" / "u.npz"
    recording = start(path)
    give(recording, [0, 1, 2])
    recording.write()
    shutil.rmtree(path.parent)
    path.parent.write_text("no folder any more")
    with (
        pytest.warns(RuntimeWarning, match="cannot be written"),
        pytest.raises(OSError, match=r"its rows are in tracker.trajectory\(\)") as error,
    ):
        finish(recording)
    assert "unfinished" not in str(error.value)
    assert recording.trajectory().steps.tolist() == [0, 1, 2]
    path.parent.unlink()
    finish(recording)
    check(path, [0, 1, 2])


# --- two trackers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_the_second_tracker_of_a_path_gets_another_name(tmp_path, suffix):
    path = tmp_path / f"u{suffix}"
    first = start(path)
    give(first, [0, 1])
    first.write()
    with pytest.warns(RuntimeWarning, match=rf"another tracker.*u-1\{suffix}"):
        second = start(place_of(path, None), 1)
    give(second, [0, 1, 2], 1)
    second.write()
    give(first, [2, 3])
    finish(first)
    finish(second)
    check(path, range(4))
    check(tmp_path / f"u-1{suffix}", range(3), 1)
    assert names(tmp_path) == [f"u-1{suffix}", f"u{suffix}"]


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
@pytest.mark.parametrize("meet", ["at the first write", "at the end"])
def test_trackers_that_were_made_before_the_other_wrote(tmp_path, suffix, meet):
    path = tmp_path / f"u{suffix}"
    first, second = start(place_of(path, None)), start(place_of(path, None))
    give(first, [0, 1])
    give(second, [0, 1, 2], 1)
    if meet == "at the first write":
        first.write()
        with pytest.warns(RuntimeWarning, match="another tracker"):
            second.write()
        finish(first)
        finish(second)
    else:
        finish(first)
        with pytest.warns(RuntimeWarning, match="somebody has written to"):
            finish(second)
    check(path, range(2))
    assert second.path == tmp_path / f"u-1{suffix}"
    check(second.path, range(3), 1)


def test_a_run_after_another_replaces_its_file(tmp_path):
    for which in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recording = start(place_of(tmp_path / "u.npz", None), which)
            give(recording, range(3), which)
            finish(recording)
    check(tmp_path / "u.npz", range(3), 1)
    assert names(tmp_path) == ["u.npz"]


def test_a_part_that_the_user_saved_there_is_replaced(tmp_path):
    recording = start(tmp_path / "u.npz")
    give(recording, range(3))
    recording.trajectory().save(tmp_path / "u.npz")
    give(recording, range(3, 6))
    finish(recording)
    check(tmp_path / "u.npz", range(6))
    assert names(tmp_path) == ["u.npz"]


def record(path, which, steps, begun, go_on):
    """A process that records, with a pause in the middle."""
    recording = start(place_of(path, None), which)
    give(recording, range(steps), which)
    recording.write()
    begun.set()
    go_on.wait()
    give(recording, range(steps, steps + 3), which)
    finish(recording)


@pytest.mark.parametrize("suffix", [".npz", ".rows"])
def test_two_processes_on_one_path(tmp_path, suffix):
    path = tmp_path / f"u{suffix}"
    go_on = _CONTEXT.Event()
    processes = []
    for which in range(2):
        begun = _CONTEXT.Event()
        process = _CONTEXT.Process(target=record, args=(path, which, 2 + which, begun, go_on))
        process.start()
        begun.wait()
        processes.append(process)
    with pytest.warns(RuntimeWarning, match=rf"u-2\{suffix}"):
        mine = start(place_of(path, None))
    give(mine, range(7), 2)
    finish(mine)
    go_on.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check(path, range(5), 0)
    check(tmp_path / f"u-1{suffix}", range(6), 1)
    check(tmp_path / f"u-2{suffix}", range(7), 2)
    assert len(names(tmp_path)) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_program_holds_no_path_by_its_children(tmp_path):
    """As a data loader's workers live on for some seconds."""
    path = tmp_path / "u.npz"
    ready, tell = os.pipe()
    wait, release = os.pipe()
    program = os.fork()
    if not program:
        try:
            recording = start(path)
            give(recording, range(3))
            recording.write()
            os.close(release)
            if not os.fork() and len(recording.trajectory()) == 3:
                # the child reads what it has, and waits
                os.write(tell, b"x")
                os.read(wait, 1)
        finally:
            os._exit(0)
    os.waitpid(program, 0)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    assert not place.taken(path.with_name("u.npz.unfinished"))
    for end in (release, ready, wait):
        os.close(end)


# --- other people's files -------------------------------------------------------------------------


def test_a_path_that_is_no_trajectory_is_refused_at_once(tmp_path):
    for content in ("print('my program')", "PK\x03\x04 some archive"):
        (tmp_path / "train.py").write_text(content)
        with pytest.raises(ValueError, match="which is something else"):
            place_of(tmp_path / "train.py", None)
        assert (tmp_path / "train.py").read_text() == content
    (tmp_path / "empty").touch()
    assert place_of(tmp_path / "empty", None) == tmp_path / "empty"


def test_a_file_of_somebody_else_in_the_place_of_ours_stays(tmp_path):
    (tmp_path / "u.npz.unfinished").write_text("a novel")
    with pytest.warns(RuntimeWarning, match="is no file of a tracker"):
        recording = start(place_of(tmp_path / "u.npz", None))
    give(recording, range(3))
    finish(recording)
    assert names(tmp_path) == ["u-1.npz", "u.npz.unfinished"]
    assert (tmp_path / "u.npz.unfinished").read_text() == "a novel"


# --- what is there only in part -------------------------------------------------------------------


def test_the_rows_of_a_killed_run_are_loaded_by_its_path(tmp_path):
    recording = start(tmp_path / "u.npz")
    give(recording, range(3))
    recording.write()
    with pytest.warns(RuntimeWarning, match=r"there is no .*u\.npz: .*u\.npz\.unfinished"):
        found = tl.Trajectory.load(tmp_path / "u.npz")
    assert found.steps.tolist() == [0, 1, 2]
    finish(recording)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(tmp_path / "u.npz", range(3))
    with pytest.raises(FileNotFoundError, match=r"v\.npz"):
        tl.Trajectory.load(tmp_path / "v.npz")


# --- finishing again ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [None, ".npz", ".rows"])
def test_finishing_twice_changes_nothing_and_later_rows_are_saved_too(tmp_path, suffix):
    recording = start(None if suffix is None else tmp_path / f"u{suffix}")
    give(recording, range(3))
    finish(recording)
    finish(recording)
    assert recording.trajectory().steps.tolist() == [0, 1, 2]
    recording.write()
    assert names(tmp_path) == ([] if suffix is None else [f"u{suffix}"])
    give(recording, range(5))
    finish(recording)
    assert recording.trajectory().steps.tolist() == list(range(5))
    if suffix is not None:
        check(tmp_path / f"u{suffix}", range(5))
        assert names(tmp_path) == [f"u{suffix}"]


@pytest.mark.parametrize("parts", [("file", "deep"), ("file",)])
def test_what_cannot_be_written_anywhere_is_said_in_words(tmp_path, parts):
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path.joinpath(*parts)
    path = tl.Trajectory(torch.arange(2.0), torch.arange(2), torch.zeros(2, 1), ["m"])
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {"norm": lambda p: p["weight"].norm()}
    for write in (
        lambda: path.save(folder / "u.npz"),
        lambda: tl.CSV(folder / "u.csv"),
        lambda: tl.figures.save(tl.figures.overlay(path), folder / "u.png"),
        lambda: tl.tensorboard.write(folder / "log", measured=path),
        lambda: tl.track(model, optimizer, statistics, path=folder / "u.npz"),
        lambda: tl.track(model, optimizer, statistics, writer=folder / "log"),
    ):
        with pytest.raises(OSError, match=r"expected (path in a|a) folder .*give"):
            write()
    for write in (path.save, tl.CSV, lambda p: tl.figures.save(tl.figures.overlay(path), p)):
        with pytest.raises(ValueError, match="as a file to write to, got the directory"):
            write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

"""Sinks beside TensorBoard: a CSV file, and functions that log a dict."""

import copy
import errno
import functools
import re
import warnings

import numpy as np
import pandas
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits.record.sinks import csv
from torchlimits.record.sinks.choose import chosen

NAMES = ["m[0]", "m[1]", "norm"]


def training(writer=None, model=None, **options):
    """A function that takes so many steps, its tracker, and what else a checkpoint needs."""
    generator = torch.Generator().manual_seed(3)
    if model is None:
        model = torch.nn.Linear(6, 2, bias=False)
        torch.nn.init.normal_(model.weight, generator=generator)
    copies = model.weight.shape[:-2]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    statistics = {"m": lambda p: p["weight"][:, 0], "norm": lambda p: p["weight"].norm()}
    tracker = tl.track(model, optimizer, statistics, writer=writer, **options)

    def take(steps):
        for _ in range(steps):
            x = torch.randn(*copies, 4, 6, generator=generator)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    def checkpoint():
        parts = tracker.state_dict(), model.state_dict(), generator.get_state()
        return copy.deepcopy(parts)

    def restore(parts):
        model.load_state_dict(parts[1])
        generator.set_state(parts[2])
        tracker.load_state_dict(parts[0])

    return take, tracker, checkpoint, restore


def read(path):
    """The table as pandas reads it: names, numbers."""
    frame = pandas.read_csv(path)
    return frame.columns.tolist(), frame.to_numpy()


def table_of(trajectory):
    columns = [trajectory.steps[:, None], trajectory.times[:, None], trajectory.values]
    return torch.cat(columns, dim=1).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a run of 60 steps that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole") / "u.csv"
    take, tracker, *_ = training(tl.CSV(path))
    take(60)
    tracker.close()
    return path.read_bytes()


class Calls(list):
    """A logger: its ``log`` collects what it is given."""

    def log(self, row, step):
        self.append((step, row))

    @property
    def steps(self):
        return [step for step, _ in self]


# --- CSV -----------------------------------------------------------------------------------------


def test_the_table_is_the_trajectory_bit_for_bit(tmp_path):
    path = tmp_path / "new" / "folder" / "u.csv"
    take, tracker, *_ = training(tl.CSV(path))
    for part in (7, 1, 22):
        take(part)
        tracker.flush()
    tracker.close()
    names, numbers = read(path)
    assert names == ["step", "time", *NAMES]
    assert np.array_equal(numbers, table_of(tracker.trajectory()))
    # numpy alone, whose parser of floats is exact
    rows = path.read_text().splitlines()[1:]
    assert np.array_equal(np.loadtxt(rows, delimiter=","), numbers)
    assert sorted(path.parent.iterdir()) == [path]


def test_rows_that_are_given_twice_are_written_once(whole, tmp_path):
    take, tracker, *_ = training()
    take(60)
    table, path = tl.CSV(tmp_path / "u.csv"), tracker.trajectory()
    for rows in (slice(0, 20), slice(0, 20), slice(10, 61)):
        table.add(path.slice(rows))
    assert table.path.read_bytes() == whole


def test_every_so_many_steps(tmp_path):
    take, tracker, *_ = training(tl.CSV(tmp_path / "u.csv"), every=5)
    take(23)
    tracker.close()
    assert read(tmp_path / "u.csv")[1][:, 0].tolist() == [0, 5, 10, 15, 20]


def test_independent_runs_have_a_row_each(tmp_path):
    model = tl.replicate(torch.nn.Linear(6, 2, bias=False), 3)
    take, tracker, *_ = training(tl.CSV(tmp_path / "u.csv"), model=model)
    take(4)
    tracker.close()
    frame = pandas.read_csv(tmp_path / "u.csv")
    assert frame.columns.tolist() == ["step", "time", "run", *NAMES]
    assert frame["step"].tolist() == [step for step in range(5) for _ in range(3)]
    assert frame["run"].tolist() == [0, 1, 2] * 5
    path = tracker.trajectory()
    for run in range(3):
        values = frame[frame["run"] == run][NAMES].to_numpy()
        assert np.array_equal(values, path.values[run].numpy())
    # the same columns as those of the trajectory's own table
    assert sorted(frame.columns) == sorted(path.to_pandas().columns)


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param(lambda path: None, id="more rows"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-9]), id="torn row"),
        pytest.param(lambda path: path.unlink(), id="no file"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:300]), id="old copy"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty file"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:300] + b"\0" * 90), id="0"),
        pytest.param(lambda path: path.write_bytes(b"step,time,x\n0,0.0,1.0\n"), id="another's"),
    ],
)
def test_a_resumed_table_is_that_of_an_uninterrupted_run(whole, tmp_path, crash):
    path = tmp_path / "u.csv"
    take, tracker, checkpoint, _ = training(tl.CSV(path))
    take(25)
    parts = checkpoint()
    take(14)
    tracker.flush()
    crash(path)
    del take, tracker, checkpoint, _  # they go with their program
    take, tracker, _, restore = training(tl.CSV(path))
    restore(parts)
    take(35)
    tracker.close()
    assert path.read_bytes() == whole


def test_going_back_within_one_program(whole, tmp_path):
    path = tmp_path / "u.csv"
    take, tracker, checkpoint, restore = training(tl.CSV(path))
    take(25)
    parts = checkpoint()
    take(14)
    tracker.flush()
    restore(parts)
    take(35)
    tracker.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [1, 40])
def test_a_record_of_several_runs_is_kept_whole(tmp_path, torn):
    path = tmp_path / "u.csv"
    model = functools.partial(tl.replicate, torch.nn.Linear(6, 2, bias=False), 3)
    take, tracker, checkpoint, _ = training(tl.CSV(path), model=model())
    take(9)
    parts = checkpoint()
    take(5)
    tracker.close()
    expected = path.read_bytes()
    # the last records are lost, and a part of the runs of one before
    lines = expected.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + 3 * 7 + 2])[:-torn])
    take, tracker, _, restore = training(tl.CSV(path), model=model())
    restore(parts)
    take(5)
    tracker.close()
    assert path.read_bytes() == expected


def test_a_new_run_replaces_the_table(whole, tmp_path):
    path = tmp_path / "u.csv"
    path.write_bytes(whole)
    take, tracker, *_ = training(tl.CSV(path))
    assert path.read_bytes() == whole, "it is there until the first rows of the new one"
    take(3)
    tracker.close()
    assert read(path)[1][:, 0].tolist() == [0, 1, 2, 3]


def test_other_peoples_files_are_not_replaced(tmp_path):
    (tmp_path / "data.csv").write_text("label,pixel\n3,0.5\n")
    with pytest.raises(ValueError, match="which begins with"):
        tl.CSV(tmp_path / "data.csv")
    with pytest.raises(ValueError, match="name a file"):
        tl.CSV(tmp_path)
    with pytest.raises(OSError, match=r"data\.csv"):
        tl.CSV(tmp_path / "data.csv" / "u.csv")
    assert (tmp_path / "data.csv").read_text() == "label,pixel\n3,0.5\n"


def test_a_statistic_named_as_a_column(tmp_path):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="rename them"):
        tl.track(model, optimizer, {"time": lambda p: p["bias"][0]}, writer=tl.CSV(tmp_path / "u"))


def test_two_trajectories_in_one_table_are_refused(tmp_path):
    table = tl.CSV(tmp_path / "u.csv")
    training(table)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a CSV of its own"):
        tl.track(model, optimizer, {"b": lambda p: p["bias"]}, writer=table)


def test_a_full_disk_delays_the_table(monkeypatch, whole, tmp_path):
    """Rows that could not be written are written later, each once."""
    path = tmp_path / "u.csv"

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    take, tracker, *_ = training(tl.CSV(path))
    take(20)
    tracker.flush()
    take(20)
    with monkeypatch.context() as patch:
        patch.setattr(csv, "append_whole", full)
        with pytest.warns(RuntimeWarning, match=r"CSV cannot show .* training goes on"):
            tracker.flush()
    take(20)
    tracker.close()
    assert path.read_bytes() == whole


# --- functions -----------------------------------------------------------------------------------


def test_a_function_is_called_once_a_record_with_the_tags_of_tensorboard():
    calls = Calls()
    take, tracker, *_ = training(calls.log)
    for part in (10, 1, 30):
        take(part)
        tracker.flush()
    tracker.close()
    path = tracker.trajectory()
    assert calls.steps == list(range(42))
    assert [list(row) for _, row in calls] == [["m/0", "m/1", "norm"]] * 42
    assert torch.equal(
        torch.tensor([list(row.values()) for _, row in calls], dtype=torch.float64), path.values
    )
    assert all(type(value) is float for _, row in calls for value in row.values())


def test_a_function_is_given_the_runs_with_tags_of_their_own():
    calls = Calls()
    model = tl.replicate(torch.nn.Linear(6, 2, bias=False), 20)
    take, tracker, *_ = training(calls.log, model=model)
    take(2)
    tracker.close()
    path = tracker.trajectory()
    assert calls.steps == [0, 1, 2]
    expected = {f"{tag}/run {run}" for tag in ("m/0", "m/1", "norm") for run in range(16)}
    assert set(calls[-1][1]) == expected
    assert calls[1][1]["m/1/run 7"] == float(path["m[1]"][7, 1])


def test_a_function_that_fails_is_given_the_rest_later():
    calls, failures = Calls(), [5, 5, 9]

    def log(row, step):
        if failures and step == failures[0]:
            failures.pop(0)
            raise ConnectionError("no network")
        calls.log(row, step)

    take, tracker, *_ = training(log)
    take(20)
    with pytest.warns(RuntimeWarning, match=r"log cannot show .*no network.* training goes on"):
        tracker.flush()
    assert calls.steps == [0, 1, 2, 3, 4]
    for _ in range(3):
        tracker.flush()
    tracker.close()
    assert not failures
    assert calls.steps == list(range(21))


def test_a_function_that_always_fails_ends_no_training():
    def log(row, step):
        if step > 3:
            raise ConnectionError("no network")

    take, tracker, *_ = training(log)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            take(5)
            tracker.flush()
        tracker.close()
    messages = [str(one.message) for one in caught]
    assert sum("training goes on" in message for message in messages) == 1
    assert "the last one it took is 3)" in messages[-1]
    assert len(tracker.trajectory()) == 21


def test_training_is_the_same_with_and_without_sinks(tmp_path):
    weights = []
    for writer in (None, Calls().log, tl.CSV(tmp_path / "u.csv")):
        model = torch.nn.Linear(6, 2, bias=False)
        torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(1))
        take, tracker, *_ = training(writer, model=model)
        take(30)
        tracker.close()
        weights.append(model.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_a_resumed_run_calls_for_later_steps_only():
    first, second = Calls(), Calls()
    take, _, checkpoint, _ = training(first.log)
    take(25)
    parts = checkpoint()
    take, tracker, _, restore = training(second.log)
    restore(parts)
    take(10)
    tracker.close()
    assert first.steps == list(range(26))
    assert second.steps == list(range(26, 36))


@pytest.mark.parametrize("sink", ["function", "table"])
@pytest.mark.parametrize("state", [7, {}, {"newest": None}, {"newest": -2}, {"newest": True}])
def test_a_bad_state_is_refused(tmp_path, sink, state):
    writer = Calls().log if sink == "function" else tl.CSV(tmp_path / "u.csv")
    take, tracker, *_ = training(writer)
    take(3)
    good = tracker.state_dict()
    with pytest.raises(ValueError, match="writer's state"):
        tracker.load_state_dict({**good, "sink": state})
    assert len(tracker.trajectory()) == 4


def test_what_cannot_be_called_with_a_dict_and_a_step_is_refused_at_once():
    for writer in (lambda: None, lambda row: None, lambda row, step, *, commit: None):
        with pytest.raises(TypeError, match=r"log\(dict, step\)"):
            training(writer)
    with pytest.raises(TypeError, match="got the class CSV"):
        training(tl.CSV)
    training(lambda row, step=None, commit=None: None)
    training(lambda *args, **kwargs: None)


# --- several, and what becomes of their files ----------------------------------------------------


class Failing(tl.Sink):
    """Takes nothing."""

    def add(self, chunk):
        raise OSError("no room")

    def flush(self):
        pass


def test_several_writers_have_progress_and_failures_of_their_own(whole, tmp_path):
    calls = Calls()
    writers = [tl.CSV(tmp_path / "u.csv"), Failing(), calls.log, None, tmp_path / "log"]
    take, tracker, *_ = training(writers)
    take(30)
    with pytest.warns(RuntimeWarning, match="Failing cannot show .*no room"):
        tracker.flush()
    state = tracker.state_dict()["sink"]
    assert [one and one["newest"] for one in state] == [30, None, 30, 30]
    take(30)
    with pytest.warns(RuntimeWarning, match="Failing failed and may not show all steps"):
        tracker.close()
    assert (tmp_path / "u.csv").read_bytes() == whole
    assert calls.steps == list(range(61))
    assert tracker.path == tmp_path / "log" / "recorded.rows"
    assert len(tl.Trajectory.load(tracker.path)) == 61


def test_several_writers_are_resumed_each_by_its_state(whole, tmp_path):
    first, second = Calls(), Calls()

    def writers(log):
        return [tl.CSV(tmp_path / "u.csv"), log]

    take, tracker, checkpoint, _ = training(writers(first.log))
    take(25)
    parts = checkpoint()
    take(5)
    tracker.close()
    take, tracker, _, restore = training(writers(second.log))
    restore(parts)
    take(35)
    tracker.close()
    assert (tmp_path / "u.csv").read_bytes() == whole
    assert second.steps == list(range(26, 61))


def test_a_bad_state_among_several_changes_nothing(whole, tmp_path):
    calls = Calls()
    take, tracker, checkpoint, _ = training([tl.CSV(tmp_path / "u.csv"), calls.log])
    take(25)
    good = checkpoint()[0]
    take(35)
    for bad in ([good["sink"][0], {"newest": -7}], [good["sink"][0]], [7, 7]):
        with pytest.raises(ValueError, match="writer's state"):
            tracker.load_state_dict({**good, "sink": bad})
    tracker.close()
    assert (tmp_path / "u.csv").read_bytes() == whole
    assert calls.steps == list(range(61))


def test_a_writer_of_a_wrong_type_is_told_all_that_is_allowed():
    for writer in (3, [3], [[print]]):
        with pytest.raises(TypeError) as caught:
            training(writer)
        for allowed in ("log directory", "CSV", "SummaryWriter", "function", "Sink", "list"):
            assert allowed in str(caught.value)


@pytest.mark.parametrize("what", ["deleted", "emptied", "replaced", "folder"])
def test_a_table_that_goes_is_written_again_with_all_rows(whole, tmp_path, what, caplog):
    path = tmp_path / "folder" / "u.csv"
    take, tracker, *_ = training(tl.CSV(path))
    take(20)
    tracker.flush()
    if what == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if what == "replaced":
        path.write_bytes(b"step,time,x\n" + b"1,2,3\n" * 10_000)
    if what == "folder":
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
    # also if there is nothing new
    tracker.flush()
    assert path.read_bytes() == whole[: len(path.read_bytes())]
    assert len(read(path)[1]) == 21
    assert "written again, with all rows" in caplog.text
    take(40)
    tracker.close()
    assert path.read_bytes() == whole


def test_somebody_elses_file_in_the_place_of_a_table_is_left(tmp_path):
    path = tmp_path / "u.csv"
    take, tracker, *_ = training(tl.CSV(path))
    take(20)
    tracker.flush()
    path.unlink()
    path.write_text("label,pixel\n3,0.5\n")
    take(5)
    with pytest.warns(RuntimeWarning, match="which begins with"):
        tracker.flush()
    with pytest.warns(RuntimeWarning, match="may not show all steps"):
        tracker.close()
    assert path.read_text() == "label,pixel\n3,0.5\n"


def test_two_trackers_on_one_table(whole, tmp_path):
    """The second is refused until the first is closed, and nothing is mixed."""
    path = tmp_path / "u.csv"
    table = tl.CSV(path)
    take, tracker, *_ = training(table)
    take(30)
    with pytest.raises(OSError, match=r"no other running tracker.*u\.csv.*close that tracker"):
        training(tl.CSV(path))
    (tmp_path / "link.csv").symlink_to(path)
    with pytest.raises(OSError, match="no other running tracker"):
        training(tl.CSV(tmp_path / "link.csv"))
    with pytest.raises(ValueError, match="a writer of its own for each tracker"):
        training(table)
    take(30)
    tracker.close()
    assert path.read_bytes() == whole
    again, tracker, *_ = training(tl.CSV(path))
    again(3)
    tracker.close()
    assert read(path)[1][:, 0].tolist() == [0, 1, 2, 3]


def test_a_table_that_was_used_says_that_it_lacks_rows(tmp_path):
    table = tl.CSV(tmp_path / "u.csv")
    take, tracker, *_ = training(table)
    take(3)
    tracker.close()
    take, tracker, *_ = training(table)
    with pytest.warns(RuntimeWarning, match="rows of an earlier recording, up to step 3"):
        tracker.flush()


def test_statistics_that_are_added_during_the_run_come_at_the_end(tmp_path):
    take, tracker, *_ = training()
    take(9)
    path = tracker.trajectory()
    longer = tl.Trajectory(
        path.times, path.steps, torch.cat([path.values, path.values[:, :2]], dim=1),
        [*path.names, "loss", "time of day"],
    )  # fmt: skip
    longer.values[6, 3] = torch.nan
    calls, table = Calls(), tl.CSV(tmp_path / "u.csv")
    for sink in (table, chosen(calls.log)[0]):
        sink.add(path.slice(slice(0, 5)))
        sink.add(longer.slice(slice(3, 8)))
        # given again by somebody who does not know of the new ones
        sink.add(path.slice(slice(7, 10)))
    frame = pandas.read_csv(tmp_path / "u.csv")
    assert frame.columns.tolist() == ["step", "time", *longer.names]
    expected = longer.values.clone()
    expected[:5, 3:] = expected[8:, 3:] = torch.nan
    assert np.array_equal(frame.to_numpy()[:, 2:], expected.numpy(), equal_nan=True)
    assert (tmp_path / "u.csv").read_text().splitlines()[7].endswith(f",,{float(expected[6, 4])!r}")
    assert calls.steps == list(range(10))
    for step, row in calls:
        values = {f"m/{i}": expected[step, i] for i in range(2)} | {"norm": expected[step, 2]}
        values |= {"loss": expected[step, 3], "time of day": expected[step, 4]}
        assert row == {tag: float(value) for tag, value in values.items() if not value.isnan()}
    table.finish()


def test_the_last_row_is_in_a_writer_of_ones_own(tmp_path):
    """The one that the cap on points keeps back."""
    writer = tl.tensorboard.Writer(tmp_path, max_points=4)
    take, tracker, *_ = training(writer)
    take(50)
    tracker.close()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert accumulator.Scalars("norm")[-1].step == 50
    assert len(accumulator.Scalars("norm")) <= 4


def test_tags_of_all_loggers_differ():
    """In what MLflow keeps of them, too."""
    names = ["m[1,10]", "m[11,0]", "m[1,1,0]", "m[110]"]
    calls = Calls()
    values = torch.arange(4.0)[None]
    chosen(calls.log)[0].add(tl.Trajectory(torch.zeros(1), torch.zeros(1).long(), values, names))
    ((_, row),) = calls
    assert list(row) == ["m/1/10", "m/11/0", "m/1/1/0", "m/110"]
    assert len({re.sub("[^a-zA-Z0-9_/. -]+", "", tag) for tag in row}) == 4


def test_a_function_keeps_the_tags_of_the_run_that_it_goes_on_with():
    calls = Calls()
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tl.track(model, optimizer, {"m": lambda p: p["weight"]}, writer=calls.log) as tracker:
        state = tracker.state_dict()
        assert list(calls[-1][1]) == ["m/0/0", "m/0/1", "m/1/0", "m/1/1"]
        del state["sink"]["tags"]
        tracker.load_state_dict(state)
        optimizer.step()
    assert list(calls[-1][1]) == ["m/0,0", "m/0,1", "m/1,0", "m/1,1"]

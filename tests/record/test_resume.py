"""A killed program loses at most one flush interval, and goes on as if nothing had happened."""

import copy
import random

import crashing
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import torchlimits as tl
from torchlimits import tensorboard

STEPS = 600
#: entries of the statistics
K = 8 * 3 + 8 * 8 + 1


def shown(folder):
    """{tag: [(step, value)]} as TensorBoard reads it, without what charts repeat by folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in accumulator.Tags()["scalars"] if not tag.startswith("· ")]
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}


def same(first, second):
    return (
        torch.equal(first.steps, second.steps)
        and torch.equal(first.times, second.times)
        and torch.equal(first.values, second.values)
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    crashing.run(folder, STEPS)
    assert not list(folder.glob("*.unfinished*"))
    path = tl.Trajectory.load(folder / "u.npz")
    assert path.steps.tolist() == list(range(STEPS + 1))
    return path, shown(folder / "log")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_a_killed_program_loses_at_most_one_flush_interval(whole, tmp_path, seed):
    path, events = whole
    moments = random.Random(seed)
    for kill in range(6):
        folder = tmp_path / str(kill)
        folder.mkdir()
        at = moments.randrange(STEPS - 50)
        taken = crashing.run_killed(folder, 10**9, at, moments.uniform(0, 0.004))
        unfinished = folder / "u.npz.unfinished"
        if not unfinished.exists():
            assert taken < crashing.RING
            continue
        found = tl.Trajectory.load(unfinished)
        rows = len(found)
        assert rows > taken - crashing.RING
        # more steps than the whole run has, if the machine was slow to kill
        assert same(found.slice(slice(0, len(path))), path.slice(slice(0, rows)))
        assert found.names == path.names
        for tag, points in shown(folder / "log").items():
            steps = [step for step, _ in points]
            apart = steps[1] - steps[0] if len(steps) > 1 else 1
            assert steps == [*range(0, steps[-1] + 1, apart)]
            assert len(steps) <= 300
            # a longer or a shorter run is thinned out more or less, by powers of 2
            both = {*steps} & {step for step, _ in events[tag]}
            assert both
            whole_curve, curve = dict(events[tag]), dict(points)
            assert all(curve[step] == whole_curve[step] for step in both)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_killed_again_and_again_equals_one_that_was_not(whole, tmp_path, seed):
    moments = random.Random(100 + seed)
    options = {"checkpoint_every": 40}
    for kill in range(6):
        begun = random.Random(f"{seed} {kill}").random() < 0.3
        at = -1 if begun else 40 + 80 * kill + moments.randrange(80)
        delay = moments.uniform(0, 0.05) if begun else moments.uniform(0, 0.002)
        crashing.run_killed(tmp_path, STEPS - 20, at, delay, **options)
    crashing.run(tmp_path, STEPS, **options)
    path, events = whole
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)
    assert shown(tmp_path / "log") == events


def test_a_run_that_ended_is_extended(whole, tmp_path):
    """The last row of a closed run is shown whatever the spacing: not so in the extended run."""
    crashing.run(tmp_path, 333, checkpoint_every=333)
    assert shown(tmp_path / "log")["norm"][-1][0] == 333
    crashing.run(tmp_path, STEPS)
    path, events = whole
    assert 333 not in [step for step, _ in events["norm"]]
    assert same(tl.Trajectory.load(tmp_path / "u.npz"), path)
    assert shown(tmp_path / "log") == events


def test_resuming_on_another_machine(whole, tmp_path):
    """From the checkpoint alone: neither recorded rows nor event files are there."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    crashing.run(first, 321, checkpoint_every=300)
    (first / "checkpoint.pt").rename(second / "checkpoint.pt")
    crashing.run(second, STEPS)
    path, events = whole
    assert same(tl.Trajectory.load(second / "u.npz"), path)
    assert shown(second / "log") == events


def test_rows_of_a_killed_run_are_kept_when_it_is_started_anew(tmp_path):
    for _ in range(2):
        crashing.run_killed(tmp_path, 10**9, 200, 0.0)
    crashing.run(tmp_path, 20)
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 21
    for number in (1, 2):
        assert len(tl.Trajectory.load(tmp_path / f"u.npz.unfinished.{number}")) > 100
    assert not (tmp_path / "u.npz.unfinished").exists()


# --- in one process ------------------------------------------------------------------------------


def training(writer=None, path=None, **options):
    """A function that takes so many steps, and its tracker."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(30, 8, bias=False)
    torch.nn.init.normal_(model.weight, generator=generator)
    optimizer = torch.optim.SGD([model.weight], lr=0.01)
    tracker = tl.track(model, optimizer, crashing.statistics(), writer=writer, path=path, **options)

    def take(steps):
        for _ in range(steps):
            x = torch.randn(1, 30, generator=generator)
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    return take, tracker, model, generator


def test_rows_do_not_depend_on_when_they_are_flushed():
    take, tracker, *_ = training()
    take(200)
    once = tracker.trajectory()
    take, tracker, *_ = training()
    for part in (1, 2, 3, 5, 30, 159):
        take(part)
        tracker.flush()
    assert same(tracker.trajectory(), once)


def test_a_borrowed_summary_writer_is_resumed_by_its_purge_step(tmp_path):
    with SummaryWriter(str(tmp_path / "whole")) as mine:
        take, tracker, *_ = training(mine)
        take(300)
        tracker.close()
    mine = SummaryWriter(str(tmp_path / "log"))
    take, tracker, model, generator = training(mine)
    take(200)
    state = copy.deepcopy((tracker.state_dict(), model.state_dict(), generator.get_state()))
    take(55)  # a crash from here
    tracker.flush()
    mine.close()
    with SummaryWriter(str(tmp_path / "log"), purge_step=201) as mine:
        take, tracker, model, generator = training(mine)
        model.load_state_dict(state[1])
        generator.set_state(state[2])
        tracker.load_state_dict(state[0])
        take(100)
        tracker.close()
    assert shown(tmp_path / "log") == shown(tmp_path / "whole")


def test_going_back_within_one_program(tmp_path):
    take, tracker, model, generator = training(tmp_path / "log", tmp_path / "u.rows")
    take(100)
    state = copy.deepcopy((tracker.state_dict(), model.state_dict(), generator.get_state()))
    take(77)
    before = tracker.trajectory()
    earlier = before.values.clone()
    tracker.load_state_dict(state[0])
    model.load_state_dict(state[1])
    generator.set_state(state[2])
    take(77)
    assert same(tracker.trajectory(), before)
    assert torch.equal(before.values, earlier)
    tracker.close()
    assert same(tl.Trajectory.load(tmp_path / "u.rows"), before)
    points = shown(tmp_path / "log")["norm"]
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert points[-1][0] == 177


class _Collecting:
    """A sink without a state of its own."""

    def __init__(self):
        self.steps = []

    def add(self, chunk):
        self.steps += chunk.steps.tolist()

    def flush(self):
        pass


def test_a_sink_without_a_state_gets_later_rows_only():
    take, tracker, *_ = training()
    take(10)
    sink = _Collecting()
    take, other, *_ = training(sink)
    other.load_state_dict(tracker.state_dict())
    take(5)
    other.flush()
    assert sink.steps == list(range(11, 16))


def test_the_state_is_plain_and_small(tmp_path):
    take, tracker, *_ = training(tmp_path / "log", tmp_path / "u.rows")
    take(500)
    torch.save(tracker.state_dict(), tmp_path / "state.pt")
    size = 501 * 8 * (len(tracker.names) + 2)
    assert (tmp_path / "state.pt").stat().st_size < size + 20_000
    torch.load(tmp_path / "state.pt", weights_only=True)


def test_a_state_of_before_sinks_had_states(tmp_path):
    take, tracker, *_ = training()
    take(10)
    state = tracker.state_dict()
    del state["sink"], state["records"]
    take, other, *_ = training(tmp_path)
    other.load_state_dict(state)
    other.close()
    assert [step for step, _ in shown(tmp_path)["norm"]] == list(range(11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["other"]}, "expected a state of the statistics"),
        ({"names": None}, "expected a state of the statistics"),
        ({"values": torch.zeros(2, 11, K)}, "expected a state of runs"),
        ({"values": torch.zeros(10, K)}, "damaged"),
        ({"values": torch.full((11, K), torch.nan)}, "all finite"),
        ({"values": "rows"}, "damaged"),
        ({"steps": torch.zeros(11, dtype=torch.int64)}, "increasing steps"),
        ({"times": torch.arange(11).flip(0)}, "times that do not fall"),
        ({"step": 3}, "end at or before"),
        ({"time": -1.0}, "end at or before"),
        ({"time": float("nan")}, "end at or before"),
        ({"step": None}, "damaged"),
        ({"records": 2}, "at least one record"),
        ({"sink": {"newest": 3}}, "writer's state"),
        ({"sink": {"newest": 3, "written": 5, "tail": None}}, "writer's state"),
        ({"sink": 7}, "writer's state"),
    ],
)
def test_a_bad_state_is_refused_and_changes_nothing(tmp_path, change, message):
    take, tracker, *_ = training(tmp_path)
    take(10)
    good = tracker.state_dict()
    take(10)
    before = tracker.trajectory()
    with pytest.raises(ValueError, match=message):
        tracker.load_state_dict({**good, **change})
    assert same(tracker.trajectory(), before)
    take(1)
    assert tracker.trajectory().steps.tolist() == list(range(22))


@pytest.mark.parametrize("missing", ["step", "time", "names", "times", "steps", "values"])
def test_a_state_without_a_key_is_refused(missing):
    _, tracker, *_ = training()
    state = tracker.state_dict()
    del state[missing]
    with pytest.raises(ValueError, match=f"without .*{missing}"):
        tracker.load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict"):
        tracker.load_state_dict(None)


def test_a_closed_tracker_takes_no_state():
    _, tracker, *_ = training()
    state = tracker.state_dict()
    tracker.close()
    with pytest.raises(ValueError, match="closed"):
        tracker.load_state_dict(state)


def test_the_probe_is_resumed_and_a_bad_one_refused():
    problem = tl.GaussianMixture.binary(dim=20, snr=2.0)
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = tl.Probe(problem.loss, problem.sample, every=2, samples=8)
    tracker = tl.track(model, optimizer, problem.statistics, probe=probe)
    state = tracker.state_dict()
    for key, value in [("generator", torch.zeros(3)), ("rows", []), ("times", None)]:
        with pytest.raises(ValueError, match="probe"):
            tracker.load_state_dict({**state, "probe": {**state["probe"], key: value}})
    tracker.load_state_dict(state)
    assert tracker.explanation().change.values.isfinite().all()


def test_a_writer_with_other_spacing_goes_on(tmp_path):
    take, tracker, *_ = training(tensorboard.Writer(tmp_path, max_points=None))
    take(100)
    state = tracker.state_dict()
    take, other, *_ = training(tensorboard.Writer(tmp_path, max_points=20, total_steps=200))
    other.load_state_dict(state)
    take(100)
    other.close()
    steps = [step for step, _ in shown(tmp_path)["norm"]]
    assert steps[:101] == list(range(101))
    assert 5 <= len(steps[101:]) <= 12

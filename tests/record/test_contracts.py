"""Sinks and observers of a user's own, and what the recorder must not know."""

import pytest
import torch
from torch import nn

import torchlimits as tl
from torchlimits.contracts.observer import Observer, Watcher
from torchlimits.contracts.sink import Sink


class Steps(Sink):
    """As little as a sink can be."""

    def __init__(self, failures=0):
        self.steps, self.flushes, self.failures = [], 0, failures

    def add(self, chunk):
        if self.failures:
            self.failures -= 1
            raise OSError("no room")
        self.steps += chunk.steps.tolist()

    def flush(self):
        self.flushes += 1


class Telling(Steps):
    """A sink that says what it has, and shows explanations."""

    def __init__(self, has=-1):
        super().__init__()
        self.newest, self.explained = has, []

    def add(self, chunk):
        super().add(chunk.slice(chunk.steps > self.newest))
        self.newest = max(self.newest, int(chunk.steps[-1]))

    def explain(self, explanation):
        self.explained.append(explanation)

    def state_dict(self):
        return {"steps": list(self.steps)}

    def load_state_dict(self, state):
        if set(state) != {"steps"}:
            raise ValueError("another sink's state")
        self.steps = [step for step in state["steps"] if step <= self.newest]


class Duck:
    """The same without the base class, by handing everything on."""

    def __init__(self, sink, names):
        self._sink, self._names = sink, names

    def __getattr__(self, name):
        if name in self._names:
            return getattr(self._sink, name)
        raise AttributeError(name)


class Norms(Observer):
    """Notes the norm of the momentum, in which the recorder has no part."""

    every = 3

    def __init__(self, optimizer, explains):
        self.optimizer, self.explains = optimizer, explains
        self.norms, self.explanations, self.places = {}, 0, []

    def observe(self, step, time):
        held = [state["momentum_buffer"] for state in self.optimizer.state.values()]
        self.norms[step] = float(sum(x.square().sum() for x in held))

    def moved(self, parameters):
        self.places.append(sorted(parameters))

    def explanation(self):
        self.explanations += 1
        if not self.explains:
            return None
        steps = torch.tensor(list(self.norms))
        values = torch.tensor(list(self.norms.values()))[:, None]
        path = tl.Trajectory(steps * 0.1, steps, values, ["n"], torch.zeros_like(values))
        return tl.Explanation(path, path, path, path)

    def state_dict(self):
        return dict(self.norms)

    def check_state(self, state):
        if not isinstance(state, dict):
            raise ValueError("expected norms, it is damaged")

    def load_state_dict(self, state):
        self.norms = dict(state)


class OfNorms(Watcher):
    def __init__(self, explains=False):
        self.explains = explains
        self.made = []

    def watch(self, model, optimizer, statistics):
        self.model = model
        self.made.append(Norms(optimizer, self.explains))
        return self.made[-1]


def training(**options):
    """A tracker, its model, and a function that takes so many steps."""
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"]}, **options)

    def take(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()

    return tracker, model, take


# --- sinks ---------------------------------------------------------------------------------------


def test_a_sink_needs_add_and_flush_and_no_more():
    sink = Steps()
    tracker, _, take = training(writer=sink)
    take(5)
    tracker.flush()
    take(2)
    tracker.close()
    assert sink.steps == list(range(8))
    assert sink.flushes
    assert tracker.state_dict()["sink"] is None
    with pytest.raises(TypeError, match="abstract"):
        Sink()


def test_it_is_given_later_rows_only_when_a_run_is_resumed():
    tracker, _, take = training(writer=Steps())
    take(5)
    state = tracker.state_dict()
    sink = Steps()
    tracker, _, take = training(writer=sink)
    tracker.load_state_dict(state)
    take(2)
    tracker.flush()
    assert sink.steps == [6, 7]


def test_warnings_call_it_by_its_name():
    sink = Steps(failures=1)
    tracker, _, take = training(writer=sink)
    take(3)
    with pytest.warns(RuntimeWarning, match="Steps cannot show .*no room.* training goes on"):
        tracker.flush()
    tracker.flush()
    assert sink.steps == list(range(4))


@pytest.mark.parametrize("kind", ["sink", "duck"])
@pytest.mark.parametrize("has", [-1, 3])
def test_a_sink_that_tells_what_it_has_is_given_the_rest(kind, has):
    def of(sink):
        parts = ("add", "flush", "newest", "state_dict", "load_state_dict", "explain")
        return sink if kind == "sink" else Duck(sink, parts)

    tracker, _, take = training(writer=of(Telling()), probe=OfNorms(explains=True))
    take(5)
    state = tracker.state_dict()
    assert state["sink"] == {"steps": list(range(6))}
    sink = Telling(has)
    tracker, _, take = training(writer=of(sink), probe=OfNorms(explains=True))
    tracker.load_state_dict(state)
    take(2)
    tracker.flush()
    assert sink.steps == list(range(8))
    assert sink.explained[-1].change.steps.tolist() == [0, 3, 6]
    with pytest.raises(ValueError, match="another sink"):
        tracker.load_state_dict({**state, "sink": {"other": 1}})


def test_what_an_object_has_beside_add_and_flush_is_used(tmp_path):
    class Refusing(Steps):
        logdir = tmp_path

        def check(self, chunk):
            raise ValueError(f"not of {chunk.names}")

    with pytest.raises(ValueError, match="not of"):
        training(writer=Duck(Refusing(), ("add", "flush", "check")))
    tracker, *_ = training(writer=Duck(Refusing(), ("add", "flush", "logdir")))
    assert tracker.path == tmp_path / "recorded.rows"
    tracker, *_ = training(writer=Duck(Refusing(), ("add", "flush")))
    assert tracker.path is None


# --- observers -----------------------------------------------------------------------------------


def test_an_observer_is_told_of_steps_and_has_a_state():
    watcher = OfNorms()
    tracker, model, take = training(probe=watcher)
    take(7)
    (observer,) = watcher.made
    assert watcher.model is model
    assert list(observer.norms) == [0, 3, 6]
    assert observer.norms[3] > 0 == observer.norms[0]
    state = tracker.state_dict()
    assert state["probe"] == observer.norms
    tracker.close()
    assert list(observer.norms) == [0, 3, 6, 7]

    tracker, _, take = training(probe=watcher)
    tracker.load_state_dict(state)
    take(2)
    assert list(watcher.made[1].norms) == [0, 3, 6, 9]


def test_a_bad_state_of_an_observer_changes_nothing():
    sink = Telling()
    tracker, _, take = training(probe=OfNorms(), writer=sink)
    take(4)
    state = tracker.state_dict()
    take(1)
    tracker.flush()
    with pytest.raises(ValueError, match="damaged"):
        tracker.load_state_dict({**state, "probe": 7})
    assert tracker.step == 5
    assert sink.steps == list(range(6))


def test_an_observer_follows_parameters_that_are_replaced():
    watcher = OfNorms()
    tracker, model, take = training(probe=watcher)
    take(1)
    model.double()
    model.weight = nn.Parameter(model.weight.detach().clone())
    tracker.stepped()
    assert watcher.made[0].places == [["bias", "weight"]]


def test_nothing_is_explained_for_sinks_that_do_not_show_it():
    for explains, times in ((Steps(), 0), (Telling(), 2)):
        watcher = OfNorms()
        tracker, _, take = training(probe=watcher, writer=explains)
        take(3)
        tracker.flush()
        tracker.flush()
        assert watcher.made[0].explanations == times
        with pytest.raises(ValueError, match="with a probe"):
            tracker.explanation()

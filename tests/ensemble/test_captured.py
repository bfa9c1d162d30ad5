"""Steps captured as a CUDA graph, and what a step's hook does: as far as a CPU can show it."""

import warnings
from collections import Counter
from contextlib import closing, contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchlimits as tl
from torchlimits.ensemble import cuda_graph


class Stream:
    """Notes who waits for whom."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, torch.device("cuda")

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


class Steps:
    """A tracker that only counts, and a fake `torch.cuda` that writes down what is asked of it."""

    def __init__(self, monkeypatch):
        self.log, self.current, self.capturing = [], Stream("caller", []), False
        self.current.log = self.log
        self.generator = type("Generator", (), {"device": torch.device("cuda")})()
        for name in ("CUDAGraph", "graph", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side", self.log))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert self.current is stream
        self.log.append("begin")
        yield
        self.log.append("end")

    def CUDAGraph(self):
        graph = type("Graph", (), {})()
        graph.register_generator_state = lambda generator: self.log.append(
            f"register on {self.current.name}"
        )
        graph.replay = lambda: self.log.append(f"replay on {self.current.name}")
        return graph

    def step(self):
        self.log.append(f"step on {self.current.name}")

    def stepped(self):
        self.log.append(f"stepped on {self.current.name}")

    def remove(self):
        self.log.append("remove")

    def run(self, count):
        with closing(cuda_graph.replayed(self.step, self.generator, self)) as steps:
            for _ in zip(range(count), steps, strict=False):
                pass


WARM = ["side waits for caller", "step on side", "caller waits for side", "stepped on caller"]


def test_every_step_is_waited_for_by_the_stream_that_records(monkeypatch):
    steps = Steps(monkeypatch)
    steps.run(6)
    capture = ["side waits for caller", "register on side", "begin", "step on side", "end"]
    replay = ["replay on caller", "stepped on caller"]
    assert steps.log == ["remove", *WARM * 3, *capture, "caller waits for side", *replay * 3]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_runs_capture_nothing(monkeypatch, count):
    steps = Steps(monkeypatch)
    steps.run(count)
    expected = ["remove", *WARM * count] if count else []
    assert steps.log == expected
    assert steps.current.name == "caller"


def test_an_exception_leaves_the_callers_stream_that_has_waited(monkeypatch):
    steps = Steps(monkeypatch)

    def failing():
        raise KeyboardInterrupt

    steps.step = failing
    with pytest.raises(KeyboardInterrupt):
        steps.run(1)
    assert steps.log[-1] == "caller waits for side"
    assert steps.current.name == "caller"


def test_a_step_that_cannot_be_captured_says_what_is_expected(monkeypatch):
    steps, calls = Steps(monkeypatch), []

    def once_too_often():
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("operation not permitted when stream is capturing")

    steps.step = once_too_often
    with pytest.raises(RuntimeError, match=r"neither wait for the device .* nor copy .* not perm"):
        steps.run(4)


class Operations(TorchDispatchMode):
    """How often each operation is called."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.__name__] += 1
        return function(*args, **kwargs or {})


def loop(lr=0.1):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, tl.track(model, optimizer, {"w": tl.statistics.entries("weight")})


def test_a_recorded_step_is_one_copy():
    _, _, tracker = loop()
    with Operations() as seen:
        tracker.stepped()
    # whether a parameter is still in its place is asked of the host
    seen.counts.pop("is_set_to.default", None)
    assert seen.counts == {"_foreach_copy_.default": 1}


class OnDevice(torch.Tensor):
    """Says that it is on CUDA, and counts how often it was waited for."""

    reads = 0
    device = torch.device("cuda")

    def __float__(self):
        OnDevice.reads += 1
        return float(self.as_subclass(torch.Tensor))


def test_a_learning_rate_on_a_device_is_read_when_it_has_changed():
    _, optimizer, tracker = loop()
    lr = torch.tensor(0.5).as_subclass(OnDevice)
    optimizer.param_groups[0]["lr"] = lr
    OnDevice.reads = 0
    for _ in range(4):
        tracker.stepped()
    assert OnDevice.reads == 1
    lr.fill_(0.25)
    tracker.stepped()
    optimizer.param_groups[0]["lr"] = torch.tensor(1.0).as_subclass(OnDevice)
    tracker.stepped()
    assert OnDevice.reads == 3
    assert tracker.trajectory().times.tolist() == [0, 0.5, 1, 1.5, 2, 2.25, 3.25]


def test_a_learning_rate_on_the_cpu_is_read_at_every_step():
    _, optimizer, tracker = loop(torch.tensor(0.5))
    tracker.stepped()
    optimizer.param_groups[0]["lr"].data.fill_(0.25)  # of which autograd is not told
    tracker.stepped()
    assert tracker.trajectory().times.tolist() == [0, 0.5, 0.75]


def test_a_step_that_is_being_captured_is_not_recorded(monkeypatch):
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    model, optimizer, tracker = loop()
    model.weight.grad = torch.ones_like(model.weight)
    capturing[0] = True
    with pytest.warns(RuntimeWarning, match=r"\.remove\(\) the tracker before the capture"):
        optimizer.step()
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        optimizer.step()
    capturing[0] = False
    optimizer.step()
    assert tracker.trajectory().steps.tolist() == [0, 1]

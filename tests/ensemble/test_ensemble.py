import itertools
import math
from contextlib import closing
from functools import partial

import pytest
import torch

import torchlimits as tl
from torchlimits import _random, _threads
from torchlimits.ensemble.ensemble import Ensemble


@pytest.fixture
def problem():
    return tl.GaussianMixture.xor(dim=30, width=4, snr=4.0, ridge=0.05)


def test_the_same_seed_gives_the_same_trajectory(problem):
    options = {"step_size": 1.0, "time": 1.0, "runs": 3, "progress": False}
    first, again, other = (tl.train(problem, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    assert first.values.shape == (3, 31, 22)
    assert first.metadata["parameters"]["snr"] == 4.0
    assert first.metadata["parameters"]["lr"] == pytest.approx(1 / 30)


def test_a_function_is_told_of_the_steps(problem):
    told = []
    options = {"step_size": 1.0, "time": 5.0, "runs": 2}
    path = tl.train(problem, progress=lambda *counts: told.append(counts), **options)
    assert told == [(0, 150), (64, 150), (128, 150), (150, 150)]
    assert torch.equal(path.values, tl.train(problem, progress=False, **options).values)


def test_one_step_of_all_runs_is_a_step_of_each(problem):
    """Against loops written out, one run at a time, on the same data, in float64."""
    options = {"step_size": 2.0, "time": 3.0, "seed": 3, "every": 1, "progress": False}
    path = tl.train(problem, runs=40, momentum=0.5, batch_size=2, dtype=torch.float64, **options)
    ensemble = Ensemble(problem, 2, 3, torch.device("cpu"), torch.float64)
    groups = range(2)
    starts = ensemble.model(groups)
    data = _random.stream(
        partial(problem.sample, 2, dtype=torch.float64),
        _random.generators(3, groups, purpose=1),
        lanes=ensemble.lanes,
        length=ensemble.length,
    )
    steps = [(x.clone(), y.clone()) for x, y in itertools.islice(data, 45)]
    for run in (0, 17, 39):
        model = problem.model(dtype=torch.float64)
        with torch.no_grad():
            for one, all_runs in zip(model.parameters(), starts.parameters(), strict=True):
                one.copy_(all_runs[run])
        optimizer = torch.optim.SGD(
            model.parameters(), lr=2.0 / 30, momentum=0.5, weight_decay=0.05
        )
        rows = [problem.statistics(dict(model.named_parameters()))]
        for x, y in steps:
            optimizer.zero_grad()
            problem.loss(model(x[run]), y[run]).backward()
            optimizer.step()
            rows.append(problem.statistics(dict(model.named_parameters())))
        expected = torch.stack(rows).detach()
        torch.testing.assert_close(path.values[run], expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(path.values[0], path.values[39])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_does_not_depend_on_how_many_there_are(dtype):
    """Bit for bit, with more runs, more threads, and another time to the end."""
    problem = tl.GaussianMixture.xor(dim=101, width=3, snr=4.0, directions="random")
    options = {"step_size": 1.0, "seed": 5, "every": 7, "dtype": dtype, "progress": False}
    one = tl.train(problem, runs=1, time=1.0, **options)
    some = tl.train(problem, runs=37, time=1.0, **options)
    with _threads.threads(5):
        many = tl.train(problem, runs=300, time=1.3, **options)
    rows = len(one)
    assert torch.equal(one.values[0], some.values[0])
    assert torch.equal(some.values[:, : rows - 1], many.values[:37, : rows - 1])
    assert not torch.equal(many.values[0], many.values[32])  # the same lane of another group


@pytest.mark.parametrize("steps", [1, 9, 10, 11, 20, 35])
def test_data_are_the_same_however_many_steps_there_are(steps):
    """Blocks of 10 steps: no more of them are drawn than there are steps, and none that is left."""
    drawn = 0

    def sample(replicas, generator):
        nonlocal drawn
        drawn += replicas[0] == 10
        return torch.randn(*replicas, 3, generator=generator), torch.zeros(replicas)

    def data(total):
        sources = _random.generators(0, range(2), 1)
        return _random.stream(sample, sources, lanes=4, length=10, steps=total)

    some = [x.clone() for x, _ in data(steps)]
    assert drawn == 2 * math.ceil(steps / 10)
    assert len(some) == steps
    with closing(data(None)) as endless:
        expected = [x.clone() for x, _ in itertools.islice(endless, steps)]
    assert torch.equal(torch.stack(some), torch.stack(expected))


def test_room_is_taken_for_as_many_steps_as_there_are():
    problem = tl.GaussianMixture.xor(dim=20, width=4, snr=4.0)
    ensemble = Ensemble(problem, 1, 0, torch.device("cpu"), None)
    rooms = []
    for steps in (5, None):
        with closing(ensemble.data(range(3), steps).stream()) as stream:
            rooms.append(next(stream)[0].untyped_storage().nbytes())
    assert rooms[0] == 5 * 3 * ensemble.lanes * 20 * 4
    assert rooms[1] > 100 * rooms[0]  # a control


def test_large_problems_are_computed_one_by_one():
    """Their random numbers are still their own; the arithmetic agrees to rounding."""
    problem = tl.SpikedTensor(dim=150, order=2, snr=2.0, sampler="dense")
    options = {"step_size": 1.0, "time": 0.2, "progress": False, "dtype": torch.float64}
    few, more = (tl.train(problem, runs=runs, **options) for runs in (2, 3))
    torch.testing.assert_close(few.values, more.values[:2], rtol=1e-10, atol=1e-12)
    assert Ensemble(problem, 1, 0, torch.device("cpu"), None).lanes == 1


def test_seeds_of_one_run_are_all_different():
    numbers = range(100_000)
    seeds = {
        generator.initial_seed()
        for purpose in (0, 1)
        for generator in _random.generators(7, numbers, purpose)
    }
    assert len(seeds) == 200_000


def test_data_have_the_law_of_the_mixture():
    """Component frequencies and the noise's moments of drawn-ahead data; z < 4.5, 12 numbers."""
    problem = tl.GaussianMixture.xor(dim=20, width=4, snr=4.0, directions="random")
    data = _random.stream(
        partial(problem.sample, 1), _random.generators(0, range(4), 1), lanes=32, length=10
    )
    # clones: the tensors are overwritten
    steps = [(x.clone(), y.clone()) for x, y in itertools.islice(data, 10)]
    x, y = (torch.cat(part).double().squeeze(1) for part in zip(*steps, strict=True))
    along = x @ problem.directions.mT
    assert float((y.mean() - 0.5).abs()) < 4.5 * 0.5 / 1280**0.5
    # each label has its mean along one direction, +-1, and the noise of variance 1/4 besides
    signal = torch.stack([y, 1 - y], -1)
    assert ((along.mean(0)).abs() < 4.5 * (0.75 / 1280) ** 0.5).all()
    spread = (along.square() - signal - 0.25).mean(0)
    assert (spread.abs() < 4.5 * (1.5 / 1280) ** 0.5).all()
    across = x - along @ problem.directions
    variance = across.square().sum(-1) / 18
    assert abs(float(variance.mean()) - 0.25) < 4.5 * 0.25 * (2 / 18 / 1280) ** 0.5


def test_runs_from_one_start(problem):
    start = problem.model()
    path = tl.train(problem, step_size=1.0, time=0.5, runs=3, start=start, progress=False)
    assert torch.equal(path.initial[0], path.initial[2])
    assert not torch.equal(path.final[0], path.final[2])


def test_the_last_step_is_recorded_live_too(problem, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tl.train(
        problem, step_size=1.0, time=3.0, runs=2, every=1, progress=False, logdir=tmp_path
    )
    events = EventAccumulator(str(tmp_path / "measured" / "1"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars("v/2")
    assert [e.step for e in scalars] == path.steps.tolist()
    expected = path["v[2]"][1].float().tolist()
    assert [e.value for e in scalars] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"time": -1.0}, "time"),
        ({"time": 1e-9}, "at least one step"),
        ({"runs": 0}, "runs"),
        ({"batch_size": 0}, "batch"),
        ({"every": 0}, "every"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(problem, options, message):
    with pytest.raises(ValueError, match=message):
        tl.train(problem, **{"step_size": 1.0, "time": 1.0, "progress": False, **options})


def test_what_is_no_problem_or_no_dtype(problem):
    options = {"step_size": 1.0, "time": 1.0, "progress": False}
    with pytest.raises(TypeError, match="got NoneType, which has no dim, statistics, model"):
        tl.train(None, **options)
    with pytest.raises(TypeError, match=r"real numbers such as torch.float64, got torch.int32"):
        tl.train(problem, dtype=torch.int32, **options)
    with pytest.raises(TypeError, match=r"expected a problem, got the class SpikedTensor: make"):
        tl.train(tl.SpikedTensor, **options)


@pytest.mark.parametrize("name", ["path", "logdir", "checkpoint", "group", "momentum", "device"])
def test_places_and_numbers_of_a_wrong_kind(problem, name):
    with pytest.raises((TypeError, ValueError), match=f"expected {name} as |expected {name} in "):
        tl.train(problem, step_size=1.0, time=1.0, progress=False, **{name: 3.5})


@pytest.mark.gpu
def test_captured_steps_train(problem):
    """The same seed gives the same runs, whose mean is that of the CPU's runs: z < 4.5."""
    options = {"step_size": 1.0, "time": 2.0, "runs": 1000, "progress": False}
    start = problem.model()
    first, again = (tl.train(problem, device="cuda", start=start, **options) for _ in range(2))
    on_cpu = tl.train(problem, seed=1, start=start, **options)
    assert torch.equal(first.values, again.values)
    assert first.steps.tolist() == on_cpu.steps.tolist()
    a, b = first.final, on_cpu.final
    error = ((a.var(0) + b.var(0)) / 1000).sqrt()
    assert bool(((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all())
    # negative control: without training the means differ
    assert bool(((first.initial.mean(0) - b.mean(0)).abs() > 4.5 * error).any())


def length(p):
    return p["first.weight"].norm()


def test_other_statistics_are_those_of_each_run(problem):
    options = {"step_size": 1.0, "time": 0.5, "runs": 3, "progress": False}
    own = {"length": length, "v": lambda p: p["second.weight"][0]}
    alone = tl.train(problem, statistics=own, **options)
    beside = tl.train(problem, statistics=problem.statistics | {"length": length}, **options)
    plain = tl.train(problem, **options)
    assert torch.equal(beside.select(plain.names).values, plain.values)
    assert torch.equal(alone["length"], beside["length"])
    assert torch.equal(alone["v"], plain["v"])
    gram = sum(plain[f"R[{i},{i}]"] + plain["m"][..., 2 * i : 2 * i + 2].square().sum(-1)
               for i in range(4))  # fmt: skip
    torch.testing.assert_close(alone["length"].square(), gram, rtol=1e-5, atol=1e-6)


def test_a_start_or_statistics_of_a_wrong_kind(problem):
    options = {"step_size": 1.0, "time": 0.5, "progress": False}
    with pytest.raises(TypeError, match="expected start as a module, got Tensor: make it by"):
        tl.train(problem, start=torch.zeros(22), **options)
    with pytest.raises(TypeError, match="expected statistics to be a SummaryStatistics or a dict"):
        tl.train(problem, statistics=[length], **options)
    with pytest.raises(ValueError, match="that can be pickled with processes="):
        tl.train(
            problem, statistics={"a": lambda p: p["first.weight"].sum()}, processes=2, runs=64,
            **options,
        )  # fmt: skip

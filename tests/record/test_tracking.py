import copy

import pytest
import torch

import torchlimits as tl
from torchlimits.record.ring import EvaluatedRing, SnapshotRing


@pytest.fixture
def problem():
    return tl.GaussianMixture.xor(dim=30, width=4, snr=4.0, ridge=0.05)


def loop(problem, steps, before=None, after=None, optimizer=torch.optim.SGD, lr=0.03, seed=0):
    """A user's training loop; `before(model, optimizer)` makes the tracker."""
    generator = torch.Generator().manual_seed(seed)
    model = problem.model(generator=generator)
    optimizer = optimizer(model.parameters(), lr=lr, weight_decay=problem.ridge)
    tracker = before(model, optimizer) if before else None
    for _ in range(steps):
        x, y = problem.sample(1, generator=generator)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        if after:
            after(model)
    return model, tracker


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_is_bit_identical(problem, optimizer):
    torch.manual_seed(3)
    alone, _ = loop(problem, 300, optimizer=optimizer)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    tracked, _ = loop(
        problem, 300, lambda m, o: tl.track(m, o, problem.statistics), optimizer=optimizer
    )
    assert torch.equal(state, torch.get_rng_state())
    for p, q in zip(alone.parameters(), tracked.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("max_bytes", [1, 3000, 64 * 2**20])
@pytest.mark.parametrize("every", [1, 7])
def test_every_step_is_recorded_as_a_naive_loop_would(problem, every, max_bytes):
    naive = []

    def record(model):
        with torch.no_grad():
            naive.append(problem.statistics(dict(model.named_parameters())))

    def before(model, optimizer):
        record(model)
        return tl.track(model, optimizer, problem.statistics, every=every, max_bytes=max_bytes)

    _, tracker = loop(problem, 50, before, record)
    path = tracker.trajectory()
    expected = torch.stack(naive)[::every].double()
    times = path.steps.double() * 0.03
    assert path.steps.tolist() == list(range(0, 51, every))
    torch.testing.assert_close(path.times, times)
    torch.testing.assert_close(path.values, expected, rtol=1e-6, atol=1e-6)
    assert path.names == problem.names


def test_the_ring_fits_its_bound(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    size = sum(p.nbytes for p in model.parameters())
    ring = tl.track(model, optimizer, problem.statistics, max_bytes=5 * size + 1)._ring
    assert isinstance(ring, SnapshotRing)
    assert ring.capacity == 5
    ring = tl.track(model, optimizer, problem.statistics, max_bytes=size - 1)._ring
    assert isinstance(ring, EvaluatedRing)
    tracker = tl.track(model, optimizer, problem.statistics, max_bytes=2 * size - 1)
    assert isinstance(tracker._ring, EvaluatedRing)
    most = 0
    for _ in range(200):
        optimizer.zero_grad()
        x, y = problem.sample(1)
        problem.loss(model(x), y).backward()
        optimizer.step()
        most = max(most, sum(row.nbytes for row in tracker._ring._rows.values()))
    assert size < most < 2 * size
    assert len(tracker.trajectory()) == 201


def test_only_what_the_statistics_read_is_copied(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"v": lambda p: p["second.weight"]})
    assert list(tracker._ring.followed) == ["second.weight"]
    tracker = tl.track(model, optimizer, {"n": lambda p: sum(q.square().sum() for q in p.values())})
    assert list(tracker._ring.followed) == ["first.weight", "second.weight"]


def test_memory_that_moves_under_a_parameter_is_followed():
    # share_memory_ puts other memory into the same storage and frees what was there
    model = torch.nn.Linear(50, 40, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"].sum()})
    naive = [model.weight.sum().item()]
    for step in range(6):
        if step == 3:
            before = model.weight.data_ptr()
            model.share_memory()
            assert model.weight.data_ptr() != before
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        naive.append(model.weight.sum().item())
    torch.testing.assert_close(
        tracker.trajectory()["w"], torch.tensor(naive).double(), rtol=1e-5, atol=1e-3
    )


def test_functions_that_vmap_cannot_take(problem):
    def signed(parameters):
        v = parameters["second.weight"]
        return v.sum() if v[0, 0].item() > 0 else -v.sum()

    values = []

    def before(model, optimizer):
        return tl.track(model, optimizer, {"signed": signed})

    def after(model):
        values.append(float(signed(dict(model.named_parameters()))))

    _, tracker = loop(problem, 20, before, after)
    torch.testing.assert_close(
        tracker.trajectory()["signed"][1:], torch.tensor(values, dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = torch.nn.Linear(4, 2, dtype=dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"n": lambda p: p["weight"].norm()})
    model(torch.ones(3, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    expected = model.weight.detach().double().norm()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(tracker.trajectory()["n"][-1], expected, rtol=tolerance, atol=0.0)


def test_replicas(problem):
    model = problem.model(replicas=(3,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, problem.statistics)
    x, y = problem.sample(1, replicas=(3,))
    problem.loss(model(x), y).backward()
    optimizer.step()
    assert tracker.trajectory().values.shape == (3, 2, 22)


def test_limit_time_follows_the_schedule(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    tracker = tl.track(model, optimizer, problem.statistics)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert tracker.trajectory().times.tolist() == [0.0, 1.0, 1.5, 1.75]


def test_nan_names_step_and_statistic_and_keeps_what_was_before(problem, tmp_path):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        with tl.track(model, optimizer, problem.statistics, path=tmp_path / "u.npz"):
            for step in range(1, 10):
                if step == 6:
                    with torch.no_grad():
                        model.second.weight[0, 2] = torch.nan
                optimizer.step()

    with pytest.raises(tl.NonFiniteStatistic, match=r"v\[2\] is nan after step 6") as caught:
        train()
    assert caught.value.step == 6
    assert caught.value.name == "v[2]"
    assert len(caught.value.trajectory) == 6
    assert tl.Trajectory.load(tmp_path / "u.npz").steps.tolist() == list(range(6))


def test_an_exception_in_the_loop_saves_and_is_not_masked(problem, tmp_path):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="mine"),
        tl.track(model, optimizer, problem.statistics, path=tmp_path / "u.npz"),
    ):
        optimizer.step()
        raise RuntimeError("mine")
    assert len(tl.Trajectory.load(tmp_path / "u.npz")) == 2


def test_a_statistic_that_changes_shape(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes = iter([2, 2, 2, 3, 3, 3, 3, 3, 3])

    def growing(parameters):
        return parameters["first.weight"].flatten()[: next(sizes)]

    tracker = tl.track(model, optimizer, {"g": growing}, max_bytes=1)
    optimizer.step()
    optimizer.step()
    with pytest.raises(ValueError, match="changed shape"):
        tracker.flush()
    assert len(tracker.trajectory()) == 2


def test_resuming_continues_without_a_gap(problem):
    whole = loop(problem, 40, lambda m, o: tl.track(m, o, problem.statistics))[1].trajectory()
    generator = torch.Generator().manual_seed(0)
    model = problem.model(generator=generator)
    state = None
    for part in range(2):
        if part:
            model = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, weight_decay=problem.ridge)
        tracker = tl.track(model, optimizer, problem.statistics)
        if part:
            tracker.load_state_dict(state)
        for _ in range(20):
            x, y = problem.sample(1, generator=generator)
            optimizer.zero_grad()
            problem.loss(model(x), y).backward()
            optimizer.step()
        state = tracker.state_dict()
    resumed = tracker.trajectory()
    assert torch.equal(resumed.steps, whole.steps)
    assert torch.equal(resumed.values, whole.values)
    torch.testing.assert_close(resumed.times, whole.times)


def test_a_state_of_other_statistics_is_refused(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = tl.track(model, optimizer, problem.statistics).state_dict()
    other = tl.track(model, optimizer, {"n": lambda p: p["first.weight"].norm()})
    with pytest.raises(ValueError, match="expected a state of the statistics"):
        other.load_state_dict(state)


def test_remove_stops_recording(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, problem.statistics)
    optimizer.step()
    tracker.remove()
    optimizer.step()
    assert len(tracker.trajectory()) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"optimizer": torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)}, ValueError,
         "holds the model's parameters"),
        ({"lr": torch.nan}, ValueError, "finite learning rate >= 0"),
        ({"model": "no"}, TypeError, "torch.nn.Module"),
        ({"optimizer": "no"}, TypeError, "torch.optim.Optimizer"),
        ({"statistics": 3}, TypeError, "SummaryStatistics or a dict"),
        ({"statistics": {"a": lambda p: p["x"]}}, ValueError, "asked for parameter 'x'"),
        ({"statistics": {"a": lambda p: p["first.weight"] * torch.nan}}, ValueError,
         "after step 0"),
        ({"every": 0}, ValueError, "every"),
        ({"writer": 3}, TypeError, "writer"),
    ],
)  # fmt: skip
def test_bad_input(problem, change, error, message):
    model = problem.model()
    options = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=change.pop("lr", 0.1)),
        "statistics": problem.statistics,
        **change,
    }
    with pytest.raises(error, match=message):
        tl.track(**options)


@pytest.mark.gpu
def test_on_cuda():
    problem = tl.GaussianMixture.xor(dim=100, width=4, snr=4.0, device="cuda")
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tl.track(model, optimizer, problem.statistics) as tracker:
        for _ in range(10):
            x, y = problem.sample(1)
            problem.loss(model(x), y).backward()
            optimizer.step()
    final = problem.statistics(dict(model.named_parameters())).double().cpu()
    torch.testing.assert_close(tracker.trajectory().final, final, rtol=1e-6, atol=1e-6)


def test_a_tracker_says_what_it_records_and_where(tmp_path):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    statistics = {"norm": lambda p: p["weight"].norm()}
    with tl.track(model, optimizer, statistics, every=2, path=tmp_path / "u.npz") as tracker:
        for _ in range(3):
            optimizer.step()
        assert repr(tracker) == (
            "Tracker(Linear, SGD, statistics ['norm'], step 3, t = 0.3, every 2 steps, "
            f"to {tmp_path / 'u.npz'})"
        )
    assert repr(tracker).endswith(", closed)")

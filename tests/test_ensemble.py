import pytest
import torch

import torchlimits as tl


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


def test_train_is_the_plain_loop(problem):
    """Against a loop written out, with the same random numbers."""
    path = tl.train(problem, step_size=2.0, time=2.0, runs=1, seed=3, every=1, progress=False)
    generator = torch.Generator().manual_seed(3)
    model = problem.model(replicas=(1,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0 / 30, weight_decay=0.05)
    rows = [problem.statistics(dict(model.named_parameters()))]
    for _ in range(30):
        x, y = problem.sample(1, replicas=(1,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        rows.append(problem.statistics(dict(model.named_parameters())))
    torch.testing.assert_close(path.values, torch.stack(rows, 1).detach().double())


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
    ],
)
def test_bad_input(problem, options, message):
    with pytest.raises(ValueError, match=message):
        tl.train(problem, **{"step_size": 1.0, "time": 1.0, "progress": False, **options})

"""`Tracker.log`: numbers that the loop has already, one row a step with the statistics."""

import csv

import pytest
import torch
from torch import nn

import torchlimits as tl

NAN = torch.nan


def begun(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, tl.track(
        model, optimizer, {"w": lambda p: p["weight"].norm()}, **options
    )  # fmt: skip


def loss_of(model, step):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    return model(x).square().mean()


def train(model, optimizer, tracker, steps, *, before, flush=None, name="loss", first=0):
    """Log each loss before or after its step; returns the losses."""
    losses = []
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        losses.append(float(loss.detach()))
        if before:
            tracker.log(**{name: loss})
        optimizer.step()
        if not before:
            tracker.log(**{name: loss})
        if flush and step % flush == 0:
            tracker.flush()
    return losses


@pytest.mark.parametrize("max_bytes", [2**26, 200, 1], ids=["ring", "small ring", "hook"])
@pytest.mark.parametrize("flush", [None, 1, 3])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("suffix", [None, ".npz", ".rows"])
def test_a_value_is_in_the_row_of_its_step(tmp_path, before, flush, max_bytes, suffix):
    path = None if suffix is None else tmp_path / f"u{suffix}"
    model, optimizer, tracker = begun(max_bytes=max_bytes, path=path)
    losses = train(model, optimizer, tracker, 20, before=before, flush=flush)
    expected = torch.tensor([*losses, NAN] if before else [NAN, *losses]).double()
    found = tracker.trajectory()
    torch.testing.assert_close(found["loss"], expected, rtol=1e-6, atol=0, equal_nan=True)
    assert found.steps.tolist() == list(range(21))
    tracker.close()
    if path is not None:
        loaded = tl.Trajectory.load(path)
        assert loaded.names == ["w", "loss"]
        torch.testing.assert_close(loaded.values, found.values, rtol=0, atol=0, equal_nan=True)


def test_further_names_at_any_time():
    model, optimizer, tracker = begun()
    train(model, optimizer, tracker, 3, before=True)
    tracker.flush()
    tracker.log({"loss/valid": 0.25})
    tracker.log(rate=0.1)
    tracker.log(rate=0.2)  # the later one
    train(model, optimizer, tracker, 2, before=True, first=3)
    path = tracker.trajectory()
    assert path.names == ["w", "loss", "loss/valid", "rate"]
    assert path["loss/valid"].isnan().tolist() == [True, True, True, False, True, True]
    assert float(path["rate"][3]) == 0.2
    assert not path["w"].isnan().any()


def test_training_is_what_it_was_and_the_value_is_that_of_the_call():
    model, optimizer, tracker = begun()
    total = torch.zeros(())
    seen = []
    for step in range(5):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        total += loss.detach()
        tracker.log(total=total)
        seen.append(float(total))
        optimizer.step()
    alone, other, _ = begun()
    for step in range(5):
        other.zero_grad()
        loss_of(alone, step).backward()
        other.step()
    assert torch.equal(alone.weight, model.weight)
    torch.testing.assert_close(tracker.trajectory()["total"][:5], torch.tensor(seen).double())


def test_of_steps_that_are_not_recorded_nothing_is_kept():
    model, optimizer, tracker = begun(every=3)
    losses = train(model, optimizer, tracker, 10, before=True)
    path = tracker.trajectory()
    assert path.steps.tolist() == [0, 3, 6, 9]
    torch.testing.assert_close(path["loss"], torch.tensor(losses[::3]).double())


def test_of_copies_each_has_its_own():
    model = tl.replicate(nn.Linear(3, 1), 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"].norm()})
    tracker.log(loss=torch.arange(4.0), rate=0.1)
    optimizer.step()
    path = tracker.trajectory()
    assert path["loss"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert path["rate"][:, 0].tolist() == [0.1] * 4
    assert path["rate"][:, 1].isnan().all()


@pytest.mark.parametrize("before", [True, False])
def test_resumed_it_goes_on(before):
    model, optimizer, tracker = begun()
    losses = train(model, optimizer, tracker, 4, before=before)
    state = tracker.state_dict()
    losses += train(model, optimizer, tracker, 3, before=before, first=4)
    expected = tracker.trajectory()
    model, optimizer, tracker = begun()
    train(model, optimizer, tracker, 4, before=before)
    tracker.remove()
    tracker = tl.track(model, optimizer, {"w": lambda p: p["weight"].norm()})
    tracker.load_state_dict(state)
    train(model, optimizer, tracker, 3, before=before, first=4)
    found = tracker.trajectory()
    assert found.names == expected.names
    assert found.steps.tolist() == expected.steps.tolist()
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("before", [True, False])
def test_in_files_and_sinks(tmp_path, before):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    model, optimizer, tracker = begun(
        writer=[
            tl.CSV(tmp_path / "u.csv"), tmp_path / "log", lambda row, step: rows.append((step, row))
        ]
    )  # fmt: skip
    losses = train(model, optimizer, tracker, 12, before=before, flush=5)
    tracker.close()
    steps = range(12) if before else range(1, 13)
    accumulator = EventAccumulator(str(tmp_path / "log"), size_guidance={"scalars": 0}).Reload()
    shown = accumulator.Scalars("loss")
    assert [one.step for one in shown] == list(steps)
    assert [one.value for one in shown] == pytest.approx(losses)
    assert [one.step for one in accumulator.Scalars("w")] == list(range(13))
    assert [step for step, row in rows if "loss" in row] == list(steps)
    assert [row["loss"] for _, row in rows if "loss" in row] == pytest.approx(losses)
    with (tmp_path / "u.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [int(row["step"]) for row in table] == list(range(13))
    assert [float(row["loss"]) for row in table if row["loss"]] == pytest.approx(losses)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_does_not_end_the_record(value):
    _, optimizer, tracker = begun()
    tracker.log(loss=value)
    optimizer.step()
    path = tracker.trajectory()
    torch.testing.assert_close(
        path["loss"], torch.tensor([value, NAN]).double(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"loss": torch.zeros(2)}, ValueError, r"loss as a number or a tensor of one entry"),
        ({"loss": "low"}, TypeError, "expected loss as a number or a tensor, got str"),
        ({"loss": None}, TypeError, "expected loss as a number or a tensor, got NoneType"),
        ({"loss": torch.zeros((), dtype=torch.complex64)}, TypeError, "expected loss as a real"),
        ({"w": 1.0}, ValueError, r"names that no statistic has, got \['w'\]"),
        ({3: 1.0}, TypeError, "expected names as str"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(values, kind, message):
    _, optimizer, tracker = begun()
    with pytest.raises(kind, match=message):
        tracker.log(values)
    optimizer.step()
    assert tracker.trajectory().names == ["w"]

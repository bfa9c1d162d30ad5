import pytest
import torch

import torchlimits as tl


def paths(runs=(), shift=0.0):
    times = torch.linspace(0, 1, 11)
    u = torch.randn(*runs, 11, 2, dtype=torch.float64)
    measured = tl.Trajectory(times, torch.arange(11), u, ["a", "b"])
    return measured, tl.Trajectory(times, torch.arange(11), u + shift, ["a", "b"])


def test_equal_trajectories_do_not_differ():
    result = tl.compare(*paths())
    assert result.sup_difference.tolist() == [0.0, 0.0]
    assert result.standard_error.isnan().all()


def test_against_a_loop():
    measured, _ = paths(runs=(6,))
    _, predicted = paths(runs=(6,))
    result = tl.compare(measured, predicted)
    for i, name in enumerate(result.names):
        rows = [m - p for m, p in zip(measured[name], predicted[name], strict=True)]
        means = [sum(float(row[t]) for row in rows) / 6 for t in range(11)]
        worst = max(range(11), key=lambda t: abs(means[t]))
        assert float(result.sup_difference[i]) == pytest.approx(abs(means[worst]))
        assert float(result.sup_time[i]) == pytest.approx(worst / 10)
        spread = torch.stack([row[worst] for row in rows]).std() / 6**0.5
        assert float(result.sup_standard_error[i]) == pytest.approx(float(spread))


def test_one_prediction_for_all_runs():
    measured, _ = paths(runs=(3,))
    _, predicted = paths()
    assert tl.compare(measured, predicted).runs == 3


def test_a_band_gives_the_difference_in_its_units():
    measured, predicted = paths(shift=0.3)
    with_band = tl.Trajectory(
        predicted.times, predicted.steps, predicted.values, predicted.names,
        std=torch.full_like(predicted.values, 0.1),
    )  # fmt: skip
    result = tl.compare(measured, with_band)
    torch.testing.assert_close(result.sup_in_std, torch.full((2,), 3.0, dtype=torch.float64))
    assert "in sd" in str(result)


def test_the_printed_table():
    text = str(tl.compare(*paths(runs=(4,), shift=0.25)))
    assert len(text.splitlines()) == 3
    assert "0.2500 ± 0.0000" in text


def test_what_cannot_be_compared():
    measured, predicted = paths()
    with pytest.raises(ValueError, match="another order"):
        tl.compare(measured, tl.Trajectory(
            predicted.times, predicted.steps, predicted.values, ["b", "a"]))  # fmt: skip
    with pytest.raises(ValueError, match="same times"):
        tl.compare(measured, predicted.slice(slice(0, 5)))
    with pytest.raises(ValueError, match="for each run or one for all"):
        tl.compare(measured, paths(runs=(2,))[1])

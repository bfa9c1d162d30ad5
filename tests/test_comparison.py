import dataclasses

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    with pytest.raises(ValueError, match="same times"):
        tl.compare(measured, predicted.slice(slice(0, 5)))
    with pytest.raises(ValueError, match="for each run or one for all"):
        tl.compare(measured, paths(runs=(2,))[1])
    with pytest.raises(TypeError, match="expected predicted as a Trajectory"):
        tl.compare(measured, None)


# --- which statistics match: one rule for all who draw or compare ---------------------------------

SIDES = ("measured", "predicted")


def by_compare(measured, predicted, _):
    result = tl.compare(measured, predicted)
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(result.names)]] == result.names
    told = [f"{side} only: {', '.join(only)}" for side, only in result.unmatched.items() if only]
    assert lines[1 + len(result.names) :] == told
    ends = zip(result.names, result.measured.tolist(), result.predicted.tolist(), strict=True)
    found = {name: {"measured": m, "predicted": p} for name, m, p in ends}
    paths = {"measured": measured, "predicted": predicted}
    for side, names in result.unmatched.items():
        found |= {name: {side: float(paths[side][name][-1])} for name in names}
    return found


def by_write(measured, predicted, folder):
    tl.tensorboard.write(folder, measured=measured, predicted=predicted)
    found = {}
    for side in SIDES:
        events = EventAccumulator(str(folder / side)).Reload()
        for name in {*events.Tags()["scalars"]} - {"torchlimits/sup difference"}:
            found.setdefault(name, {})[side] = events.Scalars(name)[-1].value
    text = events.Tensors("torchlimits/about")[0].tensor_proto.string_val[0].decode()
    only = {side: [name for name in found if [*found[name]] == [side]] for side in SIDES}
    for side, names in only.items():
        assert (f"{side} only: " in text) is bool(names)
        assert all(name in text.split(f"{side} only: ")[1].splitlines()[0] for name in names)
    return found


def by_overlay(measured, predicted, _):
    found = {}
    for axes in tl.figures.overlay(measured, predicted).axes:
        for line in axes.lines:
            side = "measured" if line.get_marker() == "o" else "predicted"
            name = axes.get_title(loc="left").strip("$")
            found.setdefault(name, {})[side] = float(line.get_ydata()[-1])
    return found


consumers = pytest.mark.parametrize("consumer", [by_compare, by_write, by_overlay])


def path_of(names, rows=3, runs=(), value=0.0):
    values = torch.zeros(*runs, rows, len(names)) + value + torch.arange(len(names))
    return tl.Trajectory(torch.arange(rows) * 0.5, torch.arange(rows), values, names)


@consumers
@pytest.mark.parametrize(
    ("measured", "predicted"),
    [("abc", "abc"), ("abc", "cab"), ("ab", "bca"), ("bca", "ab"), ("dab", "bca"), ("ab", "bc")],
)
def test_statistics_match_by_name(consumer, measured, predicted, tmp_path):
    paths = {"measured": path_of([*measured]), "predicted": path_of([*predicted], value=100.0)}
    found = consumer(paths["measured"], paths["predicted"], tmp_path)
    assert {*found} == {*measured, *predicted}
    for name, ends in found.items():
        assert ends == {side: path[name][-1] for side, path in paths.items() if name in path.names}
    if consumer is not by_write:  # TensorBoard sorts
        both = [name for name, ends in found.items() if len(ends) == 2]
        assert both == [name for name in measured if name in predicted]


@consumers
@pytest.mark.parametrize(
    ("measured", "predicted", "error", "message"),
    [
        (path_of(["a"]), path_of(["b"]), ValueError, r"\['a'\] measured and \['b'\] predicted"),
        (path_of(["a"], runs=(3,)), path_of(["a"], runs=(2,)), ValueError, "2 for 3 measured runs"),
        (path_of(["a"]), path_of(["a"], runs=(2,)), ValueError, "for each run or one for all"),
        (path_of(["a"], rows=0), path_of(["a"]), ValueError, "expected measured to hold values"),
        (path_of(["a"]), path_of([]), ValueError, "expected predicted to hold values"),
        (path_of(["a"]), torch.zeros(3, 1), TypeError, "predicted"),
    ],
)
def test_what_does_not_match(consumer, measured, predicted, error, message, tmp_path):
    with pytest.raises(error, match=message):
        consumer(measured, predicted, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_matches_a_prediction_whatever_the_leading_dimensions(tmp_path):
    measured, predicted = path_of(["a"], runs=(2, 3)), path_of(["a"], runs=(6,), value=0.5)
    assert tl.compare(measured, predicted).sup_difference.tolist() == [0.5]
    tl.tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    tl.figures.overlay(measured, predicted)


def test_the_rich_table_lists_what_does_not_match():
    console = Console(width=80, record=True)
    console.print(tl.compare(path_of(["a", "m[0,1]"]), path_of(["a"])))
    assert "measured only: m[0,1]" in console.export_text()


def test_a_band_in_another_order_belongs_to_its_statistic():
    measured, predicted = path_of(["a", "b"]), path_of(["b", "a"], value=1.0)
    std = torch.tensor([1.0, 0.5]).expand(3, 2)
    result = tl.compare(measured, dataclasses.replace(predicted, std=std))
    assert result.sup_difference.tolist() == [2.0, 0.0]
    assert result.sup_in_std.tolist() == [4.0, 0.0]

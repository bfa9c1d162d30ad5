import dataclasses
import functools
import gc
import io

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits import _humps
from torchlimits._text import Table
from torchlimits.comparison import humps, momentum_lag


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
    table, notes = text.split("\n\n")
    assert len(table.splitlines()) == 4
    assert "0.2500 ± 0.0000" in table
    assert [line[:16].strip() for line in notes.splitlines()] == [
        "run", "measured, end", "predicted, end", "sup |difference|", "at t", "mean difference",
    ]  # fmt: skip


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
    assert [line.split()[0] for line in lines[2 : 2 + len(result.names)]] == result.names
    told = [f"{side} only: {', '.join(only)}" for side, only in result.unmatched.items() if only]
    assert [line for line in lines if line.startswith(tuple(f"{x} only" for x in SIDES))] == told
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
        charts = {tag for tag in events.Tags()["scalars"] if tag.startswith("· ")}
        for name in {*events.Tags()["scalars"]} - {"torchlimits/sup difference"} - charts:
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


# --- the table, wherever it is shown -------------------------------------------------------------

COLUMNS = ["run", "measured, end", "predicted, end", "sup |difference|", "at t", "mean difference",
           "in sd", "in 95 %"]  # fmt: skip


def banded(runs=(3,)):
    measured, predicted = paths(runs=runs, shift=0.3)
    std = torch.full_like(predicted.values, 0.1)
    return tl.compare(measured, dataclasses.replace(predicted, std=std))


def missing(text):
    """The columns that are not there with a cell for each of two statistics, and explained."""
    table = text[: text.index("\nrun  ")]
    notes = text[len(table) :]
    blocks = [block.splitlines() for block in table.split("\n\n") if block.strip()]
    found = [name for block in blocks for line in block for name in COLUMNS if name in line]
    assert all(len(block) >= 3 for block in blocks)
    return [name for name in COLUMNS if name not in found or f"\n{name} " not in notes]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_terminal_is_too_narrow_for_a_column(width, monkeypatch):
    result = banded()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(width=width, file=io.StringIO())
    console.print(result)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert [line.rstrip() for line in shown.splitlines()] == str(result).splitlines()
    assert max(map(len, shown.splitlines())) <= width
    assert not missing(shown)


def test_a_pipe_folds_nothing(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = str(banded())
    assert not missing(text)
    assert text.splitlines()[1].split("  ")[-1] == "in 95 %"


def test_runs_from_different_starts_show_the_worst_one():
    measured, predicted = paths(runs=(5,))
    values = measured.values.clone()
    values[3, 6, 0] += 2.0
    values[1, 2, 1] -= 1.0
    worst = tl.compare(dataclasses.replace(measured, values=values), predicted).worst_runs
    assert worst.run.tolist() == [3, 1]
    assert worst.difference.tolist() == pytest.approx([2.0, 1.0])
    assert worst.time.tolist() == pytest.approx([0.6, 0.2])
    assert worst.measured.tolist() == [float(values[3, -1, 0]), float(values[1, -1, 1])]
    assert "the worst of 5 runs from different starts" in str(tl.compare(measured, predicted))


def test_runs_from_one_start_are_averaged_and_said_to_be():
    measured, predicted = paths(runs=(4,), shift=0.25)
    for path in (measured, predicted):
        path.values[:, 0] = 1.0
    result = tl.compare(measured, predicted)
    assert result.worst_runs is None
    assert "mean of 4 runs" in str(result)
    assert "all 4 runs have one start" in str(result)
    assert tl.compare(*paths()).worst_runs is None


def test_where_a_value_was_not_given_there_is_no_difference():
    measured, predicted = paths(shift=0.5)
    measured.values[::2, 0] = torch.nan
    result = tl.compare(measured, predicted)
    assert result.sup_difference.tolist() == pytest.approx([0.5, 0.5])


def test_a_comparison_as_data():
    frame = banded().to_pandas()
    assert frame.index.tolist() == ["a", "b"]
    assert frame.loc["a", "sup_difference"] == pytest.approx(0.3)
    assert {"inside", "worst_run", "worst_difference"} <= set(frame.columns)


def test_html_is_escaped_and_has_every_column():
    measured, predicted = path_of(["<b>", "m"]), path_of(["<b>", "m"], value=1.0)
    text = tl.compare(measured, predicted)._repr_html_()
    assert "&lt;b&gt;" in text
    assert ">m</td>" in text
    assert "<script" not in text
    assert "color" not in text
    assert text.count("<th ") == 5
    assert text.count("<td ") == 10


def test_sentences_stand_below_each_other_and_long_names_have_lines_of_their_own():
    long = "a" * 30
    table = Table([["condition", "n = 10", "verdict"], [long, "1", "holds " * 20]], prose=True)
    for width in (30, 45, 60):
        lines = table.text(width).splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(lines).count("holds") == 20
        assert any(line.strip().startswith(long) for line in lines)


def normal_law(seed, paths=2000, shift=0.0, scale=1.0):
    """A law of normal numbers, two statistics at 11 times, the first 0."""
    generator = torch.Generator().manual_seed(seed)
    samples = shift + scale * torch.randn(paths, 11, 2, generator=generator, dtype=torch.float64)
    samples[:, 0] = 0.0
    order = samples.sort(dim=0).values
    return tl.Trajectory(
        torch.linspace(0, 1, 11), torch.arange(11), samples.mean(0), ["a", "b"],
        std=samples.std(0), lower=order[paths // 40], upper=order[-paths // 40 - 1],
        samples=samples, metadata={"law": {"level": 0.95, "exact": True}},
    )  # fmt: skip


def runs_of(law, count):
    picked = law.samples[:count]
    return tl.Trajectory(law.times, law.steps, picked, law.names)


def test_runs_are_counted_within_the_bounds_of_a_law():
    law, measured = normal_law(0), runs_of(normal_law(1), 200)
    skew = dataclasses.replace(law, upper=law.lower + 0.5)  # bounds, and not the deviation, count
    result = tl.compare(measured, skew)
    values = measured.values[:, 1:]
    expected = ((values >= skew.lower[1:]) & (values <= skew.upper[1:])).double().mean((0, 1))
    torch.testing.assert_close(result.inside, expected)
    assert "in 95 %" in str(result)
    narrow = {"law": {"level": 0.5}}
    assert "in 50 %" in str(tl.compare(measured, dataclasses.replace(law, metadata=narrow)))


def test_the_distance_from_the_law_tells_a_wrong_one():
    """Against scipy's, and by how often runs of the law itself are beyond what is usual."""
    from scipy import stats

    law = normal_law(0)
    beyond = []
    for seed in range(1, 41):
        result = tl.compare(runs_of(normal_law(seed), 50), law)
        beyond += (result.law_distance > result.usual_distance).tolist()
    # 5 % of 80: between 0 and 11 with a probability of 0.999
    assert sum(beyond) <= 11
    measured = runs_of(normal_law(1), 50)
    result = tl.compare(measured, law)
    of_a = [
        stats.ks_2samp(measured.values[:, t, 0], law.samples[:, t, 0]).statistic
        for t in range(1, 11)
    ]
    assert float(result.law_distance[0]) == pytest.approx(max(of_a), abs=1 / 2000)
    for wrong in (normal_law(1, shift=0.7), normal_law(1, scale=2.0)):
        result = tl.compare(runs_of(wrong, 50), law)
        assert bool((result.law_distance > result.usual_distance).all())
    assert "KS" in str(result)
    assert result.to_pandas().usual_distance.notna().all()


def test_runs_with_laws_of_their_own_are_held_against_them():
    laws = [normal_law(seed, paths=500, shift=float(seed)) for seed in range(20)]
    samples = torch.stack([law.samples for law in laws], dim=1)
    whole = tl.Trajectory(
        laws[0].times, laws[0].steps, samples.mean(0), ["a", "b"], samples=samples
    )
    values = torch.stack([normal_law(seed + 100, paths=2).samples[0] for seed in range(20)])
    after = torch.arange(11)[:, None] > 0
    values = values + torch.arange(20.0)[:, None, None] * after
    measured = tl.Trajectory(whole.times, whole.steps, values, ["a", "b"])
    result = tl.compare(measured, whole)
    assert bool((result.law_distance < 1.3 * result.usual_distance).all())
    others = tl.Trajectory(whole.times, whole.steps, values + 2.0 * after, ["a", "b"])
    result = tl.compare(others, whole)
    assert bool((result.law_distance > 1.5 * result.usual_distance).all())


def test_few_runs_and_narrow_laws_have_no_distance():
    law = normal_law(0)
    assert tl.compare(runs_of(law, 4), law).law_distance is None
    still = torch.cat([law.samples[..., :1], torch.zeros(2000, 11, 1)], dim=-1)
    frozen = dataclasses.replace(law, samples=still)
    result = tl.compare(runs_of(frozen, 50), frozen)
    assert result.law_distance.isnan().tolist() == [False, True]
    assert "nan" not in str(result)


def test_humps_are_told_in_words():
    law = normal_law(0)
    parted = law.samples + 6.0 * (torch.arange(2000)[:, None, None] % 4 == 0)
    wide = dataclasses.replace(law, samples=parted)
    text = str(tl.compare(runs_of(law, 1), wide))
    assert "more than one hump" in text
    assert "75 % near" in text
    assert "25 % near" in text
    assert "hump" not in str(tl.compare(runs_of(law, 1), law))


def test_humps_are_looked_for_once_in_each_law(tmp_path, monkeypatch):
    """By compare, overlay and write together, panel by panel; again after a change."""
    law = normal_law(0, paths=300)
    parted = dataclasses.replace(
        law, samples=law.samples + 9.0 * (torch.arange(300) < 99)[:, None, None]
    )
    looked, clearness = [], _humps.clearness
    monkeypatch.setattr(_humps, "clearness", lambda x: looked.append(1) or clearness(x))
    measured = runs_of(law, 6)
    told = tl.compare(measured, parted).humps
    tl.figures.overlay(measured, parted)
    tl.tensorboard.write(tmp_path, measured=measured, predicted=parted)
    assert len(looked) == 11 * 2
    assert [one.name for one in told] == ["a", "b"]
    parted.samples.copy_(law.samples)
    assert not tl.compare(measured, parted).humps
    assert len(looked) == 2 * 11 * 2
    del parted
    gc.collect()
    assert not [
        path for path in humps._FOUND if path.samples is not None and len(path.samples) == 300
    ]


def test_paths_that_are_lost_are_no_hump():
    """A path that left float64 is NaN; the others are drawn and told as they are."""
    law = normal_law(0, paths=300)
    law.samples[:5] = torch.nan
    assert not tl.compare(runs_of(law, 1), law).humps
    parted = law.samples + 9.0 * (torch.arange(300) % 3 == 0)[:, None, None]
    two = dataclasses.replace(law, samples=parted)
    assert "67 % near" in str(tl.compare(runs_of(normal_law(1), 1), two))
    kinds = {type(one).__name__ for one in tl.figures.overlay(None, two).axes[0].collections}
    assert "QuadMesh" in kinds


# --- momentum's memory ----------------------------------------------------------------------------


@functools.cache
def under_momentum(momentum, dim=250):
    """The limit with its band, and the dynamics it is of."""
    problem = tl.GaussianMixture.binary(dim=dim, width=1, snr=2.0)
    dynamics = problem.dynamics(step_size=0.05 if momentum > 0.6 else 0.5, momentum=momentum)
    u0 = problem.starts(1, generator=torch.Generator().manual_seed(0))[0]
    times = torch.linspace(0, 2 * (1 - momentum), 9)
    return dynamics, u0, dynamics.solve(u0, times, band=True)


def test_momentum_that_shows_is_told_and_is_as_large_as_the_next_order_says():
    dynamics, u0, limit = under_momentum(0.97)
    ahead = tl.NextOrder(dynamics).solve(u0, limit.times)
    found = tl.compare(ahead, limit)
    lag = found.momentum_lag
    assert str(lag).startswith("momentum 0.97 keeps the parameters 32 steps behind")
    assert str(lag) in str(found)
    row = int((limit.times - lag.time).abs().argmin())
    assert lag.error == pytest.approx(float(limit.std[row, limit.index(lag.name)]))
    exact = float((ahead[lag.name] - limit[lag.name])[row].abs())
    assert 1 / 2 < lag.shift / exact < 2
    # v and m where they are largest; what moves R besides is not known to a comparison
    shift = momentum_lag._shift(limit, 0.97 / 0.03).amax(0)
    ratio = (shift / (ahead.values - limit.values).abs().amax(0))[:2]
    assert 1 / 2 < float(ratio.min()) < float(ratio.max()) < 2


def test_momentum_that_does_not_show_is_not_told():
    """Negative controls: a smaller momentum, a larger n, and what has momentum in it."""
    for momentum, dim in ((0.5, 250), (0.97, 10**7)):
        _, _, limit = under_momentum(momentum, dim)
        assert tl.compare(limit, limit).momentum_lag is None, (momentum, dim)
        assert "momentum" not in str(tl.compare(limit, limit))
    dynamics, u0, limit = under_momentum(0.97)
    ahead = tl.NextOrder(dynamics).solve(u0, limit.times)
    ahead = dataclasses.replace(ahead, std=limit.std)
    assert tl.compare(limit, ahead).momentum_lag is None
    # the first 32 steps, where the buffer fills
    early = dynamics.solve(u0, [0.0, 0.006], band=True)
    assert tl.compare(early, early).momentum_lag is None
    assert early.steps[-1] == 30


def test_momentum_is_told_by_the_spread_of_runs_where_there_is_no_band():
    _, _, limit = under_momentum(0.97)
    bare = dataclasses.replace(limit, std=None)
    noise = torch.randn(8, *limit.values.shape, generator=torch.Generator().manual_seed(0))
    measured = dataclasses.replace(bare, values=limit.values + limit.std * noise)
    assert tl.compare(measured, bare).momentum_lag is not None
    assert tl.compare(measured.slice(slice(None)).run(0), bare).momentum_lag is None
    loud = dataclasses.replace(bare, values=limit.values + 100 * limit.std * noise)
    assert tl.compare(loud, bare).momentum_lag is None


def test_what_has_no_noise_has_no_band():
    """A statistic that counts steps, say: rounding is not measured in deviations of 0."""
    times, steps = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 10, 20])
    values = torch.tensor([[0.0, 0.0], [1.0, 0.5], [1.0, 0.7]], dtype=torch.float64)
    std = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.1, 0.0]])
    theirs = tl.Trajectory(times, steps, values, ["m", "w"], std=std)
    values = values + torch.tensor([[0.0, 0.0], [0.1, 1e-12], [0.0, 0.0]])
    ours = tl.Trajectory(times, steps, values, ["m", "w"])
    found = tl.compare(ours, theirs)
    assert found.sup_in_std[0] == pytest.approx(1.0)
    assert found.inside[0] == 1.0
    assert bool(found.sup_in_std[1].isnan())
    assert bool(found.inside[1].isnan())
    assert "nan" not in str(found)

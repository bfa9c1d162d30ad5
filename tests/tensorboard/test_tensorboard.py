"""What is written is read back with TensorBoard's own readers."""

import dataclasses
import io
import json
import re
import time

import google_crc32c
import numpy as np
import pytest
import torch
from matplotlib import image as matplotlib_image
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import custom_scalars_plugin, layout_pb2
from tensorboard.plugins.hparams import backend_context
from tensorboard.plugins.scalar import scalars_plugin
from torch.utils.tensorboard import SummaryWriter

from torchlimits import tensorboard
from torchlimits.record.sinks.choose import chosen
from torchlimits.tensorboard import events
from torchlimits.tensorboard.borrowed import Borrowed
from torchlimits.trajectory import Trajectory

NAMES = ["v[0]", "v[1]", "m[0,0]", "m[1,0]", "r2"]
TAGS = ["v/0", "v/1", "m/0/0", "m/1/0", "r2"]


def trajectory(rows=300, runs=None, names=NAMES, *, band=False, seed=0, first=0, **metadata):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, len(names)) if runs is None else (runs, rows, len(names))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    steps = torch.arange(first, first + rows)
    std = torch.rand(shape, generator=generator) if band else None
    return Trajectory(steps * 1e-3, steps, values, names, std, metadata=metadata)


def read(folder):
    """{tag: (steps, values, wall times)} of one run directory."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    found = {}
    for tag in accumulator.Tags()["scalars"]:
        rows = accumulator.Scalars(tag)
        columns = ([e.step for e in rows], [e.value for e in rows], [e.wall_time for e in rows])
        found[tag] = tuple(map(np.array, columns))
    return found


def layout(folder):
    accumulator = EventAccumulator(str(folder)).Reload()
    (event,) = accumulator.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category


def served(logdir):
    """TensorBoard's backend over a log directory: context of a request, context of a plugin."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance={"scalars": 0})
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    return RequestContext(), base_plugin.TBContext(data_provider=provider, logdir=str(logdir))


# --- event files ---------------------------------------------------------------------------------


def test_values_steps_and_times_come_back_exactly(tmp_path):
    # steps on both sides of every length that a varint up to 2^35 can have, blocks included
    edges = [0, 1, 127, 128, 16383, 16384, 2**21 - 1, 2**21, 2**28, 2**35]
    steps = np.array(sorted({*edges, *range(3 * 10**6, 3 * 10**6 + 20_000)}))
    values = np.random.default_rng(0).standard_normal((len(steps), 2)) * 1e3
    values[:4, 0] = [np.nan, np.inf, -np.inf, 1e300]
    times = 1.7e9 + np.arange(len(steps)) * 0.1
    file = events.EventFile(tmp_path)
    file.add_scalars(["a", "β" * 200], steps, times, values)
    file.flush()
    found = read(tmp_path)
    for column, tag in enumerate(["a", "β" * 200]):
        # NaN is no value, infinities are
        there = ~np.isnan(values[:, column])
        np.testing.assert_array_equal(found[tag][0], steps[there])
        with np.errstate(over="ignore"):
            expected = values[there, column].astype(np.float32)
        np.testing.assert_array_equal(found[tag][1], expected)
        np.testing.assert_array_equal(found[tag][2], times[there])


def test_fast_records_are_those_of_protobuf():
    tags, steps = ["v/0", "v/1"], np.array([1, 5, 127, 128, 300, 70_000])
    values = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    expected = b""
    for step, row in zip(steps.tolist(), values.tolist(), strict=True):
        pairs = zip(tags, row, strict=True)
        summary = events.Summary(
            value=[events.Summary.Value(tag=tag, simple_value=value) for tag, value in pairs]
        )
        event = events.Event(wall_time=2.0 * step, step=step, summary=summary)
        expected += events.record(event.SerializeToString())
    assert b"".join(events.scalar_records(tags, steps, 2.0 * steps, values)) == expected


def test_record_has_the_masked_crc_of_tfrecord():
    record = events.record(b"some data")
    crc = google_crc32c.value(b"some data")
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert record[:8] == (9).to_bytes(8, "little")
    assert record[-4:] == masked.to_bytes(4, "little")


def test_no_rows_no_records():
    assert not list(events.scalar_records(["a"], np.arange(0), np.arange(0.0), np.ones((0, 1))))


# --- write ---------------------------------------------------------------------------------------


def test_two_runs_with_the_same_tags(tmp_path):
    measured, predicted = trajectory(), trajectory(seed=1)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted, max_points=None)
    for side, path in (("measured", measured), ("predicted", predicted)):
        found = read(tmp_path / side)
        assert set(TAGS) <= set(found)
        for name, tag in zip(NAMES, TAGS, strict=True):
            np.testing.assert_array_equal(found[tag][0], path.steps)
            np.testing.assert_array_equal(found[tag][1], path[name].numpy().astype(np.float32))


def test_relative_wall_time_is_limit_time_in_hours(tmp_path):
    path = trajectory()
    tensorboard.write(tmp_path, measured=path)
    times = read(tmp_path / "measured")["r2"][2]
    np.testing.assert_allclose((times - times[0]) / 3600, path.times, atol=1e-8)
    assert times[-1] <= time.time()


def test_at_most_max_points_with_both_ends(tmp_path):
    path = trajectory(rows=12_345)
    tensorboard.write(tmp_path, predicted=path)
    steps = read(tmp_path / "predicted")["v/0"][0]
    assert len(steps) == 1000
    assert (steps[0], steps[-1]) == (0, 12_344)
    assert set(np.diff(steps)) <= {12, 13}


def test_runs_have_directories_of_their_own(tmp_path):
    measured = trajectory(runs=3)
    predicted = trajectory(seed=1)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    assert sorted(folder.name for folder in (tmp_path / "measured").iterdir()) == ["0", "1", "2"]
    for run in range(3):
        values = read(tmp_path / "measured" / str(run))["m/1/0"][1]
        np.testing.assert_array_equal(values, measured["m[1,0]"][run].numpy().astype(np.float32))
    assert "v/0" in read(tmp_path / "predicted")


def test_many_runs_are_cut_and_the_text_says_so(tmp_path):
    path = trajectory(rows=3, runs=40)
    tensorboard.write(tmp_path, measured=path, max_runs=5)
    assert len(list((tmp_path / "measured").iterdir())) == 5
    assert "the first 5 of 40 runs" in about(tmp_path / "measured" / "0")


def test_band_is_drawn_for_both_sides(tmp_path):
    measured, predicted = trajectory(), trajectory(seed=1, band=True)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    found = read(tmp_path / "predicted")
    half = 1.96 * predicted.std[:, 0]
    experiment = "/".join(tmp_path.parts[-2:])
    value, lower, upper = (f"± band/{experiment}/v/0/{end}" for end in ("value", "lower", "upper"))
    np.testing.assert_array_equal(found[value][1], found["v/0"][1])
    np.testing.assert_array_equal(found[lower][1], (predicted["v[0]"] - half).float())
    np.testing.assert_array_equal(found[upper][1], (predicted["v[0]"] + half).float())
    found = read(tmp_path / "measured")
    for end in (lower, upper):
        np.testing.assert_array_equal(found[end][1], found["v/0"][1])
    for side in ("measured", "predicted"):
        categories = layout(tmp_path / side)
        # each in reverse: so TensorBoard shows them in order, see test_browser.py
        assert {c.title: [chart.title for chart in c.chart] for c in categories} == {
            f"{experiment}: v": ["v[1]", "v[0]"],
            f"{experiment}: m": ["m[1,0]", "m[0,0]"],
            experiment: ["r2"],
        }
        (series,) = categories[0].chart[1].margin.series
        assert (series.value, series.lower, series.upper) == (value, lower, upper)


def test_the_bounds_of_a_law_are_the_band(tmp_path):
    predicted = trajectory(band=True)
    ends = predicted.values - 0.5, predicted.values + 2.0
    law = dataclasses.replace(predicted, lower=ends[0], upper=ends[1])
    tensorboard.write(tmp_path, measured=trajectory(), predicted=law)
    found = read(tmp_path / "predicted")
    experiment = "/".join(tmp_path.parts[-2:])
    for name, end in zip(("lower", "upper"), ends, strict=True):
        shown = found[f"± band/{experiment}/v/0/{name}"][1]
        np.testing.assert_array_equal(shown, end[:, 0].float())


def test_large_categories_are_closed_but_for_the_first(tmp_path):
    names = [f"{family}[{i}]" for family, size in {"R": 13, "m": 13, "v": 12}.items()
             for i in range(size)]  # fmt: skip
    tensorboard.write(tmp_path, predicted=trajectory(rows=2, names=names, band=True))
    assert [c.closed for c in layout(tmp_path / "predicted")] == [False, True, False]


def test_layout_without_a_band_matches_each_tag_only_once(tmp_path):
    names = [f"v[{i}]" for i in range(11)] + ["a (b)", "loss.x"]
    tensorboard.write(tmp_path, measured=trajectory(rows=5, names=names))
    plugin, request = custom_scalars(tmp_path)
    experiment = "/".join(tmp_path.parts[-2:])
    family, others = json.loads(plugin.layout_impl(request, ""))["category"]
    assert (family["title"], others["title"]) == (f"{experiment}: v", experiment)
    charts = [*family["chart"], *others["chart"]]
    assert [chart["title"] for chart in charts] == names
    for name, chart in zip(names, charts, strict=True):
        (pattern,) = chart["multiline"]["tag"]
        (found,) = plugin.scalars_impl(request, "measured", pattern, "")["tag_to_events"]
        # what follows a bracket would be taken for the name of the run
        assert "(" not in found
        assert found.replace("（", "(").replace("）", ")").endswith("/" + tensorboard.tag(name))


def custom_scalars(logdir):
    """TensorBoard's plugin over a log directory, and a request."""
    request, context = served(logdir)
    context.plugin_name_to_instance = {"scalars": scalars_plugin.ScalarsPlugin(context)}
    return custom_scalars_plugin.CustomScalarsPlugin(context), request


@pytest.mark.parametrize("band", [True, False])
def test_charts_of_an_experiment_show_no_other_one(tmp_path, band):
    """Two of one number in one log directory, under two problems: written, and live."""
    for problem in ("xor", "binary"):
        folder = tmp_path / "runs" / problem / "0001"
        if band:
            tensorboard.write(folder, measured=trajectory(9), predicted=trajectory(9, band=True))
        else:
            with tensorboard.Writer(folder) as writer:
                feed(writer, trajectory(9), 5)
    plugin, request = custom_scalars(tmp_path / "runs")
    categories = json.loads(plugin.layout_impl(request, ""))["category"]
    assert {c["title"].split(":")[0] for c in categories} == {"binary/0001", "xor/0001"}
    files = (tmp_path / "runs").rglob("*tfevents*")
    runs = [path.parent.relative_to(tmp_path / "runs").as_posix() for path in files]
    assert len(runs) == (4 if band else 2)
    for category in categories:
        for chart in category["chart"]:
            tags = (
                [
                    re.escape(chart["margin"]["series"][0][end])
                    for end in ("value", "lower", "upper")
                ]
                if band
                else chart["multiline"]["tag"]
            )
            for run in runs:
                found = plugin.scalars_impl(request, run, "|".join(tags), "")["tag_to_events"]
                own = run.startswith(category["title"].split(":")[0])
                assert len(found) == (len(tags) if own else 0)


def test_the_runs_are_listed_so_that_both_sides_of_a_run_have_kindred_colours(tmp_path):
    """TensorBoard takes orange, blue, red, cyan, magenta, teal in the order of the runs' starts."""
    measured, predicted = trajectory(9, runs=3), trajectory(9, runs=3, band=True)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    request, context = served(tmp_path)
    runs = context.data_provider.list_runs(request, experiment_id="")
    order = [run.run_name for run in sorted(runs, key=lambda run: run.start_time)]
    assert order == [f"{side}/{run}" for side, run in (
        ("measured", 0), ("measured", 1), ("predicted", 0), ("predicted", 1),
        ("measured", 2), ("predicted", 2),
    )]  # fmt: skip


def test_hparams_dashboard_understands(tmp_path):
    optimizer = {"optimizer": "SGD", "lr": 0.1, "fused": True, "differentiable": False}
    measured = trajectory(runs=2, parameters={**optimizer, "dim": 5})
    predicted = trajectory(seed=1, parameters={"snr": 3.0, "lr": 7.0})
    more = {"dim": np.int64(1000), "ok": True, "betas": (1, 2), "scale": torch.tensor(2.5)}
    tensorboard.write(tmp_path, measured=measured, predicted=predicted, hparams=more)
    request, context = served(tmp_path)
    reader = backend_context.Context(context)
    content = reader.hparams_metadata(request, "")
    assert sorted(content) == ["measured/0", "measured/1"]
    experiment = reader.experiment_from_metadata(
        request, "", True, content, reader.hparams_from_data_provider(request, "", limit=0)
    )
    names = {info.name for info in experiment.hparam_infos}
    assert names == {"lr", "optimizer", "dim", "snr", "ok", "betas", "scale"}
    metrics = {(metric.name.group, metric.name.tag) for metric in experiment.metric_infos}
    assert ("", "torchlimits/sup difference") in metrics
    session = backend_context.metadata.parse_session_start_info_plugin_data(
        content["measured/0"]["_hparams_/session_start_info"]
    )
    assert session.group_name.startswith(f"{tmp_path.name} (")
    assert session.hparams["dim"].number_value == 1000
    assert session.hparams["lr"].number_value == 0.1
    assert session.hparams["betas"].string_value == "(1, 2)"


def test_sup_difference_of_each_run(tmp_path):
    measured, predicted = trajectory(runs=2), trajectory(seed=1)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    for run in range(2):
        value = read(tmp_path / "measured" / str(run))["torchlimits/sup difference"][1]
        expected = (measured.values[run] - predicted.values).abs().max()
        np.testing.assert_array_equal(value, [np.float32(expected)])


def test_different_times_have_no_sup_difference(tmp_path):
    tensorboard.write(tmp_path, measured=trajectory(), predicted=trajectory(rows=50))
    assert "torchlimits/sup difference" not in read(tmp_path / "measured")
    assert "different times: no differences" in about(tmp_path / "predicted")


def about(folder):
    accumulator = EventAccumulator(str(folder)).Reload()
    (event,) = accumulator.Tensors("torchlimits/about")
    return event.tensor_proto.string_val[0].decode()


def test_text_and_image(tmp_path):
    predicted = trajectory(seed=1, equation="du/dt = -f + g", parameters={"note": "a|b"})
    tensorboard.write(tmp_path, measured=trajectory(), predicted=predicted)
    text = about(tmp_path / "predicted")
    assert "du/dt = -f + g" in text
    assert "| note | a\\|b |" in text
    accumulator = EventAccumulator(str(tmp_path / "predicted")).Reload()
    (event,) = accumulator.Images("torchlimits/overlay")
    pixels = matplotlib_image.imread(io.BytesIO(event.encoded_image_string), format="png")
    assert pixels.shape[:2] == (event.height, event.width)
    tensorboard.write(tmp_path / "alone", measured=trajectory())
    assert "Smoothing" in about(tmp_path / "alone" / "measured")


def test_tags_of_all_dashboards_differ(tmp_path):
    # TensorBoard drops what comes second under one tag
    tensorboard.write(tmp_path, predicted=trajectory(parameters={"a": 1}))
    request, context = served(tmp_path)
    provider = context.data_provider
    images = provider.list_blob_sequences(request, experiment_id="", plugin_name="images")
    texts = provider.list_tensors(request, experiment_id="", plugin_name="text")
    panels = ["m[0,0] to m[1,0]", "r2", "v[0] to v[1]"]
    assert sorted(images["predicted"]) == [
        "torchlimits/overlay",
        *(f"torchlimits/overlay/{panel}" for panel in panels),
    ]
    assert list(texts["predicted"]) == ["torchlimits/about"]


def test_writing_again_replaces(tmp_path):
    """Our own files; beside those of others, in a folder of their own."""
    with SummaryWriter(str(tmp_path / "measured")) as mine:
        for seed, runs in enumerate([3, None, None, None, 2]):
            path = trajectory(runs=runs, seed=seed, rows=200 + seed)
            tensorboard.write(tmp_path, measured=path, predicted=path)
            folder = tmp_path / "measured" / ("torchlimits" if runs is None else "1")
            steps, values, _ = read(folder)["r2"]
            np.testing.assert_array_equal(steps, path.steps)
            expected = path["r2"] if runs is None else path["r2"][1]
            np.testing.assert_array_equal(values, expected.float())
            assert len(events.own_files(folder)) <= 2
            mine.add_scalar("loss", seed, 7 * seed)
            mine.flush()
    assert read(tmp_path / "measured")["loss"][0].tolist() == [0, 7, 14, 21, 28]
    assert not (tmp_path / "measured" / "torchlimits").exists()
    assert not list(tmp_path.rglob("unfinished*"))


def test_only_the_side_given_is_replaced(tmp_path):
    tensorboard.write(tmp_path, predicted=trajectory())
    tensorboard.write(tmp_path, measured=trajectory(rows=10))
    assert len(read(tmp_path / "predicted")["r2"][0]) == 300


def test_a_reader_that_follows_the_directory_sees_the_replacement(tmp_path):
    live = tensorboard.Writer(tmp_path / "measured", max_points=None)
    path = trajectory()
    live.add(path.slice(slice(0, 100)))
    live.flush()
    reader = EventAccumulator(str(tmp_path / "measured"), size_guidance={"scalars": 0}).Reload()
    assert len(reader.Scalars("r2")) == 100
    tensorboard.write(tmp_path, measured=path)
    assert [event.step for event in reader.Reload().Scalars("r2")] == path.steps.tolist()
    # a live writer that goes on after all appends to what was written
    live.add(trajectory(rows=50, first=300))
    live.close()
    assert [event.step for event in reader.Reload().Scalars("r2")] == list(range(350))
    np.testing.assert_array_equal(read(tmp_path / "measured")["r2"][0], np.arange(350))


def test_predicted_in_another_order_of_names(tmp_path):
    measured = trajectory()
    columns = [4, 3, 2, 1, 0]
    predicted = dataclasses.replace(
        measured, values=measured.values[:, columns], names=[NAMES[i] for i in columns]
    )
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    found = read(tmp_path / "measured")
    np.testing.assert_array_equal(found["v/0"][1], read(tmp_path / "predicted")["v/0"][1])
    assert found["torchlimits/sup difference"][1] == 0


def test_what_only_one_side_has_is_written_for_it_and_listed(tmp_path):
    measured = trajectory(names=["loss", "r2"], runs=2)
    predicted = trajectory(names=["r2", "m"], seed=1, band=True)
    tensorboard.write(tmp_path, measured=measured, predicted=predicted)
    charts = "± band/" + "/".join(tmp_path.parts[-2:])
    tags = {
        "loss",
        "r2",
        *(f"{charts}/{n}/{e}" for n in ("loss", "r2") for e in ("value", "lower", "upper")),
    }
    found = read(tmp_path / "measured" / "1")
    assert set(found) == {*tags, "torchlimits/sup difference"}
    np.testing.assert_array_equal(found["loss"][1], measured["loss"][1].float())
    largest = (measured["r2"][1] - predicted["r2"]).abs().max()
    np.testing.assert_array_equal(found["torchlimits/sup difference"][1], [largest.float()])
    np.testing.assert_array_equal(read(tmp_path / "predicted")["m"][1], predicted["m"].float())
    assert "* measured only: loss.\n* predicted only: m.\n" in about(tmp_path / "predicted")
    for side in ("measured/0", "predicted"):
        (category,) = layout(tmp_path / side)
        assert {chart.title for chart in category.chart} == {"loss", "r2", "m"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v[0]", "v/0"),
        ("m[0,1]", "m/0/1"),
        ("m[1,10]", "m/1/10"),
        ("m[11,0]", "m/11/0"),
        ("a[0][1]", "a/0/1"),
        ("r2", "r2"),
        ("norm/a b[2]", "norm/a b/2"),
        ("[0]", "[0]"),
        ("x[", "x["),
        ("f[0] + g", "f[0] + g"),
    ],
)
def test_tag(name, expected):
    assert tensorboard.tag(name) == expected


def test_write_says_what_is_wrong(tmp_path):
    path = trajectory(rows=5)
    write = tensorboard.write
    with pytest.raises(ValueError, match="neither"):
        write(tmp_path)
    with pytest.raises(ValueError, match=r"'r2'\] measured and \['q'\] predicted"):
        write(tmp_path, measured=path, predicted=trajectory(rows=5, names=["q"]))
    with pytest.raises(ValueError, match=r"'v\[0\]' and 'v/0'"):
        write(tmp_path, measured=path, predicted=trajectory(rows=5, names=["v/0", "r2"]))
    with pytest.raises(ValueError, match=r"'v\[0\]' and 'v/0'"):
        write(tmp_path, measured=trajectory(rows=5, names=["v[0]", "v/0"]))
    clash = f"± band/{'/'.join(tmp_path.parts[-2:])}/v/0/lower"
    with pytest.raises(ValueError, match=clash):
        write(tmp_path, measured=trajectory(rows=5, names=["v[0]", clash], band=True))
    with pytest.raises(ValueError, match="hold values"):
        write(tmp_path, measured=trajectory(rows=0))
    with pytest.raises(ValueError, match="3 measured runs"):
        write(tmp_path, measured=trajectory(runs=3), predicted=trajectory(runs=2))
    with pytest.raises(ValueError, match="max_points"):
        write(tmp_path, measured=path, max_points=1)
    with pytest.raises(TypeError, match="Tensor"):
        write(tmp_path, measured=path.values)
    with pytest.raises(TypeError, match="hparams"):
        write(tmp_path, measured=path, hparams=["lr"])
    with pytest.raises(TypeError, match="logdir"):
        write(None, measured=path)
    assert not list(tmp_path.iterdir())


def test_logdir_that_is_a_file_or_read_only(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    for logdir in (file, file / "below"):
        with pytest.raises(OSError, match="expected a folder"):
            tensorboard.write(logdir, measured=trajectory(rows=5))
        with pytest.raises(OSError, match="expected a folder"):
            tensorboard.Writer(logdir)
    assert file.read_text() == "mine"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="no write permission"):
        tensorboard.write(tmp_path, measured=trajectory(rows=5))


def test_infinite_values_are_written_and_nan_is_none(tmp_path):
    path = trajectory(rows=6)
    path.values[2, 0], path.values[3, 0], path.values[4, 0] = torch.nan, torch.inf, 1e300
    tensorboard.write(tmp_path, measured=path, predicted=path)
    expected = path["v[0]"].numpy()[[0, 1, 3, 4, 5]]
    found = read(tmp_path / "measured")
    assert found["v/0"][0].tolist() == [0, 1, 3, 4, 5]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found["v/0"][1], expected.astype(np.float32))
    assert found["v/1"][0].tolist() == list(range(6))


# --- live ----------------------------------------------------------------------------------------


def feed(writer, path, size):
    for begin in range(0, len(path), size):
        writer.add(path.slice(slice(begin, begin + size)))
        writer.flush()


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_live_shows_all_rows_when_asked(tmp_path, size):
    path = trajectory()
    with tensorboard.Writer(tmp_path, max_points=None) as writer:
        feed(writer, path, size)
    steps, values, times = read(tmp_path)["m/0/0"]
    np.testing.assert_array_equal(steps, path.steps)
    np.testing.assert_array_equal(values, path["m[0,0]"].float())
    assert (np.diff(times) >= 0).all()


@pytest.mark.parametrize("total_steps", [49_999, None])
@pytest.mark.parametrize("size", [100, 4096, 50_000])
def test_live_keeps_the_cap_whatever_the_pieces(tmp_path, total_steps, size):
    path = trajectory(rows=50_000, names=["m"])
    with tensorboard.Writer(tmp_path, total_steps=total_steps) as writer:
        feed(writer, path, size)
    steps, values, _ = read(tmp_path)["m"]
    assert (steps[0], steps[-1]) == (0, 49_999)
    assert 400 < len(steps) <= 1000
    assert (np.diff(steps) > 0).all()
    np.testing.assert_array_equal(values, path["m"][steps].float())
    # the last one has no regular place
    assert np.ptp(np.diff(steps[:-1])) <= (1 if total_steps else 0)


def test_live_shows_every_row_while_there_are_few(tmp_path):
    path = trajectory(rows=999)
    with tensorboard.Writer(tmp_path) as writer:
        feed(writer, path, 100)
        assert "At most 1000 rows are shown at any moment" in about(tmp_path)
    np.testing.assert_array_equal(read(tmp_path)["r2"][0], path.steps)


@pytest.mark.parametrize("fresh", [False, True])
def test_live_keeps_the_cap_at_any_moment(tmp_path, fresh):
    """For a reader that follows the folder, or across programs that go on with the run."""
    path = trajectory(rows=500, names=["m"], runs=2)
    reader = EventAccumulator(str(tmp_path / "1"), size_guidance={"scalars": 0})
    writer, state = tensorboard.Writer(tmp_path, max_points=40), None
    for begin in range(0, 500, 23):
        if fresh and state is not None:
            writer = tensorboard.Writer(tmp_path, max_points=40)
            writer.load_state_dict(state)
        writer.add(path.slice(slice(begin, begin + 23)))
        writer.flush()
        state = writer.state_dict()
        if fresh:
            writer.finish()
        steps, values, _ = read(tmp_path / "1")["m"]
        assert len(steps) <= 40
        if not fresh:
            assert [event.step for event in reader.Reload().Scalars("m")] == list(steps)
        apart = np.diff(steps[:-1])
        assert (apart == apart[0]).all()
        assert len(steps) >= min(begin, 20)
        np.testing.assert_array_equal(values, path["m"][1][steps].float())
    writer.close()
    if not fresh:
        assert len(list((tmp_path / "1").glob("*tfevents*"))) <= 2


def test_live_says_which_runs_are_left_out(tmp_path):
    with tensorboard.Writer(tmp_path) as writer:
        feed(writer, trajectory(5, runs=7), 5)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "1", "2"]
    assert "The first 3 of 7 runs" in about(tmp_path / "0")


@pytest.mark.parametrize("max_points", [4, 10, 100, 1000])
def test_live_cap_holds_for_a_billion_steps(tmp_path, max_points):
    steps = np.unique(np.geomspace(1, 1e9, 400_000).astype(np.int64))
    path = Trajectory(
        torch.from_numpy(steps * 1.0), torch.from_numpy(steps), torch.zeros(len(steps), 1), ["m"]
    )
    with tensorboard.Writer(tmp_path, max_points=max_points) as writer:
        feed(writer, path, 50_000)
    found = read(tmp_path)["m"][0]
    assert max_points // 2 <= len(found) <= max_points
    assert found[-1] == 10**9


def test_live_is_visible_before_it_is_closed(tmp_path):
    writer = tensorboard.Writer(tmp_path)
    writer.add(trajectory(rows=5))
    writer.flush()
    assert len(read(tmp_path)["v/0"][0]) == 5
    charts = [chart.title for category in layout(tmp_path) for chart in category.chart]
    assert charts == NAMES


def test_live_runs(tmp_path):
    path = trajectory(runs=3)
    with tensorboard.Writer(tmp_path, max_points=None, max_runs=2) as writer:
        feed(writer, path, 50)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "1"]
    np.testing.assert_array_equal(read(tmp_path / "1")["r2"][1], path["r2"][1].float())


def test_live_rows_shown_twice_are_written_once(tmp_path):
    path = trajectory()
    with tensorboard.Writer(tmp_path, max_points=None) as writer:
        writer.add(path.slice(slice(0, 200)))
        writer.add(path.slice(slice(100, 300)))
        writer.add(path.slice(slice(0, 0)))
    np.testing.assert_array_equal(read(tmp_path)["r2"][0], path.steps)


def test_live_replaces_an_earlier_run_and_is_replaced_by_write(tmp_path):
    for seed in range(3):
        path = trajectory(seed=seed)
        with tensorboard.Writer(tmp_path / "measured", max_points=None) as writer:
            feed(writer, path, 100)
        np.testing.assert_array_equal(read(tmp_path / "measured")["r2"][1], path["r2"].float())
    # a live run in the log directory itself
    with tensorboard.Writer(tmp_path) as writer:
        feed(writer, path, 100)
    final = trajectory(rows=123, seed=5)
    tensorboard.write(tmp_path, measured=final)
    np.testing.assert_array_equal(read(tmp_path / "measured")["r2"][1], final["r2"].float())
    assert not events.own_files(tmp_path)


@pytest.mark.parametrize("runs", [None, 2])
def test_live_into_a_summary_writer_of_the_users(tmp_path, runs):
    path = trajectory(rows=5000, runs=runs)
    with SummaryWriter(str(tmp_path)) as mine:
        sink = Borrowed(mine)
        feed(sink, path, 500)
        sink.close()
        mine.add_scalar("loss", 1.5, 7)
    found = read(tmp_path)
    assert found["loss"][1] == [1.5]
    steps, values, _ = found["v/0" if runs is None else "v/0/run 1"]
    assert (steps[0], steps[-1]) == (0, 4999)
    assert len(steps) <= 1000
    expected = path["v[0]"] if runs is None else path["v[0]"][1]
    np.testing.assert_array_equal(values, expected[steps].float())
    assert not events.own_files(tmp_path)


def test_live_takes_what_users_have(tmp_path):
    writer = tensorboard.Writer(tmp_path)
    assert chosen(writer) == (writer, False)
    sink, owned = chosen(str(tmp_path))
    assert isinstance(sink, tensorboard.Writer)
    assert owned
    assert chosen(None) == (None, False)
    for wrong in (3, object()):
        with pytest.raises(TypeError, match="SummaryWriter"):
            chosen(wrong)


def test_live_says_what_is_wrong(tmp_path):
    writer = tensorboard.Writer(tmp_path)
    writer.add(trajectory(rows=5))
    with pytest.raises(ValueError, match="pieces of one trajectory"):
        writer.add(trajectory(rows=5, first=5, names=["m"]))
    with pytest.raises(ValueError, match="pieces of one trajectory"):
        writer.add(trajectory(rows=5, first=5, runs=2))
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add(trajectory(rows=5, first=5))
    with pytest.raises(ValueError, match="max_points"):
        tensorboard.Writer(tmp_path, max_points=2)
    with pytest.raises(ValueError, match="total_steps"):
        tensorboard.Writer(tmp_path, total_steps=0)

"""Figures: which runs and statistics go where, and the files they end in."""

import struct

import matplotlib as mpl
import numpy as np
import pytest
import torch

from torchlimits import figures
from torchlimits.figures.panels import panels_of
from torchlimits.trajectory import Trajectory

XOR = [
    *(f"v[{i}]" for i in range(4)),
    *(f"m[{i},{j}]" for i in range(4) for j in range(2)),
    *(f"R[{i},{j}]" for i in range(4) for j in range(i, 4)),
]


def trajectory(names, runs=None, *, same_start=False, band=False, rows=200, **metadata):
    generator = torch.Generator().manual_seed(0)
    shape = (rows, len(names)) if runs is None else (runs, rows, len(names))
    values = torch.randn(shape, generator=generator, dtype=torch.float64).cumsum(-2)
    if same_start:
        values[..., 0, :] = 0.5
    std = torch.ones_like(values) if band else None
    return Trajectory(
        torch.linspace(0, 2, rows), torch.arange(rows), values, names, std, metadata=metadata
    )


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_xor_has_a_panel_for_each_direction_and_part_of_r():
    path = trajectory(XOR)
    figure = figures.overlay(path, path)
    assert titles(figure) == ["$v_{i}$", "$m_{i,0}$", "$m_{i,1}$", "$R_{ii}$", "$R_{ij}$"]
    # a dotted and a solid curve for each statistic
    assert [len(axes.lines) for axes in figure.axes] == [8, 8, 8, 8, 12]


def test_a_neuron_has_one_colour():
    figure = figures.overlay(None, trajectory(XOR))
    colours = [[line.get_color() for line in axes.lines] for axes in figure.axes]
    assert colours[0] == colours[1] == colours[2] == colours[3]
    assert len(set(colours[0])) == 4


def test_parameters_of_heads_have_a_panel_each_under_their_own_names():
    """Names with dots: rows of a matrix have a colour each, and labels do not repeat the name."""
    first = [f"head.1.weight[{i},{j}]" for i in range(2) for j in range(3)]
    last = [f"head.3.weight[0,{j}]" for j in range(2)]
    biases = [f"head.1.bias[{i}]" for i in range(2)]
    figure = figures.overlay(None, trajectory([*first, *biases, *last, "head.scale"]))
    assert titles(figure) == [
        "head.1.weight[i,j]", "head.1.bias[i]", "head.3.weight[i,j]", "head.scale",
    ]  # fmt: skip
    assert [len(axes.lines) for axes in figure.axes] == [6, 2, 2, 1]
    weights, bias, *_ = panels_of([*first, *biases])
    assert weights.labels == ["[0,:]"] * 3 + ["[1,:]"] * 3
    assert len(weights.key) == 2
    assert bias.labels == ["[0]", "[1]"]
    # a neuron keeps its colour from one panel to the next
    assert [weights.key["[0,:]"], weights.key["[1,:]"]] == bias.colours
    # families of one letter stay as they are: columns apart
    assert [panel.title for panel in panels_of(["m[0,0]", "m[0,1]", "m[1,0]", "m[1,1]"])] == [
        "$m_{i,0}$", "$m_{i,1}$",
    ]  # fmt: skip


@pytest.mark.parametrize("count", [49, 600])
def test_a_panel_draws_a_part_of_a_large_family_and_says_so(count):
    path = trajectory([f"m[{i}]" for i in range(count)], rows=5)
    figure = figures.overlay(None, path)
    assert titles(figure) == [f"$m_{{i}}$, 48 of {count}"]
    assert len(figure.axes[0].lines) == 48
    first, last = figure.axes[0].lines[0], figure.axes[0].lines[-1]
    np.testing.assert_array_equal(first.get_ydata(), path["m[0]"])
    np.testing.assert_array_equal(last.get_ydata(), path[f"m[{count - 1}]"])
    all_drawn = figures.overlay(None, path.select([f"m[{i}]" for i in range(48)]))
    assert titles(all_drawn) == ["$m_{i}$"]


def test_a_figure_draws_some_of_many_families_and_says_so():
    figure = figures.overlay(None, trajectory([f"f{i}" for i in range(30)], rows=5))
    assert titles(figure) == [f"f{i}" for i in range(24)]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "24 of 30 panels"
    figure = figures.overlay(None, trajectory([f"f{i}" for i in range(24)], rows=5))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["predicted"]


def test_runs_from_different_starts_are_never_averaged():
    measured = trajectory(["m[0,0]"], runs=6)
    figure = figures.overlay(measured, None, max_points=50)
    assert len(figure.axes) == 4
    assert [axes.get_ylabel() for axes in figure.axes] == [f"run {run}" for run in range(4)]
    for run, axes in enumerate(figure.axes):
        shown = torch.tensor(axes.lines[0].get_ydata())
        assert torch.equal(shown[[0, -1]], measured["m[0,0]"][run, [0, -1]])
    assert "4 of 6 runs" in figure.legends[0].get_texts()[0].get_text()


def test_runs_from_one_start_are_averaged_with_error_bars():
    measured = trajectory(["m[0,0]"], runs=6, same_start=True)
    (axes,) = figures.overlay(measured, None, max_points=200).axes
    values = measured["m[0,0]"]
    torch.testing.assert_close(torch.tensor(axes.lines[0].get_ydata()), values.mean(0))
    (bars,) = axes.collections
    low, high = torch.tensor(np.array([line[:, 1] for line in bars.get_segments()])).T
    torch.testing.assert_close((high - low) / 2, values.std(0) / 6**0.5)


def test_each_row_has_the_prediction_of_its_run():
    both = trajectory(["m"], runs=3)
    for run, axes in enumerate(figures.overlay(both, both).axes):
        line = axes.lines[0].get_ydata()
        assert torch.equal(torch.tensor(line), both["m"][run])


def test_band_is_shaded():
    predicted = trajectory(["m", "r2"], band=True)
    figure = figures.overlay(None, predicted)
    assert [len(axes.collections) for axes in figure.axes] == [1, 1]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["predicted", "± 1.96 predicted sd"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m", "r2"], ["$m$", "r2"]),
        (["norm/first", "norm/second"], ["norm"]),
        ([f"w[{i}]" for i in range(30)], ["$w_{i}$"]),
        ([f"C[{i},{j}]" for i in range(3) for j in range(8)], ["$C_{i,j}$"]),
        (["R[0,0]", "R[0,1]", "R[1,1]"], ["$R_{ii}$", "$R_{0,1}$"]),
        (["cost $", "a[x]", "b[", "layer[0][1]"], ["cost \\$", "a[x]", "b[", "layer[0][1]"]),
        ([f"s{i}" for i in range(7)], [f"s{i}" for i in range(7)]),
    ],
)
def test_any_names_can_be_drawn(names, expected):
    path = trajectory(names, runs=2)
    figure = figures.overlay(path, path)
    assert [title for title in titles(figure) if title][: len(expected)] == expected
    assert figures.png(figure, dpi=30)[:4] == b"\x89PNG"


def test_measured_and_predicted_at_other_times_in_another_order():
    measured, predicted = trajectory(["m", "r2"], rows=11), trajectory(["r2", "m"], rows=7)
    axes = figures.overlay(measured, predicted).axes[0]
    assert torch.equal(torch.tensor(axes.lines[0].get_ydata()), predicted["m"])
    assert torch.equal(torch.tensor(axes.lines[1].get_ydata()), measured["m"])


def test_few_and_non_finite_points():
    path = trajectory(["m"], rows=1)
    figures.png(figures.overlay(path, path))
    path = trajectory(["m"], rows=5)
    path.values[2:] = torch.nan
    figures.png(figures.overlay(path, path))


def test_values_that_a_loop_logged_now_and_then_are_all_drawn():
    path = trajectory(["loss", "none"], rows=101)
    given = torch.arange(101) % 10 == 5
    path.values[~given, 0] = torch.nan
    path.values[:, 1] = torch.nan
    dots, nothing = (axes.lines[0] for axes in figures.overlay(path).axes[:2])
    assert torch.equal(torch.tensor(dots.get_xdata()), path.times[given])
    assert torch.equal(torch.tensor(dots.get_ydata()), path["loss"][given])
    assert len(nothing.get_xdata()) == 0


def test_title_comes_from_the_metadata():
    path = trajectory(["m"], parameters={"dim": 10, "snr": 2.0, "unknown": 1})
    assert "dim 10, snr 2.0" in [text.get_text() for text in figures.overlay(path).texts]
    path = trajectory(["m"], title="Figure 1")
    assert "Figure 1" in [text.get_text() for text in figures.overlay(path).texts]


def test_png_size_and_no_global_state():
    before = dict(mpl.rcParams)
    figure = figures.overlay(trajectory(["m"]))
    data = figures.png(figure, dpi=50)
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == tuple(int(50 * inches) for inches in figure.get_size_inches())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save(tmp_path, suffix):
    path = tmp_path / "new folder" / f"overlay.{suffix}"
    figures.save(figures.overlay(trajectory(["m"])), path)
    assert path.stat().st_size > 1000


def test_errors():
    path = trajectory(["m"])
    with pytest.raises(ValueError, match="neither"):
        figures.overlay()
    with pytest.raises(ValueError, match=r"\['r2'\] measured and \['m'\] predicted"):
        figures.overlay(trajectory(["r2"]), path)
    with pytest.raises(ValueError, match="3 measured runs"):
        figures.overlay(trajectory(["m"], runs=3), trajectory(["m"], runs=2))
    with pytest.raises(ValueError, match="hold values"):
        figures.overlay(trajectory(["m"], rows=0))


def test_the_density_of_a_law_is_drawn_where_it_has_two_humps():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(500, 20, 2, generator=generator, dtype=torch.float64)
    samples[:250, 10:, 1] += 8.0
    lower, upper = samples.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    law = Trajectory(
        torch.linspace(0, 2, 20), torch.arange(20), samples.mean(0), ["a", "b"], lower=lower,
        upper=upper, samples=samples, metadata={"law": {"level": 0.95, "exact": True}},
    )  # fmt: skip
    figure = figures.overlay(None, law)
    kinds = [[type(one).__name__ for one in axes.collections] for axes in figure.axes]
    assert kinds == [["FillBetweenPolyCollection"], ["QuadMesh"]]
    (mesh,) = figure.axes[1].collections
    edges, shade = mesh.get_coordinates()[:, 0, 1], mesh.get_array()
    middles = (edges[1:] + edges[:-1]) / 2
    # at the end the runs are at 0 and at 8, and none in between
    beside = [float(shade[np.abs(middles - at).argmin(), -1]) for at in (0.0, 4.0, 8.0)]
    assert beside[1] == 0
    assert min(beside[0], beside[2]) > 0.3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["predicted", "95 % of the predicted law", "density, several humps"]
    low, high = (line.get_ydata() for line in figure.axes[1].lines[1:])
    np.testing.assert_array_equal(low, law.lower[:, 1])
    np.testing.assert_array_equal(high, law.upper[:, 1])


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
def test_the_key_is_inside_the_figure_and_above_the_panels(names):
    """With all that it can have in it: dots, line, band and density."""
    samples = torch.randn(300, 5, len(names), generator=torch.Generator().manual_seed(0))
    samples[:100] += 9.0
    law = Trajectory(
        torch.arange(5.0), torch.arange(5), samples.mean(0), names, lower=samples[0],
        upper=samples[1], samples=samples, metadata={"law": {"level": 0.95, "exact": False}},
    )  # fmt: skip
    measured = Trajectory(law.times, law.steps, samples[:8], names)
    figure = figures.overlay(measured, law)
    (key,) = figure.legends
    assert len(key.get_texts()) == 4
    figure.canvas.draw()
    extent = key.get_window_extent()
    assert figure.bbox.x0 <= extent.x0 < extent.x1 <= figure.bbox.x1
    titles = [axes.get_tightbbox().y1 for axes in figure.axes]
    assert max(titles) <= extent.y0 + 2
    # one column more does not fit, or there is none
    more = figure.legend(handles=key.legend_handles, ncols=4, fontsize=9, frameon=False)
    assert len(names) == 4 or more.get_window_extent().width > figure.bbox.width

import dataclasses
import json

import numpy as np
import pytest
import torch

import torchlimits as tl


def path(T=5, runs=(), k=2, **options):
    values = torch.randn(*runs, T, k, dtype=torch.float64)
    names = [f"u[{i}]" for i in range(k)]
    return tl.Trajectory(torch.arange(T) * 0.1, torch.arange(T), values, names, **options)


@pytest.mark.parametrize("runs", [(), (3,), (2, 3)])
def test_what_is_saved_is_loaded(tmp_path, runs):
    before = path(runs=runs, metadata={"equation": "du/dt = 0", "parameters": {"lr": 0.1}})
    before.save(tmp_path / "deep" / "u.npz")
    after = tl.Trajectory.load(tmp_path / "deep" / "u.npz")
    assert torch.equal(before.values, after.values)
    assert torch.equal(before.times, after.times)
    assert torch.equal(before.steps, after.steps)
    assert before.names == after.names
    assert before.metadata == after.metadata
    assert after.std is None


def test_std_is_saved_too(tmp_path):
    before = path(std=torch.rand(5, 2, dtype=torch.float64))
    before.save(tmp_path / "u.npz")
    assert torch.equal(tl.Trajectory.load(tmp_path / "u.npz").std, before.std)


def test_numpy_alone_reads_the_file(tmp_path):
    before = path(metadata={"a": 1})
    before.save(tmp_path / "u.npz")
    with np.load(tmp_path / "u.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["values"], before.values.numpy())
        assert file["names"].tolist() == before.names
        assert json.loads(str(file["metadata"])) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "u.npz").write_bytes(content)
    with pytest.raises(ValueError, match="expected a trajectory file"):
        tl.Trajectory.load(tmp_path / "u.npz")


def test_a_numpy_file_of_somebody_else_is_refused(tmp_path):
    np.savez(tmp_path / "u.npz", a=np.arange(3))
    with pytest.raises(ValueError, match="expected a file of format"):
        tl.Trajectory.load(tmp_path / "u.npz")
    np.savez(tmp_path / "p.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"expected a (trajectory file|file of format)"):
        tl.Trajectory.load(tmp_path / "p.npz")


def test_thin_keeps_first_and_last():
    before = path(T=1001)
    thin = before.thin(10)
    assert len(thin) == 10
    assert thin.steps[0] == 0
    assert thin.steps[-1] == 1000
    assert torch.equal(thin.values, before.values[thin.steps])
    assert before.thin(5000) is before


def test_slice_and_names():
    before = path(runs=(3,))
    assert before.slice(slice(1, 3)).values.shape == (3, 2, 2)
    assert torch.equal(before["u[1]"], before.values[..., 1])
    assert torch.equal(before.initial, before.values[:, 0])
    assert before.runs == 3
    with pytest.raises(ValueError, match=r"expected one of the statistics .*'u\[0\]'"):
        before["w"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": torch.tensor([0.0, 0.2, 0.1])}, r"times that do not fall, got times\[2\] = 0.1"),
        ({"steps": torch.tensor([0, 2, 1])}, r"steps that do not fall, got steps\[2\] = 1 after 2"),
        ({"times": torch.tensor([0.0, 0.1])}, "expected values of shape"),
        ({"names": ["a", "a"]}, "more than once"),
        ({"names": ["a"]}, "expected values of shape"),
        ({"std": torch.ones(2, 2)}, "expected std of the shape"),
    ],
)
def test_bad_input(change, message):
    good = {
        "times": torch.tensor([0.0, 0.1, 0.2]),
        "steps": torch.arange(3),
        "values": torch.zeros(3, 2),
        "names": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        tl.Trajectory(**{**good, **change})


def two_runs():
    values = torch.randn(2, 3, 2, dtype=torch.float64)
    return tl.Trajectory(
        torch.tensor([0.0, 0.5, 1.0]),
        torch.tensor([0, 5, 10]),
        values,
        ["m[0]", "r2"],
        std=values.abs(),
        metadata={"dim": 10},
    )


def test_tables_hold_every_value():
    path = two_runs()
    wide, long = path.to_pandas(), path.to_pandas(wide=False)
    assert wide.columns.tolist() == ["step", "time", "run", "m[0]", "r2", "m[0]/std", "r2/std"]
    second = wide[wide.run == 1]
    assert second["r2"].tolist() == path["r2"][1].tolist()
    assert second["m[0]/std"].tolist() == path.std[1, :, 0].tolist()
    assert len(long) == 12
    chosen = long[(long.statistic == "m[0]") & (long.run == 0)]
    assert chosen["value"].tolist() == path["m[0]"][0].tolist()
    assert chosen["step"].tolist() == [0, 5, 10]


def test_labelled_arrays():
    path = two_runs()
    data = path.to_xarray()
    assert data.value.dims == ("run", "time", "statistic")
    chosen = data["std"].sel(statistic="r2", time=0.5).values.tolist()
    assert chosen == path.std[:, 1, 1].tolist()
    assert data.attrs == {"dim": 10}


def test_plots_draw_lines_and_bands_into_axes():
    from matplotlib.figure import Figure

    path, axes = two_runs(), Figure().add_subplot()
    assert path.plot("r2", axes, color="black") is axes
    assert [line.get_ydata().tolist() for line in axes.lines] == path["r2"].tolist()
    assert len(axes.collections) == 2
    with pytest.raises(ValueError, match="expected one of the statistics"):
        path.plot("r3")


def test_rows_are_chosen_whatever_the_default_device(monkeypatch):
    before = path(T=50)
    chosen = []
    monkeypatch.setattr(tl.Trajectory, "slice", lambda self, rows: chosen.append(rows))
    before.thin(7)
    with torch.device("meta"):
        before.thin(7)
    assert torch.equal(*chosen)


def test_statistics_are_selected_by_name_in_the_order_asked_for():
    path = two_runs()
    chosen = path.select(["r2", "m[0]"])
    assert chosen.names == ["r2", "m[0]"]
    assert torch.equal(chosen.values, path.values.flip(-1))
    assert torch.equal(chosen.std, path.std.flip(-1))
    assert chosen.metadata == path.metadata
    with pytest.raises(ValueError, match=r"'m\[0\]', 'r2'.*'m\[1\]'"):
        path.select(["m[1]"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.array("torchlimits.Trajectory/9")}, "Trajectory/2', got torchlimits.*/9"),
        ({"values": None}, "it has no values"),
        ({"metadata": np.array("[]")}, "metadata are not a dict"),
        ({"names": np.array("a")}, "names or times are not a list"),
        ({"names": np.array(["a", "b"])}, "it has 2 names for values"),
        ({"values": np.zeros((5, 1), np.float32)}, "values is float32, expected <f8"),
        ({"stb": np.zeros(3)}, "it has other members"),
        ({"format": np.array("torchlimits.Trajectory/2")}, "another program wrote it"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, message):
    path(k=1).save(tmp_path / "u.npz")
    with np.load(tmp_path / "u.npz") as file:
        # of before, as numpy.savez writes it: without a checksum
        arrays = {**file, "format": np.array("torchlimits.Trajectory/1"), **change}
    np.savez(tmp_path / "u.npz", **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=f"cannot be read: .*{message}"):
        tl.Trajectory.load(tmp_path / "u.npz")


# --- families ------------------------------------------------------------------------------------

FAMILIES = ["m[0,0]", "m[0,1]", "R[0,0]", "loss/train", "loss/test", "layer[0][1]", "loss[x", "r2"]


def of_families(runs=(2,), names=FAMILIES):
    values = torch.randn(*runs, 4, len(names), dtype=torch.float64)
    return tl.Trajectory(torch.arange(4) * 0.1, torch.arange(4) * 5, values, names)


@pytest.mark.parametrize(
    ("family", "members"),
    [
        ("m", ["m[0,0]", "m[0,1]"]),
        ("R", ["R[0,0]"]),
        ("loss", ["loss/train", "loss/test", "loss[x"]),
        ("layer", ["layer[0][1]"]),
        ("layer[0]", ["layer[0][1]"]),
    ],
)
def test_a_family_is_what_goes_on_with_a_bracket_or_a_slash(family, members):
    path = of_families()
    expected = torch.stack([path[name] for name in members], dim=-1)
    assert torch.equal(path[family], expected)
    assert path.select([family]).names == path.select(family).names == members
    assert path.select(["r2", family]).names == ["r2", *members]
    assert family in path


def test_a_statistic_goes_before_the_family_of_its_name():
    path = of_families(names=["loss", "loss/train"])
    assert path["loss"].shape == (2, 4)
    assert torch.equal(path["loss"], path.values[..., 0])
    assert path.select("loss").names == ["loss"]


def test_unknown_names_are_answered_with_those_there_are():
    path = of_families()
    with pytest.raises(ValueError, match=r"'r2'\], or the name of a family, got 'M'"):
        path["M"]
    with pytest.raises(ValueError, match=r"did you mean 'loss/train'\?"):
        path["loss/trian"]
    many = of_families(names=[f"{f}[{i}]" for f in "abc" for i in range(40)])
    with pytest.raises(ValueError, match=r"\['a\[0\]' ... 'a\[39\]' \(40\), 'b\[0\]'") as caught:
        many["d"]
    assert len(str(caught.value)) < 250
    with pytest.raises(ValueError, match="got 3"):
        path[3]
    with pytest.raises(ValueError, match=r"got \['m\[0,0\]'\] more than once"):
        path.select(["m", "m[0,0]"])


def legend(axes):
    return [label.get_text() for label in axes.get_legend().get_texts()]


def test_a_family_is_drawn_with_its_names_and_a_colour_an_entry():
    path = of_families()
    axes = path.plot("m")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("limit time t", "m")
    assert legend(axes) == ["m[0,0]", "m[0,1]"]
    assert [line.get_color() for line in axes.lines] == ["C0", "C0", "C1", "C1"]
    # another trajectory has the same colours, and no second line in the legend
    path.plot("m", axes, linestyle="--")
    assert [line.get_color() for line in axes.lines[4:]] == ["C0", "C0", "C1", "C1"]
    assert legend(axes) == ["m[0,0]", "m[0,1]"]
    alone = path.plot("r2", x="step")
    assert (alone.get_xlabel(), legend(alone)) == ("step", ["r2, run 0", "r2, run 1"])
    assert alone.lines[0].get_xdata().tolist() == [0, 5, 10, 15]


def test_labels_tell_what_is_drawn_above_each_other():
    path = of_families(runs=())
    axes = path.plot("r2")
    assert axes.get_legend() is None
    path.plot("R", axes)
    assert axes.get_ylabel() == ""
    assert legend(axes) == ["r2", "R[0,0]"]
    axes = path.plot("r2", label="measured", color="black")
    path.plot("r2", axes, label="predicted", color="red")
    assert legend(axes) == ["measured", "predicted"]
    assert axes.get_ylabel() == "r2"


def test_everything_is_drawn_in_a_panel_a_family():
    path = of_families()
    panels = path.plot()
    titles = [axes.get_ylabel() for axes in panels]
    assert titles == ["m", "R", "loss", "layer[0][1]", "loss[x", "r2"]
    assert len({axes.figure for axes in panels}) == 1
    with pytest.raises(ValueError, match="give a name"):
        path.plot(axes=panels[0])
    with pytest.raises(ValueError, match="'time' or 'step'"):
        path.plot("m", x="epoch")


def test_lines_go_on_where_the_loop_gave_no_number():
    values = torch.tensor([[1.0], [torch.nan], [3.0], [torch.nan]])
    path = tl.Trajectory(torch.arange(4.0), torch.arange(4), values, ["loss"])
    (line,) = path.plot("loss").lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([0, 2], [1, 3])
    (line,) = path.slice(slice(0, 2)).plot("loss").lines
    assert line.get_marker() == "o"


def test_many_entries_have_a_legend_that_can_be_read():
    axes = of_families(runs=(), names=[f"w[{i}]" for i in range(100)]).plot("w")
    assert len(set(line.get_color() for line in axes.lines)) == 100
    assert legend(axes)[0] == "w[0]"
    assert legend(axes)[-1] == "w[99]"
    assert len(legend(axes)) == 8


def test_logged_columns_are_selected_and_drawn_as_statistics_are():
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tl.track(model, optimizer, {"norm": lambda p: p["weight"].norm()}) as tracker:
        for step in range(4):
            tracker.log({"loss/train": 1.0 / (step + 1), "a[b]": 0.0})
            optimizer.step()
    path = tracker.trajectory()
    assert path["loss"].shape == (5, 1)
    assert path.plot("loss/train").lines[0].get_ydata().tolist() == [1, 0.5, 1 / 3, 0.25]
    assert path["a"][:4, 0].tolist() == [0.0] * 4


def test_a_notebook_shows_where_each_statistic_goes():
    path = of_families(names=["<m>", "r2"])
    path.values[0, 1, 1] = torch.nan
    text = path._repr_html_()
    assert "&lt;m&gt;" in text
    first, last = (sorted(path["<m>"][:, t].tolist()) for t in (0, -1))
    assert f">{first[0]:.4g} ... {first[1]:.4g}</td>" in text
    assert f">{last[0]:.4g} ... {last[1]:.4g}</td>" in text
    assert f">{path['<m>'].min():.4g}</td>" in text
    assert ">nan" not in text
    assert "98 other" in of_families(names=[f"a{i}" for i in range(128)])._repr_html_()
    assert "<table>" in path.slice(slice(0, 0))._repr_html_()


BESIDE = ("std", "lower", "upper", "samples")


def law(runs=(), samples=7):
    """A prediction with all that one may have, no two numbers of it the same."""
    shape = (*runs, 5, 2)
    some = {name: torch.rand(shape, dtype=torch.float64) for name in ("std", "lower", "upper")}
    return path(runs=runs, **some, samples=torch.rand(samples, *shape, dtype=torch.float64))


def everything(trajectory):
    return {name: getattr(trajectory, name) for name in ("values", *BESIDE)}


@pytest.mark.parametrize("runs", [(), (3,), (2, 3)])
def test_a_law_is_saved_with_its_samples_on_request(tmp_path, runs):
    before = law(runs)
    before.save(tmp_path / "u.npz")
    after = tl.Trajectory.load(tmp_path / "u.npz")
    assert after.samples is None
    for name in ("values", "std", "lower", "upper"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    before.save(tmp_path / "u.npz", samples=True)
    assert torch.equal(before.samples, tl.Trajectory.load(tmp_path / "u.npz").samples)


def test_parts_of_a_law():
    whole = law((2, 3))
    for part, of in (
        (whole.select(["u[1]"]), lambda x: x[..., [1]]),
        (whole.slice(slice(1, 3)), lambda x: x[..., 1:3, :]),
        (whole.thin(2), lambda x: x[..., [0, 4], :]),
    ):
        for name, entries in everything(whole).items():
            assert torch.equal(getattr(part, name), of(entries))
    one = whole.run(4)
    for name, entries in everything(whole).items():
        own = entries[:, 1, 1] if name == "samples" else entries[1, 1]
        assert torch.equal(getattr(one, name), own)
    with pytest.raises(ValueError, match="0 to 5"):
        whole.run(6)


def test_a_transformed_law():
    whole, shift, scale = law((3,)), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])
    moved = whole.transformed(shift, scale)
    for name, entries in everything(whole).items():
        expected = entries * scale if name == "std" else (entries - shift) * scale
        torch.testing.assert_close(getattr(moved, name), expected)


def test_bounds_count_before_deviations():
    whole = law()
    assert torch.equal(whole.bounds[0], whole.lower)
    assert torch.equal(whole.bounds[1], whole.upper)
    normal = path(std=torch.ones(5, 2))
    torch.testing.assert_close(normal.bounds[1] - normal.values, torch.full((5, 2), 1.96).double())
    assert path().bounds is None


def test_tables_of_a_law():
    whole = law()
    wide = whole.to_pandas()
    assert wide["u[1]/lower"].tolist() == whole.lower[:, 1].tolist()
    assert wide["u[0]/upper"].tolist() == whole.upper[:, 0].tolist()
    long = whole.to_pandas(wide=False)
    assert long["upper"].tolist() == whole.upper.T.flatten().tolist()
    assert np.array_equal(whole.to_xarray()["lower"].values, whole.lower.numpy())


@pytest.mark.parametrize(
    "given",
    [
        {"lower": torch.zeros(5, 2)},
        {"lower": torch.zeros(5, 2), "upper": torch.zeros(4, 2)},
        {"samples": torch.zeros(5, 2)},
        {"samples": torch.zeros(7, 4, 2)},
    ],
)
def test_what_does_not_fit_the_values_is_refused(given):
    with pytest.raises(ValueError, match="expected"):
        path(**given)


def test_further_statistics_have_no_band():
    """Of all that is known beside the values: fields that are added later, too."""
    u = torch.randn(3, 4, 2, dtype=torch.float64)
    known = {name: u for name in ("std", "lower", "upper", "error")}
    times, steps = torch.arange(4.0), torch.arange(4)
    path = tl.Trajectory(times, steps, u, ["a", "b"], samples=u.expand(5, 3, 4, 2), **known)
    assert {*known, "samples"} == {
        one.name for one in dataclasses.fields(path) if one.default is None
    }
    more = path.extended(["risk"], u[..., :1] + 1)
    assert list(more.names) == ["risk", "a", "b"]
    assert torch.equal(more.values, torch.cat([u[..., :1] + 1, u], -1))
    for name in (*known, "samples"):
        beside = getattr(more, name)
        assert bool(beside[..., 0].isnan().all()), name
        assert torch.equal(beside[..., 1:], getattr(path, name)), name
    with pytest.raises(ValueError, match=r"shape \(3, 4, 1\)"):
        path.extended(["risk"], u)
    with pytest.raises(ValueError, match="more than once"):
        path.extended(["a"], u[..., :1])

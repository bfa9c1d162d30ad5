"""What costs more as things grow costs no more than it must: work is counted, not timed."""

import contextlib
import importlib
import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import torchlimits as tl
from torchlimits import _curves
from torchlimits.dynamics.reduced_chain import Frame
from torchlimits.dynamics.start import begun

SCRIPTS = Path(__file__).parent.parent / "scripts"
PACKAGE = str(Path(tl.__file__).parent)


def instructions(work, inside_of=PACKAGE):
    """How many instructions of Python the package, or another one, executes."""
    count = 0

    def inside(frame, event, argument):
        nonlocal count
        count += event == "opcode"
        return inside

    def called(frame, event, argument):
        if not frame.f_code.co_filename.startswith(inside_of):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return inside

    before = sys.gettrace()
    sys.settrace(called)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def grows_linearly(work_of, inside_of=PACKAGE):
    """Whether twice as much more costs twice as much more."""
    work_of(2)()
    few, some, many = (instructions(work_of(size), inside_of) for size in (10, 30, 70))
    return (many - some) < 1.05 * 2 * (some - few)


def tracking(statistics, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def work():
        # a small ring: what it takes is another matter
        with tl.track(model, optimizer, statistics, max_bytes=2**14):
            optimizer.step()

    return work


def of_functions(count):
    model = nn.Linear(3, 1)
    return tracking({f"m{i}": lambda p: p["weight"].sum() for i in range(count)}, model)


def of_parameters(count):
    model = nn.ParameterList(torch.ones(2) for _ in range(count))
    return tracking(tl.statistics.norms(model), model)


@pytest.mark.parametrize("work_of", [of_functions, of_parameters])
def test_beginning_to_track_is_linear_in_the_statistics(work_of):
    assert grows_linearly(work_of)


def test_what_is_quadratic_is_seen(monkeypatch):
    """A control: each statistic looked up among all of them."""
    ring = importlib.import_module("torchlimits.record.ring")
    columns_of = ring._columns_of

    def slow(trial):
        names = trial.statistics.entry_names(trial.shapes)
        for name in names:
            trial.statistics.entry_names({n: s for n, s in trial.shapes.items() if n == name})
            trial.statistics.entry_names(trial.shapes)
        return columns_of(trial)

    monkeypatch.setattr(ring, "_columns_of", slow)
    assert not grows_linearly(of_functions)


def test_a_statistic_has_the_columns_of_its_entries():
    """Those of a gradient that is not there are NaN, and no others."""
    model = nn.Linear(3, 1, bias=False)
    statistics = {
        "a": lambda p: p["weight"][0],
        "g": lambda p: p["weight.grad"][0, :2],
        "b": lambda p: p["weight"].norm(),
        "both": lambda p: p["weight.grad"] * p["weight"],
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tl.track(model, optimizer, statistics) as tracker:
        pass
    undefined = tracker.trajectory().values[0].isnan().tolist()
    assert undefined == [False] * 3 + [True] * 2 + [False] + [True] * 3


class Name(str):
    """A name that counts how often it is held against another."""

    __slots__ = ()
    held = 0

    def __eq__(self, other):
        Name.held += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def of_names(count):
    """A trajectory and another one of the same statistics, with names of their own."""
    values = torch.zeros(3, count)
    times, steps = torch.arange(3.0), torch.arange(3)
    return [
        tl.Trajectory(times, steps, values, [Name(f"m[{i}]") for i in range(count)], std=values)
        for _ in range(2)
    ]


def family(path, other):
    return path["m"]


def selected(path, other):
    return path.select(list(other.names)[::-1])


def compared(path, other):
    return str(tl.compare(path, other))


def drawn(path, other):
    return tl.figures.overlay(path, other)


def written(path, other):
    with tempfile.TemporaryDirectory() as folder:
        tl.tensorboard.write(folder, measured=path, predicted=other)


def started(path, other):
    return begun(path, None, list(other.names))


def held(work, count):
    """How often names are held against others."""
    paths = of_names(count)
    Name.held = 0
    work(*paths)
    return Name.held


@pytest.mark.parametrize("work", [family, selected, compared, drawn, written, started])
def test_each_name_is_looked_up_and_not_searched_for(work):
    few, some, many = (held(work, count) for count in (100, 300, 700))
    assert many - some <= 1.1 * 2 * (some - few)


def test_a_search_for_each_name_is_seen():
    """A control: what is asked for among a list."""

    def slow(path, other):
        return [name for name in path.names if name in list(other.names)]

    few, some, many = (held(slow, count) for count in (100, 300, 700))
    assert many - some > 4 * (some - few)


def artists(count):
    figure = tl.figures.overlay(*of_names(count))
    return len(figure.findobj())


def test_pictures_have_no_more_lines_for_more_statistics(monkeypatch):
    assert artists(60) == artists(300)
    monkeypatch.setattr("torchlimits.figures.panels.MOST_CURVES", 10**6)
    assert artists(300) > 3 * artists(60)  # a control


def plotting(count):
    path, _ = of_names(count)
    return lambda: path.plot("m")


def test_plots_fit_their_view_once(monkeypatch):
    """Matplotlib looks at all lines there are to fit it."""
    inside = str(Path(matplotlib.__file__).parent)
    assert grows_linearly(plotting, inside)
    monkeypatch.setattr(_curves, "_fitted_once", contextlib.nullcontext)
    assert not grows_linearly(plotting, inside)  # a control


class Arrays(TorchDispatchMode):
    """How many arrays of so many numbers are made while it is open."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.made, self._known = numbers, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        self.made += sum(
            one.untyped_storage().data_ptr() not in before for one in _tensors(made)
            if one.numel() >= self.numbers
        )  # fmt: skip
        return made


def _tensors(tree):
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, torch.Tensor)]


@pytest.mark.parametrize("classes", [True, False])
def test_covariances_of_data_make_few_arrays_of_the_size_of_the_data(classes, monkeypatch):
    """Memory that is new to the process is what large ones take their time for."""
    x = torch.randn(2000, 10, generator=torch.Generator().manual_seed(0))
    y = x[:, 0].sign().long() if classes else x[:, 0]

    def made():
        with Arrays(3 * x.numel() // 4) as arrays:
            str(tl.Covariance.of_data(x, y))
        return arrays.made

    rows = importlib.import_module("torchlimits.problems.data.rows")
    monkeypatch.setattr(rows, "_BLOCK", 1000)
    # in float64, without their means, in the eigenbasis, and that in float32
    assert made() <= 4
    monkeypatch.setattr(rows, "_BLOCK", 10**6)
    assert made() > 10  # a control


@pytest.mark.parametrize("predictions", [None, 400])
def test_comparisons_of_runs_make_few_arrays_of_their_size(predictions, monkeypatch):
    g = torch.Generator().manual_seed(0)
    values = torch.rand(400, 20, 2, generator=g, dtype=torch.float64)
    values[7, 3:] = torch.nan
    own = values[0] if predictions is None else values.roll(1, 0).nan_to_num(0.5)
    times, steps, names = torch.arange(20.0), torch.arange(20), ["a", "b"]
    measured = tl.Trajectory(times, steps, values, names)
    predicted = tl.Trajectory(times, steps, own, names, std=0.2 * torch.ones_like(own))

    def made():
        with Arrays(3 * values.numel() // 4) as arrays:
            found = tl.compare(measured, predicted)
        return arrays.made, found

    whole, expected = made()
    largest = importlib.import_module("torchlimits.comparison.largest")
    monkeypatch.setattr(largest, "_BLOCK", 1000)
    few, found = made()
    # the differences; where each run has a band, its ends and how they are made
    assert few <= (1 if predictions is None else 14)
    assert whole >= few + 5  # a control
    for name in ("inside", "sup_in_std", "sup_difference"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=0, atol=0, equal_nan=True
        )
    assert expected.worst_runs is not None
    for name in ("run", "measured", "predicted", "difference", "time"):
        torch.testing.assert_close(
            getattr(found.worst_runs, name), getattr(expected.worst_runs, name), rtol=0, atol=0,
            equal_nan=True,
        )  # fmt: skip


class Largest(TorchDispatchMode):
    """The most bytes behind a tensor that is made while it is open."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in pytree.tree_leaves(made):
            if isinstance(one, torch.Tensor):
                with contextlib.suppress(RuntimeError, NotImplementedError):
                    self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return made


def network(dim, **options):
    return tl.NetworkProblem(
        dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, means=torch.eye(2, dim), labels=torch.tensor([1.0, -1.0]),
        snr=4.0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_right_hand_sides_make_no_array_of_all_nodes(noise, monkeypatch):
    """Those that stay, nodes and targets, are there from the first on."""
    problem = network(100, label_noise=noise)
    u, moments = (
        problem.starts(1)[0],
        importlib.import_module("torchlimits.problems.network.moments"),
    )
    dynamics = problem.dynamics(step_size=0.1, nodes=1024)
    whole, corrector = dynamics.drift(u), dynamics.corrector(u)

    def made():
        with Arrays(1024) as arrays:
            found = dynamics.drift(u), dynamics.corrector(u)
        return arrays.made, found

    assert made()[0] > 10  # a control
    monkeypatch.setattr(moments, "NODES", 100)  # not a part of 2,048
    few, found = made()
    assert few == 0
    torch.testing.assert_close(found, (whole, corrector), rtol=1e-12, atol=1e-14)


def test_theory_makes_no_vectors_of_n():
    """A head runs behind a first layer of N inputs, none of which is there."""
    found = {}
    for dim in (10**3, 10**6):
        problem = network(dim)
        dynamics, u = problem.dynamics(step_size=0.1, nodes=64), problem.starts(1)[0]
        chain = problem.reduced_chain(step_size=0.1)
        with Largest() as largest:
            dynamics.drift(u)
            chain.run(u, 4, runs=2, generator=torch.Generator().manual_seed(0))
        found[dim] = largest.bytes
    assert found[10**3] == found[10**6] < 10**6


@pytest.mark.parametrize("rows", [2, 16, 64])
def test_a_frame_is_turned_the_more_rarely_the_more_rows_it_has(rows, monkeypatch):
    """Turning takes as long as a step for each row."""
    turned, steps = 0, 4 * rows + 12
    compress = Frame._compress

    def counted(frame):
        nonlocal turned
        turned += 1
        compress(frame)

    monkeypatch.setattr(Frame, "_compress", counted)
    frame = Frame(10**6, torch.zeros(rows, 1, 1), torch.zeros(rows, rows, 1), samples=1)
    taken = 0
    for batch in frame.vectors(None):
        for vectors in batch:
            frame.take_up(vectors)
        taken += len(batch)
        if taken > steps:
            break
    assert turned * rows <= 2 * taken + rows


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("growth")


def test_slopes_are_those_of_the_last_sizes(growth):
    sizes = [10, 100, 1000, 10_000, 100_000, 1_000_000]
    slope = growth.fitted(sizes, [5.0, 5.0, *(1e-4 * n**1.5 for n in sizes[2:])], 1.5)
    assert slope.value == pytest.approx(1.5)
    assert slope.error == pytest.approx(0.0, abs=1e-9)
    assert slope.holds
    assert not growth.Slope(1.11, 0.5, 1.0).holds  # errors are no excuse
    # the error of a slope: residuals 0.1, -0.1, -0.1, 0.1 at log sizes -3/2 ... 3/2
    off = [math.exp(0.1 * sign) for sign in (1, -1, -1, 1)]
    slope = growth.fitted([1, 10, 100, 1000], off, 0)
    assert slope.error == pytest.approx(0.1 * 2**0.5 / 5**0.5 / math.log(10))


def test_memory_and_time_of_work(growth):
    """Memory that is taken is seen, to the allocator's megabyte."""
    work = growth.Growth(
        "bytes", "size", [2**24, 2**25, 2**26], lambda size: lambda: torch.ones(size).sum(),
        1, 1, "4 bytes each",
    )  # fmt: skip
    found = growth.measured(work, 0.0, rounds=1)
    assert [round(b / 2**26) for b in found["bytes"]] == [1, 2, 4]
    assert found["memory"]["slope"] == pytest.approx(1, abs=0.05)
    assert min(found["seconds"]) > 0
    found |= {"date": "2026-01-02", "commit": "abc"}
    other = replace(work, operation="others")
    first, second = growth.table([other, work], {"bytes over size": found}).splitlines()[2:]
    assert first.startswith("| bytes | size | 16,777,216 to 67,108,864 |")
    assert first.endswith(" s, 256 MiB | 4 bytes each | 2026-01-02, abc |")
    assert second == "| others | size |  |  | 1 |  | 1 |  | 4 bytes each | never measured |"


def test_work_that_fails_says_why(growth):
    work = growth.Growth("none", "size", [1, 2], lambda size: lambda: 1 / (size - 2), 1, 1, "")
    with pytest.raises(RuntimeError, match=r"none over size at 2: .*[\s\S]*ZeroDivisionError"):
        growth.measured(work, 0.0, rounds=1)
    with pytest.raises(ValueError, match="increasing sizes"):
        growth.Growth("none", "size", [2, 1], lambda size: lambda: None, 1, 1, "")


@pytest.fixture
def smoke(growth, monkeypatch, tmp_path):
    script = importlib.import_module("reach_growth")

    def run(*arguments):
        out, png = tmp_path / "found.json", tmp_path / "growth.png"
        given = ["--smoke", "--table", "--out", str(out), "--picture", str(png), *arguments]
        monkeypatch.setattr(sys, "argv", ["reach_growth.py", *given])
        script.main()
        assert png.read_bytes().startswith(b"\x89PNG")
        return json.loads(out.read_text())["growths"]

    return run


def test_one_piece_and_then_no_more(smoke, capsys):
    found = smoke("--only", "tl.compare over steps")
    assert list(found) == ["tl.compare over steps"]
    assert found["tl.compare over steps"]["sizes"] == [10_000, 31_623]
    assert "| tl.compare | steps | 10⁴ to 31,623 |" in capsys.readouterr().out
    assert smoke("--only", "tl.compare over", "--missing", "--seconds", "-1") == found


@pytest.mark.slow
def test_all_pieces(smoke):
    assert {one["axis"] for one in smoke().values()} >= {
        "N", "K", "statistics", "runs", "steps", "nodes", "blocks",
    }  # fmt: skip


def test_the_page_is_that_of_what_was_measured(growth):
    script = importlib.import_module("reach_growth")
    assert script.page() == script.PAGE.read_text(), "run scripts/reach_growth.py --page"
    known = {growth.name: growth for growth in script.GROWTHS}
    assert len(known) == len(script.GROWTHS)
    for name, one in json.loads(script.KEPT.read_text())["growths"].items():
        assert one["sizes"] == list(known[name].sizes), f"measure {name} again"
        over = [one[cost]["slope"] - e for cost, e in _expected(known[name])]
        assert max(over) <= growth.ALLOWED or known[name].faster


def _expected(growth):
    return ("time", growth.time), ("memory", growth.memory)


def test_a_page_tells_what_was_never_measured(growth, monkeypatch, tmp_path):
    """A control: a row that is not in the JSON, or of other sizes."""
    script = importlib.import_module("reach_growth")
    kept = json.loads(script.KEPT.read_text())
    one = next(iter(kept["growths"].values()))
    before = script.page().count("never measured")
    one["sizes"] = one["sizes"][:-1]
    monkeypatch.setattr(script, "KEPT", tmp_path / "kept.json")
    script.KEPT.write_text(json.dumps(kept))
    assert script.page().count("never measured") == before + 1

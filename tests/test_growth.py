"""What costs more as things grow costs no more than it must: work is counted, not timed."""

import contextlib
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import torchlimits as tl
from torchlimits.dynamics.reduced_chain import Frame

SCRIPTS = Path(__file__).parent.parent / "scripts"
PACKAGE = str(Path(tl.__file__).parent)


def instructions(work):
    """How many instructions of Python the package executes."""
    count = 0

    def inside(frame, event, argument):
        nonlocal count
        count += event == "opcode"
        return inside

    def called(frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
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


def grows_linearly(work_of):
    """Whether twice as much more costs twice as much more."""
    work_of(2)()
    few, some, many = (instructions(work_of(size)) for size in (10, 30, 70))
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


def network(dim):
    return tl.NetworkProblem(
        dim=dim, width=2, head=nn.Sequential(nn.Tanh(), nn.Linear(2, 1)),
        loss=nn.functional.mse_loss, means=torch.eye(2, dim), labels=torch.tensor([1.0, -1.0]),
        snr=4.0,
    )  # fmt: skip


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
    found = growth.measured(work, 0.0)
    assert [round(b / 2**26) for b in found["bytes"]] == [1, 2, 4]
    assert found["memory"]["slope"] == pytest.approx(1, abs=0.05)
    assert min(found["seconds"]) > 0
    text = growth.table([found])
    assert text.splitlines()[2].startswith("| bytes | size | 16,777,216 to 67,108,864 |")


def test_work_that_fails_says_why(growth):
    work = growth.Growth("none", "size", [1, 2], lambda size: lambda: 1 / (size - 2), 1, 1, "")
    with pytest.raises(RuntimeError, match=r"none over size at 2: .*[\s\S]*ZeroDivisionError"):
        growth.measured(work, 0.0)
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

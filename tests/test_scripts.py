"""The scripts, run as a user runs them."""

import importlib
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import torchlimits as tl

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1800,
    )


def test_run_is_the_command(tmp_path):
    """What it does, says and refuses is tested in tests/cli."""
    folder = tmp_path / "run"
    done = run("run.py", "matrix", "--dim", 60, "--runs", 2, "--start", "random",
               "--band", "linear", "--logdir", folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {folder}\n" in done.stdout
    measured = tl.Trajectory.load(folder / "measured.npz")
    predicted = tl.Trajectory.load(folder / "predicted.npz")
    assert measured.values.shape == predicted.values.shape
    assert measured.steps[-1] == 120
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "measured" / "1").glob("*tfevents*"))


@pytest.mark.slow
def test_all_benchmarks():
    done = run("bench.py", "--smoke", "--markdown")
    assert done.returncode == 0, done.stderr
    machine, _, *table = done.stdout.splitlines()
    assert torch.__version__ in machine
    names = ["track", "tensorboard.write", "train", "reduced_chain", "estimate", "solve", "basins",
             "sweep"]  # fmt: skip
    for name in names:
        assert any(f"{name}`, " in line for line in table), name
    assert {line.count("|") for line in table} == {8}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("benchmark")


@pytest.fixture
def bench_cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("bench_cuda")


@pytest.mark.slow
def test_every_part_of_the_benchmark_for_cuda_runs_on_the_cpu(bench_cuda, tmp_path):
    options = bench_cuda.Options(out=tmp_path, device="cpu", smoke=True)
    assert bench_cuda.main(options) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {finding["part"] for finding in results["findings"]} == set(bench_cuda.PARTS)
    assert not results["failures"]
    assert results["date"] == time.strftime("%Y-%m-%d")
    table = (tmp_path / "table.md").read_text()
    for name in ("bit_for_bit", "`tl.track`, SmallGPT", "captured, N", "reduced_chain", "peak"):
        assert name in table


def test_a_part_that_fails_says_why_and_the_next_goes_on(bench_cuda, tmp_path, monkeypatch):
    def failing(options, report):
        yield bench_cuda.Note("before", "kept")
        raise RuntimeError("out of luck")

    monkeypatch.setattr(bench_cuda, "tracking", failing)
    parts = ("tracking", "memory")
    options = bench_cuda.Options(out=tmp_path, device="cpu", smoke=True, parts=parts)
    assert bench_cuda.main(options) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert "out of luck" in results["failures"]["tracking"]
    whats = [finding["what"] for finding in results["findings"]]
    assert whats[0] == "before"
    assert any("peak" in what for what in whats)


def test_what_has_no_time_left_is_named(bench_cuda, tmp_path):
    options = bench_cuda.Options(out=tmp_path, device="cpu", smoke=True, seconds=-1.0)
    assert bench_cuda.main(options) == 0
    assert (tmp_path / "table.md").read_text().count("left out: no time") == 5


def test_unknown_parts_are_told(bench_cuda, tmp_path):
    with pytest.raises(ValueError, match="parts among"):
        bench_cuda.Options(out=tmp_path, parts=("speed",), device="cpu")


def test_one_benchmark_by_itself(benchmark, monkeypatch, capsys):
    options = "--steps 40 --add-scalar-steps 20 --event-steps 60 --statistics 2 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["bench_writing.py", *options.split()])
    runpy.run_path(str(SCRIPTS / "bench_writing.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "add_scalar" in shown
    assert "ms/file" in shown


def test_rounds_alternate_and_the_first_is_left_out(benchmark):
    calls = []

    def contender(name):
        return lambda: calls.append(name) or float(len(calls))

    found = benchmark.interleaved({name: contender(name) for name in "ab"}, rounds=3)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert found == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_ratios_are_taken_in_each_round(benchmark):
    # the machine slows down tenfold from round to round: no ratio of medians has these quartiles
    ours, plain = [1e-3, 1e-2, 1e-1, 1.0, 10.0], [2e-3, 5e-2, 3e-1, 6.0, 40.0]
    row = benchmark.Row("it", "step", ours, plain, note="so")
    cells = "| it | 100.0 ms/step | 300.0 ms |  | 4.00 (3.00 to 5.00) |  | so |"
    assert str(row) == cells


def test_time_a_unit(benchmark, monkeypatch):
    clock = iter([1.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert benchmark.timed(lambda: None, units=6) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rounds", "0"], "rounds"), (["--steps", "0"], "units"), (["--device", "no"], "device")],
)
def test_bad_options_of_benchmarks(benchmark, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_tracking.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / "bench_tracking.py"), run_name="__main__")
    assert message in capsys.readouterr().err + str(stop.value)


@pytest.fixture
def reach(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("reach")


def test_figures_of_reach_are_kept_with_date_and_commit(reach, tmp_path, capsys):
    options = reach.parser("What is measured.").parse_args(["--out", str(tmp_path / "found.json")])
    reach.keep({"runs": 3, "off": [0.5]}, options)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert list(found) == ["date", "commit", "runs", "off"]
    assert found["date"] == time.strftime("%Y-%m-%d")
    reach.keep({"runs": 4}, reach.parser(None).parse_args([]))
    assert json.loads(capsys.readouterr().out)["runs"] == 4


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("reach_*.py")), ids=lambda file: file.stem)
def test_what_reach_found_is_committed(script):
    """By the shared way: no script writes dates and commits of its own."""
    text = script.read_text()
    assert "reach.keep(" in text
    assert "subprocess" not in text
    found = json.loads(script.with_suffix(".json").read_text())
    assert list(found)[:2] == ["date", "commit"]
    assert found["commit"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("script", "arguments", "picture", "found"),
    [
        slow("timescales.py", ["--smoke"], "timescales.png", "n log n"),
        slow("success.py", ["binary", "--smoke"], "binary.png", "0.5000"),
        slow("finite_size.py", ["matrix", "--smoke"], "matrix.png", "n log n"),
        slow("finite_size.py", ["binary", "--smoke"], "binary.png", "theory -1/2"),
        slow("normalized.py", ["--smoke"], "normalized.png", "threshold of SGD-U: 0.5000"),
        slow("momentum.py", ["--smoke"], "momentum.png", "Cov r2 r2"),
        ("phase_diagram.py", ["matrix", "--points", 7], "matrix-step.png", "costs up to 1.000"),
        slow("phase_diagram.py", ["tensor", "--points", 7], "tensor-step.png", "corrector costs"),
        slow("phase_diagram.py", ["binary", "--plane", "ridge", "--points", 2], "binary-ridge.png",
             "by gradient flow"),
    ],
)  # fmt: skip
def test_pictures(script, arguments, picture, found, tmp_path):
    done = run(script, *arguments, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("part", "found"),
    [
        slow("a", "the plateau for eta -> 0 is 0.011611"),
        slow("b", "accuracy at t = 2"),
        slow("c", "theory 1/(2 rate) = 0.1252"),
        slow("d", "1.0086 (0.02), 1.0446 (0.1)"),
    ],
)
def test_heads(part, found, tmp_path):
    done = run("heads.py", "--part", part, "--smoke", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    assert (tmp_path / f"{part}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("training")


def test_gradients_of_every_run_are_clipped_by_themselves(training):
    """One run at a time, torch's own functions do the same."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(3, *shape)) for shape in ((2, 20), (2,), (1, 2))]
    # the first run's gradient is short, the last one's long
    lengths = torch.tensor([0.1, 1.0, 9.0])
    given = [torch.randn_like(p) * lengths.reshape(-1, *[1] * (p.ndim - 1)) for p in parameters]
    functions = {
        training.ClipNorm(2.0): lambda p: torch.nn.utils.clip_grad_norm_(p, 2.0),
        training.ClipValue(0.5): lambda p: torch.nn.utils.clip_grad_value_(p, 0.5),
    }
    for change, function in functions.items():
        for p, gradient in zip(parameters, given, strict=True):
            p.grad = gradient.clone()
        change(parameters)
        for run in range(3):
            alone = [torch.nn.Parameter(torch.zeros_like(p[run])) for p in parameters]
            for p, gradient in zip(alone, given, strict=True):
                p.grad = gradient[run].clone()
            function(alone)
            for p, expected in zip(parameters, alone, strict=True):
                torch.testing.assert_close(p.grad[run], expected.grad)
        assert not torch.equal(parameters[0].grad[2], given[0][2])
        assert "clip" in next(iter(change.options))


@pytest.mark.slow
def test_nine_optimizers(tmp_path):
    done = run("optimizers.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "│" in line][-9:]
    assert [line.split("│")[1].split(",")[0].strip() for line in lines] == [
        "SGD", "SGD", "SGD", "Muon", "SignSGD", "Adam", "AdamW", "RMSprop", "Adagrad",
    ]  # fmt: skip
    # risk and R[0,0], and what they would be without the corrector
    for line in lines:
        risk, _, R, without = map(float, line.strip("│").split("│")[1:])
        assert risk < 0.1, line
        assert without > 2 * R, line
    assert (tmp_path / "optimizers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("example", ["gelu", "digits"])
def test_your_own(example, tmp_path):
    done = run("your_own.py", example, "--smoke", "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "effective dynamics" in done.stdout
    assert "drift, random" in done.stdout
    # real data: what is not predicted is said plainly
    assert ("not a function of these statistics" in done.stdout) or example == "gelu"
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "explained" / "corrector").glob("*tfevents*"))


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("phase_diagram.py", ["matrix", "--plane", "ridge"], "their ridge is 0"),
        ("phase_diagram.py", ["tensor", "--order", 1], "order >= 2"),
        ("timescales.py", ["--snr", 0.5], "above the threshold"),
        ("success.py", ["xor", "--widths", 0], "width"),
        ("figures.py", ["4"], "invalid choice"),
    ],
)
def test_bad_options_of_the_others(script, arguments, message, tmp_path):
    done = run(script, *arguments, "--logdir", tmp_path)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_real_data_of_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    real_data = importlib.import_module("real_data")
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) + 3
    np.savez(tmp_path / "data.npz", x=x, y=x[:, 0].sin())
    picture = tmp_path / "picture.png"
    given = ["--path", tmp_path / "data.npz", "--steps", 200, "--step-size", 0.05]
    monkeypatch.setattr(sys, "argv", ["real_data.py", *map(str, given), "--picture", str(picture)])
    real_data.main()
    said = capsys.readouterr().out
    assert "data.npz, c = 0.05" in said
    assert "holds" in said
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def performance(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("performance")


def test_the_table_of_costs_is_that_of_the_rows_kept(performance):
    text = performance.page(performance.load())
    assert performance.PAGE.read_text() == text, "run scripts/performance.py"


def test_each_row_says_where_when_and_by_which_command(performance):
    for row in performance.load():
        assert performance.kind(row) in {performance.CPU, performance.CARD}
        assert time.strptime(row["date"], "%Y-%m-%d")
        assert row["commit"]
        assert len(row["cells"]) == 7
        assert row["command"] in performance.COMMANDS, "commands that are no longer there"


def test_every_benchmark_has_rows_or_is_said_never_to_have_been_measured(performance):
    named = " ".join(performance.COMMANDS)
    for script in SCRIPTS.glob("bench_*.py"):
        assert f"scripts/{script.name}" in named
    empty = performance.table([])
    assert empty.count("never measured") == len(performance.COMMANDS)


@pytest.mark.parametrize("kept_before", [0, 2])
def test_rows_take_the_place_of_older_ones(performance, monkeypatch, tmp_path, kept_before):
    monkeypatch.setattr(performance, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(performance, "write", lambda kept: None)
    cells = [["a", "1 s", "", "", "", "", ""], ["b", "2 s", "", "", "", "", ""]]
    performance.keep("scripts/x.py", cells[:kept_before] or cells[:1], "CPU: old")
    performance.keep("scripts/y.py", cells[:1], "CPU: old")
    performance.keep("scripts/x.py", cells[:1], "card: new")
    performance.keep("scripts/x.py", cells, "CPU: new", "2026-01-02", "abc")
    found = [(row["command"], row["where"], row["cells"][0]) for row in performance.load()]
    assert found == [
        ("scripts/x.py", "CPU: new", "a"), ("scripts/x.py", "CPU: new", "b"),
        ("scripts/y.py", "CPU: old", "a"), ("scripts/x.py", "card: new", "a"),
    ]  # fmt: skip
    assert performance.load()[0]["date"] == "2026-01-02"
    assert "| CPU: new | `scripts/x.py`, 2026-01-02, abc |" in performance.table(performance.load())
    with pytest.raises(ValueError, match="got none"):
        performance.keep("scripts/x.py", [], "CPU: new")


def test_a_page_without_the_marks_is_not_touched(performance):
    with pytest.raises(ValueError, match="between"):
        performance.written("no table", "| a |")


def test_a_benchmark_keeps_its_rows_under_its_command(benchmark, performance, monkeypatch):
    kept = []
    monkeypatch.setattr(performance, "keep", lambda *row: kept.append(row))
    monkeypatch.setattr(sys, "argv", ["scripts/bench_it.py", "--keep", "--rounds", "1"])
    rows = [benchmark.Row(what, "step", [1.0]) for what in "ab"]
    rows[1].by = "scripts/b.py"
    benchmark.main(lambda options: rows, benchmark.Options, None)
    commands = [by for by, *_ in kept]
    assert commands == ["scripts/bench_it.py --rounds 1", "scripts/b.py"]
    assert all(where.startswith("CPU: ") for _, _, where in kept)

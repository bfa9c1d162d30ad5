"""The scripts, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

import torchlimits as tl

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


# the band of a wide network takes seconds a run
@pytest.mark.parametrize(("name", "band"), [("xor", "--no-band"), ("binary", "--band")])
def test_run(name, band, tmp_path):
    done = run("run.py", name, "--dim", 60, "--time", 1, "--runs", 2, band, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "v[0]" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith(f"tensorboard --logdir {tmp_path}")
    measured = tl.Trajectory.load(tmp_path / "measured.npz")
    predicted = tl.Trajectory.load(tmp_path / "predicted.npz")
    assert measured.values.shape == predicted.values.shape
    assert (predicted.std is not None) is (band == "--band")
    assert measured.steps[-1] == 30
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "measured" / "1").glob("*tfevents*"))


def test_without_the_corrector(tmp_path):
    paths = {}
    for flag in ("--corrector", "--no-corrector"):
        done = run("run.py", "binary", "--dim", 60, "--snr", 1, "--time", 2, "--runs", 1, flag,
                   "--logdir", tmp_path / flag)  # fmt: skip
        assert done.returncode == 0, done.stderr
        paths[flag] = tl.Trajectory.load(tmp_path / flag / "predicted.npz")
    gap = paths["--corrector"].final - paths["--no-corrector"].final
    assert float(gap[0, paths["--corrector"].index("R[0,0]")]) > 0.01


def test_a_diverging_run_says_so_and_saves(tmp_path):
    done = run("run.py", "xor", "--dim", 60, "--step-size", 1e6, "--time", 1e8, "--ridge", 0.5,
               "--logdir", tmp_path)  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "after step" in done.stderr
    assert "measured.npz" in done.stderr
    saved = tl.Trajectory.load(tmp_path / "measured.npz")
    assert len(saved) > 0
    assert bool(saved.values.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", 5], "dim >= number of means"),
        (["--snr", -1], "snr"),
        (["--time", 0], "time"),
        (["--runs", 0], "runs"),
        (["--device", "nowhere"], "device"),
    ],
)
def test_bad_options_are_told_without_a_traceback(arguments, message, tmp_path):
    done = run("run.py", "xor", *arguments, "--logdir", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("bench_tracking.py", ["--steps", 40, "--rounds", 2]),
        ("bench_estimate.py", ["--samples", 64, "--looped", 2, "--rounds", 2, "--dim", 60]),
        ("bench_writing.py", ["--help"]),
        ("bench_ensemble.py", ["--runs", 3, "--dims", 20, "--steps", 20, "--rounds", 2]),
        ("bench_reduced.py", ["--runs", 10, "--dim", 20, "--steps", 8, "--rounds", 2]),
    ],
)
def test_benchmarks_start(script, arguments):
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("number", "found"),
    [("1", "equator at snr 0.8"), ("2", "rank 1 in theory"), ("3", "rank 2 in theory")],
)
def test_figures(number, found, tmp_path):
    done = run("figures.py", number, "--smoke", "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    assert (tmp_path / f"figure{number}.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / f"figure{number}").rglob("*tfevents*"))


@pytest.mark.parametrize(
    ("script", "arguments", "picture", "found"),
    [
        ("timescales.py", ["--smoke"], "timescales.png", "n log n"),
        ("success.py", ["binary", "--smoke"], "binary.png", "0.5000"),
        ("finite_size.py", ["matrix", "--smoke"], "matrix.png", "n log n"),
        ("finite_size.py", ["binary", "--smoke"], "binary.png", "theory -1/2"),
        ("normalized.py", ["--smoke"], "normalized.png", "threshold of SGD-U: 0.5000"),
        ("momentum.py", ["--smoke"], "momentum.png", "Cov r2 r2"),
        ("phase_diagram.py", ["matrix", "--points", 7], "matrix-step.png", "costs up to 1.000"),
        ("phase_diagram.py", ["tensor", "--points", 7], "tensor-step.png", "corrector costs"),
        ("phase_diagram.py", ["binary", "--plane", "ridge", "--points", 2], "binary-ridge.png",
         "by gradient flow"),
    ],
)  # fmt: skip
def test_pictures(script, arguments, picture, found, tmp_path):
    done = run(script, *arguments, "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert found in done.stdout
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("example", ["gelu", "digits"])
def test_your_own(example, tmp_path):
    done = run("your_own.py", example, "--smoke", "--logdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "effective dynamics" in done.stdout
    assert "drift, random" in done.stdout
    # real data: what is not predicted is said plainly
    assert ("no function of these statistics" in done.stdout) or example == "gelu"
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

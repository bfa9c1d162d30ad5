"""`torchlimits run`, as it is called: what it writes, and what it says."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchlimits as tl
from torchlimits.cli import browser
from torchlimits.cli.main import main
from torchlimits.cli.problems import PROBLEMS, Binary, Xor
from torchlimits.cli.starts import start_of

SMALL = ["--dim", "40", "--time", "1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def events(folder):
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_one_command_leaves_a_table_a_picture_and_tensorboard(capsys):
    assert main(["run", "binary", *SMALL]) == 0
    (folder,) = Path("runs/binary").iterdir()
    assert folder.name == "0001-snr2-lr2-dim40-time1"
    measured = tl.Trajectory.load(folder / "measured.npz")
    predicted = tl.Trajectory.load(folder / "predicted.npz")
    assert measured.steps[-1] == 20
    # the prediction begins at the measured start, and has a band
    assert torch.equal(measured.initial, predicted.initial)
    assert predicted.lower is not None
    assert predicted.metadata["law"] == {"exact": True, "level": 0.95, "runs": 2000}
    assert predicted.samples is None  # saved on request
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((folder / "run.json").read_text())
    assert told["stage"] == "finished"
    assert told["options"]["dim"] == 40
    assert not (folder / "checkpoint.pt").exists()
    for side in ("measured", "predicted"):
        shown = events(folder / side)
        assert len(shown.Scalars("v/0")) == len(measured)
    said = capsys.readouterr().out
    assert "The start is informed" in said
    table = str(tl.compare(measured, predicted)).partition("\n\n")[0]
    assert table in said
    assert f"Picture: {folder / 'overlay.png'}" in said
    assert f"--logdir {folder}" in said
    assert "?smoothing=0#custom_scalars&_smoothingWeight=0" in said


#: where they differ from dim 300 and time 1
SIZES = {
    "xor": {"band": "none"},
    "tensor": {"dim": 1000, "time": 0.5},
    "network": {"head": "gelu", "width": 2, "time": 8.0},
    "teacher-student": {"time": 4.0, "noise": 0.3},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_informed_starts_are_where_the_band_holds(name):
    """Runs from them are inside the predicted band; from random starts near a saddle, they part."""
    options = PROBLEMS[name](**{"dim": 300, "time": 1.0, **SIZES.get(name, {})})
    problem = options.problem("cpu")
    start, about = start_of(options, problem)
    assert "informed" in about
    measured = tl.train(
        problem, step_size=options.step_size, time=options.time, runs=32, start=start,
        progress=False, every=20,
    )  # fmt: skip
    dynamics = problem.dynamics(step_size=options.step_size)
    predicted = dynamics.solve(measured.initial[0], measured.times, band=options.band != "none")
    if predicted.std is not None:
        inside = tl.compare(measured, predicted).inside
        assert float(inside.min()) > 0.88
    wrong = dynamics.solve(measured.initial[0], measured.times, corrector=False)
    far, near = (tl.compare(measured, path).sup_difference.max() for path in (wrong, predicted))
    assert float(far) > 3 * float(near)


@pytest.mark.parametrize("head", [pytest.param("mlp", marks=pytest.mark.slow), "relu"])
def test_a_head_of_ones_choice_is_drawn_beside_its_theory(head, capsys):
    arguments = ["--head", head, "--width", "2", "--classes", "2", "--dim", "60", "--time", "4"]
    assert main(["run", "network", *arguments, "--band", "none"]) == 0
    (folder,) = Path("runs/network").iterdir()
    assert folder.name == f"0001-{head}-snr4-lr4-dim60-time4-classes2-width2"
    measured, predicted = (
        tl.Trajectory.load(folder / f"{side}.npz") for side in ("measured", "predicted")
    )
    assert measured.names == predicted.names
    assert ("head.3.weight[1,4]" in measured.names) is (head == "mlp")
    said = capsys.readouterr().out
    assert f"Picture: {folder / 'overlay.png'}" in said
    # what is said of the runs' risk is the loss of the runs' own models, on fresh data
    options = PROBLEMS["network"](head=head, width=2, classes=2, dim=60)
    problem = options.problem("cpu")
    model, _ = start_of(options, problem)
    x, y = problem.sample(20_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(x)
    loss = float(problem.loss(output, y))
    found = {name: float(risk) for name, risk in re.findall(r"(\w+): ([\d.]+) at the", said)}
    assert found["risk"] == pytest.approx(loss, abs=0.01)
    right = (output.argmax(-1) == y).double().mean()
    assert found["accuracy"] == pytest.approx(float(right), abs=0.012)


def test_a_student_is_drawn_beside_its_theory(capsys):
    arguments = ["--width", "3", "--teacher-width", "2", "--activation", "relu", "--noise", "0.5"]
    both = ["--dim", "60", "--time", "2", "--train-second-layer"]
    assert main(["run", "teacher-student", *arguments, *both]) == 0
    (folder,) = Path("runs/teacher-student").iterdir()
    assert folder.name.startswith("0001-lr1-dim60-time2-width3-activationrelu-noise0.5")
    measured = tl.Trajectory.load(folder / "measured.npz")
    assert tl.Trajectory.load(folder / "predicted.npz").std is not None
    # all neurons start with weight 1; the first two lean to one of the teacher's each
    assert measured["head.weight"][0, 0].tolist() == [1.0] * 3
    overlaps = measured["m"][0, 0].reshape(3, 2)
    assert torch.allclose(overlaps, torch.eye(3, 2).double() * 0.2, atol=1e-6)
    said = capsys.readouterr().out
    assert "off the symmetric plateau" in said
    begin, end = map(
        float, re.findall(r"generalization error: ([\d.]+) at.*, ([\d.]+) at", said)[0]
    )
    problem = PROBLEMS["teacher-student"](
        width=3, teacher_width=2, activation="relu", noise=0.5, dim=60, train_second_layer=True
    ).problem("cpu")
    errors = problem.generalization_error(measured.values[0])
    assert [begin, end] == pytest.approx(errors[[0, -1]].tolist(), abs=1e-4)


def test_random_students_say_that_they_wait_at_the_plateau():
    options = PROBLEMS["teacher-student"](start="random")
    start, about = start_of(options, options.problem("cpu"))
    assert start is None
    assert "near the symmetric plateau, a saddle" in about


@pytest.mark.parametrize(("kind", "width"), [(Xor, 1), (Xor, 6), (Binary, 3)])
def test_informed_neurons_have_the_sign_of_their_mean(kind, width):
    options = kind(dim=30, width=width, directions="random")
    problem = options.problem("cpu")
    start, _ = start_of(options, problem)
    u = problem.statistics(dict(start.named_parameters()))
    path = tl.Trajectory(torch.zeros(1), torch.zeros(1), u.detach()[None], problem.names)
    for neuron in range(width):
        mean = problem.coordinates[neuron % len(problem.means)]
        sign = 1 if problem.labels[neuron % len(problem.means)] else -1
        assert float(path[f"v[{neuron}]"]) * sign > 0.7
        overlaps = [float(path[f"m[{neuron},{j}]"]) for j in range(len(problem.directions))]
        assert overlaps == pytest.approx((0.5 * mean).tolist(), abs=1e-5)


def test_random_starts_say_that_they_are_near_a_saddle(capsys):
    assert main(["run", "matrix", *SMALL, "--start", "random", "--runs", "5"]) == 0
    said = capsys.readouterr().out
    assert "a saddle" in said
    assert "random, so that runs" in said
    assert "overlay.png (4 of 5 runs, a row each)" in said
    assert "TensorBoard shows 3 of 5 runs" in said
    (folder,) = Path("runs/matrix").iterdir()
    assert folder.name == "0001-snr2-lr1-dim40-time1-random-runs5"
    assert sorted(place.name for place in (folder / "measured").iterdir()) == ["0", "1", "2"]
    assert tl.Trajectory.load(folder / "predicted.npz").runs == 5


def test_below_the_threshold_the_equator_is_no_saddle():
    options = PROBLEMS["matrix"](start="random", snr=0.5)
    _, about = start_of(options, options.problem("cpu"))
    assert "saddle" not in about
    assert "attracts" in about


def test_two_runs_have_two_folders_and_an_old_one_is_never_written_over(capsys):
    for _ in range(2):
        assert main(["run", "matrix", *SMALL, "--band", "none"]) == 0
    names = [path.name[:4] for path in sorted(Path("runs/matrix").iterdir())]
    assert names == ["0001", "0002"]
    first, second = (tl.Trajectory.load(path / "measured.npz")
                     for path in sorted(Path("runs/matrix").iterdir()))  # fmt: skip
    assert torch.equal(first.values, second.values)
    folder = next(Path("runs/matrix").iterdir())
    before = (folder / "measured.npz").read_bytes()
    assert main(["run", "matrix", *SMALL, "--logdir", str(folder)]) == 1
    assert "which has one" in capsys.readouterr().err
    assert (folder / "measured.npz").read_bytes() == before


def test_a_diverging_run_says_so_and_saves(capsys):
    arguments = ["--dim", "60", "--step-size", "1e6", "--time", "1e8", "--ridge", "0.5"]
    assert main(["run", "xor", *arguments, "--logdir", "x"]) == 1
    said = capsys.readouterr().err
    assert "after step" in said
    assert "measured.npz" in said
    assert said.count("\n") == 1
    assert len(tl.Trajectory.load("x/measured.npz")) > 0


@pytest.mark.skipif(os.name != "posix", reason="displays of X and Wayland")
def test_no_browser_is_said_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(browser.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert main(["run", "binary", *SMALL, "--open"]) == 1
    assert "expected a display and a browser" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_open_starts_tensorboard_and_ends_it_with_an_interrupt(monkeypatch, capsys):
    opened = []

    def interrupted(url):
        opened.append(url)
        raise KeyboardInterrupt

    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.setattr(browser.webbrowser, "get", lambda: None)
    monkeypatch.setattr(browser.webbrowser, "open", interrupted)
    monkeypatch.setattr(browser, "_wait_for", lambda server, port: None)
    assert main(["run", "matrix", *SMALL, "--band", "none", "--open"]) == 130
    assert opened[0].endswith(browser.VIEW)
    assert "all is saved in runs/matrix/0001" in capsys.readouterr().err


@pytest.mark.slow
def test_without_the_corrector_theory_is_gradient_flow(capsys):
    paths = {}
    for flag in ("--corrector", "--no-corrector"):
        arguments = ["binary", "--dim", "60", "--snr", "1", "--time", "2", flag]
        assert main(["run", *arguments, "--logdir", flag[2:]]) == 0
        paths[flag] = tl.Trajectory.load(Path(flag[2:]) / "predicted.npz")
    assert paths["--no-corrector"].std is None
    gap = paths["--corrector"].final - paths["--no-corrector"].final
    assert float(gap[0, paths["--corrector"].index("R[0,0]")]) > 0.01
